"""Replace layers of any model by a rule.

A *rule* looks at a whole model and returns `{dotted name: new module}`. The rules that `build(..., layers=NAME)` and
`convert(..., to=NAME)` know by name belong to the ideas; this file names none.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pellucid.core.errors import InputError
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.network.combine import Chain
from pellucid.core.network.rules import Rule
from pellucid.core.network.tap import module_at


@dataclass(frozen=True)
class Change:
    """One replaced layer: its dotted names (several if it is shared), what it was and what it is now."""

    names: tuple[str, ...]
    old: str
    new: str
    parameters_before: int
    parameters_after: int


class Changes(list[Change]):
    """What a swap changed, in the model's order; `left` gives, by name, the reason why other layers stay."""

    def __init__(self, changes: Iterable[Change] = (), left: Mapping[str, str] | None = None) -> None:
        super().__init__(changes)
        self.left = dict(left or {})


def swap(model: nn.Module, rule: Rule | Chain) -> Changes:
    """Replace layers of `model` in place by `rule`, or by several rules one after the other.

    A module that is used in several places is replaced in all of them by the same new module. The new module takes over
    the old one's training mode. Weights are kept if the rule hands them over (see `twin`).

    Returns:
        What changed, in the model's order.

    Raises:
        InputError: the rule names an unknown layer, gives a shared layer two replacements, or replaces both a layer and
            one inside it.
    """
    needs_layers(model, "Replacing layers")
    if isinstance(rule, Chain):
        changes = Changes()
        for each in rule.rules:
            changes = merged(model, changes, swap(model, each))
        replaced = {name for change in changes for name in change.names}
        return Changes(changes, {name: why for name, why in changes.left.items() if name not in replaced})
    replacements = rule(model)
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    chosen: dict[int, nn.Module] = {}
    for name, new in replacements.items():
        old = module_at(model, name)
        if name == "":
            raise InputError("A rule cannot replace the whole model: call the new module instead.")
        if chosen.setdefault(id(old), new) is not new:
            raise InputError(f"Layer {places[id(old)][0]!r} is shared, but the rule gives it two replacements.")
    listed = []
    for identity, new in chosen.items():
        names = tuple(places[identity])
        for name in names:
            outer = name
            while outer:
                outer = outer.rpartition(".")[0]
                if outer and id(module_at(model, outer)) in chosen:
                    raise InputError(f"The rule replaces both {outer!r} and {name!r} inside it: choose one.")
        old = module_at(model, names[0])
        new.train(old.training)
        listed.append(Change(names, _title(old), _title(new), _count(old), _count(new)))
    for identity, new in chosen.items():
        for name in places[identity]:
            parent, _, child = name.rpartition(".")
            setattr(module_at(model, parent), child, new)
    order = {name: position for position, name in enumerate(names[0] for names in places.values())}
    ordered = sorted(listed, key=lambda change: order[change.names[0]])
    return Changes(ordered, getattr(replacements, "left", None))


def merged(model: nn.Module, first: Changes, second: Changes) -> Changes:
    """The changes of two successive swaps of `model`, as one table."""
    table = {change.names: change for change in first}
    for change in second:
        before = table.get(change.names, change)
        table[change.names] = type(change)(
            change.names, before.old, change.new, before.parameters_before, change.parameters_after
        )
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    rows = sorted(table.values(), key=lambda change: order.get(change.names[0], len(order)))
    return Changes(rows, first.left | second.left)


def twin(module: nn.Module, cls: type[nn.Module], **changes: Any) -> nn.Module:
    """Make a `cls` with the constructor arguments of `module`, on its device, holding the very same parameters.

    The arguments are those attributes of `module` that the constructors of both `cls` and the module's class (or one it
    derives from) take by name; `changes` overrides or adds some. Parameters of the same name and shape are handed over,
    so ties with other layers remain; buffers are copied.
    """
    inits = [vars(kind)["__init__"] for kind in type(module).__mro__ if "__init__" in vars(kind)]
    accepted = {key for init in inits for key in inspect.signature(init).parameters}
    taken = inspect.signature(cls.__init__).parameters
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in taken.values()):  # it passes on its arguments
        taken = inspect.signature(type(module).__init__).parameters
    arguments = {key: getattr(module, key) for key in taken if key in accepted - {"self"} and hasattr(module, key)}
    if "bias" in arguments:
        arguments["bias"] = module.bias is not None
    for key in ("device", "dtype"):
        arguments.pop(key, None)
    new = cls(**{**arguments, **changes})
    if (sample := next(module.parameters(), None)) is not None:
        new.to(device=sample.device, dtype=sample.dtype)
    parameters, buffers = (dict(named(recurse=False)) for named in (new.named_parameters, new.named_buffers))
    for name, parameter in module.named_parameters(recurse=False):
        if name in parameters and parameters[name].shape == parameter.shape:
            new.register_parameter(name, parameter)
    with torch.no_grad():
        for name, buffer in module.named_buffers(recurse=False):
            if name in buffers and buffers[name].shape == buffer.shape:
                buffers[name].copy_(buffer)
    return new.train(module.training)


def _title(module: nn.Module) -> str:
    text = module.extra_repr()
    return f"{type(module).__name__}({text})"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
