"""Rules: functions from a whole model to replacements for some of its layers, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pellucid.core.registry import Registry, made

Rule = Callable[[nn.Module], Mapping[str, nn.Module]]

RULES: Registry[Callable[..., Rule]] = Registry("layers", own="LAYERS")  # functions from options to a rule


def rule(name: str, **options: Any) -> Rule:
    """The rule called `name`, with `options`; `"plain"` changes nothing.

    Raises:
        InputError: an unknown rule or option.
    """
    return made(f"layers {name!r}", RULES[name], options)


def plain() -> Rule:
    """The rule "plain": every layer stays."""
    return lambda model: {}


def each(kind: type[nn.Module] | tuple[type[nn.Module], ...], make: Callable[[str, Any], nn.Module | None]) -> Rule:
    """The rule that replaces every module of type `kind` with `make(name, module)`, unless that is None."""

    def apply(model: nn.Module) -> dict[str, nn.Module]:
        made = {name: make(name, module) for name, module in model.named_modules() if isinstance(module, kind)}
        return {name: module for name, module in made.items() if module is not None}

    return apply


class Replacements(dict[str, nn.Module]):
    """What a rule may return in place of a plain dict: `left` gives, by name, the reason why a layer stays."""

    def __init__(self, replacements: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__(replacements or {})
        self.left: dict[str, str] = {}
