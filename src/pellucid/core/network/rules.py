"""Rules: functions from a whole model to replacements for some of its layers, by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from pellucid.core.errors import InputError
from pellucid.core.network.combine import PLAIN, PLUS, Chain, Combination, check_names
from pellucid.core.registry import Registry, made

Rule = Callable[[nn.Module], Mapping[str, nn.Module]]


class Rules(Registry[Callable[..., "Rule | Chain"]]):
    """Functions from options to a rule, by name; `"csc+deconv"` is the combination of the two (`combine`)."""

    def __getitem__(self, name: str) -> Callable[..., Rule | Chain]:
        """The function called `name`.

        Raises:
            InputError: an unknown name, or names that make no sense together.
        """
        names = name.split(PLUS) if isinstance(name, str) else [name]
        if len(names) == 1:
            return super().__getitem__(name)
        check_names(names, includes())
        return self.combined(names)

    def combined(self, names: Sequence[str]) -> Combination:
        """The combination of one rule or several, which are not checked for their sense."""
        return Combination({name: super(Rules, self).__getitem__(name) for name in names})  # type: ignore[misc]


RULES = Rules("layers", own="LAYERS")


def includes() -> Mapping[str, Sequence[str]]:
    """Name of a rule -> names of those that do a part of what it does."""
    table: Mapping[str, Sequence[str]] = importlib.import_module("pellucid.ideas").INCLUDES
    return table


def rule(name: str, **options: Any) -> Rule | Chain:
    """The rule called `name`, or the chain of rules called `"NAME+NAME"`, with `options`; `"plain"` changes nothing.

    Raises:
        InputError: an unknown rule or option, or rules that make no sense together.
    """
    factory = RULES[name]
    if isinstance(factory, Combination):
        factory.check(options)
    return made(f"layers {name!r}", factory, options)


def extended(layers: str, options: Mapping[str, Any], to: str, more: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of the rules by which a network of `layers` with `options` becomes one of `to` with `more`.

    Raises:
        InputError: it has such layers already, or the two make no sense together.
    """
    had, new = layers.split(PLUS) if layers != PLAIN else [], to.split(PLUS)
    inner = {part: outer for outer in had for part in (outer, *includes().get(outer, ()))}
    if again := [name for name in new if name in inner]:
        rest = PLUS.join(name for name in new if name not in inner)
        within = "" if again[0] in had else f", as a part of {inner[again[0]]!r}"
        remedy = f": convert it to {rest!r} alone" if rest else ""
        raise InputError(f"This network has layers {again[0]!r} already{within}{remedy}.")
    tables = RULES.combined(had).split(options) if had else {}
    added = RULES.combined(new).split(more)
    if had and had[-1] in includes().get(new[0], ()):  # the new rule goes on from where the last one stopped
        _check_same(had[-1], tables.pop(had.pop()), new[0], added[new[0]])
    names = [*had, *new]
    for outer in new:
        for part in set(includes().get(outer, ())) & set(had):
            raise InputError(f"This network has layers {part!r}, which {outer!r} includes: convert one without them.")
    check_names(names, includes())
    return PLUS.join(names), RULES.combined(names).join({**tables, **added})


def _check_same(name: str, had: Mapping[str, Any], to: str, new: Mapping[str, Any]) -> None:
    """Refuse options of the rule `to` that differ from those with which `name` has made some of its layers."""
    taken = inspect.signature(RULES[to]).parameters
    for option, parameter in inspect.signature(RULES[name]).parameters.items():
        was, now = had.get(option, parameter.default), new.get(option, taken[option].default)
        if was != now:
            raise InputError(
                f"This network has layers {name!r} with {option}={was!r}: convert it to {to!r} with the same, not "
                f"{now!r}."
            )


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
