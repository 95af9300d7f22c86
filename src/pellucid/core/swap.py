"""Walk any model, name its layers, replace them by a rule, and tap what flows through them.

A *rule* looks at a whole model and answers `{dotted name: new module}`. Rules that `build(..., layers=NAME)` and
`convert(..., to=NAME)` know by name are registered by the ideas that own them: this file names none.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib.metadata
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pellucid.core.errors import InputError

Rule = Callable[[nn.Module], Mapping[str, nn.Module]]

IDEAS = "pellucid.ideas"  # entry-point group: modules that register rules, cards, ... when imported

_RULES: dict[str, Callable[..., Rule]] = {}


# --- rules by name ---


def register(name: str, factory: Callable[..., Rule]) -> None:
    """Make `factory(**options) -> Rule` available as `layers=name`; the last registration of a name holds."""
    _RULES[name] = factory


def factory(name: str) -> Callable[..., Rule]:
    """What was registered as `name`: a function of keyword options that makes the rule.

    Raises:
        InputError: no such rule.
    """
    load_ideas()
    if name not in _RULES:
        known = ["plain", *sorted(_RULES)]
        raise InputError(f"Unknown layers {name!r}: choose one of {', '.join(known)}.")
    return _RULES[name]


def rule(name: str, **options: Any) -> Rule:
    """The registered rule `name` with `options`; `"plain"` changes nothing.

    Raises:
        InputError: no such rule, or an option that the rule does not take.
    """
    if name == "plain":
        if options:
            raise InputError(f"layers 'plain' takes no options, but got {', '.join(sorted(options))}.")
        return lambda model: {}
    make = factory(name)
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise InputError(
            f"layers {name!r}: {error}; it takes {', '.join(inspect.signature(make).parameters)}."
        ) from None
    return make(**options)


def load_ideas() -> None:
    """Import every installed idea (entry points of the group `pellucid.ideas`), once, so that it can register."""
    if _loaded:
        return
    _loaded.append(True)
    for entry in importlib.metadata.entry_points(group=IDEAS):
        entry.load()


_loaded: list[bool] = []


def each(kind: type[nn.Module] | tuple[type[nn.Module], ...], make: Callable[[str, Any], nn.Module | None]) -> Rule:
    """The rule that replaces every module of type `kind` by `make(name, module)`, unless that is None."""

    def apply(model: nn.Module) -> dict[str, nn.Module]:
        made = {name: make(name, module) for name, module in model.named_modules() if isinstance(module, kind)}
        return {name: module for name, module in made.items() if module is not None}

    return apply


# --- swapping ---


@dataclass(frozen=True)
class Change:
    """One replaced layer: its dotted names (several if it is shared), what it was and what it is now."""

    names: tuple[str, ...]
    old: str
    new: str
    parameters_before: int
    parameters_after: int


class Changes(list[Change]):
    """What a swap changed, in the model's own order; `left` tells why layers that it looked at stay, by name."""

    def __init__(self, changes: Iterable[Change] = (), left: Mapping[str, str] | None = None) -> None:
        super().__init__(changes)
        self.left = dict(left or {})


class Replacements(dict[str, nn.Module]):
    """What a rule may answer instead of a plain dict, to tell why layers that it looked at stay: `left`, by name."""

    def __init__(self, replacements: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__(replacements or {})
        self.left: dict[str, str] = {}


def swap(model: nn.Module, rule: Rule) -> Changes:
    """Replace layers of `model` in place by `rule`; returns what changed, in the model's own order.

    A module that stands at several places is replaced at all of them by the same new module. The new module
    takes over the old one's training flag. Weights are kept when the rule hands them over (`twin`).

    Raises:
        InputError: the rule names a layer that is not there, asks for two replacements of one shared layer, or
            replaces a layer and one inside it.
    """
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
    changes = []
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
        changes.append(Change(names, _title(old), _title(new), _count(old), _count(new)))
    for identity, new in chosen.items():
        for name in places[identity]:
            parent, _, child = name.rpartition(".")
            setattr(module_at(model, parent), child, new)
    order = {name: position for position, name in enumerate(names[0] for names in places.values())}
    ordered = sorted(changes, key=lambda change: order[change.names[0]])
    return Changes(ordered, getattr(replacements, "left", None))


def is_plain(module: nn.Module) -> bool:
    """Whether a convolution, linear or batch-norm layer computes as torch's own of its kind does.

    A subclass may add arguments, but no arithmetic (padding of its own, standardised weights, a parametrization),
    and nobody may hook in between. Any other module is not plain.
    """
    base = next((cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn.modules.")), nn.Module)
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
    methods = ("forward", "_conv_forward")
    return (
        isinstance(module, kinds)
        and all(getattr(type(module), name, None) is getattr(base, name, None) for name in methods)
        and set(module._parameters) >= {"weight", "bias"}  # a parametrization or weight norm takes them out
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def without_norm(norm: nn.Module) -> nn.Module | None:
    """What is left of a batch-norm layer without the normalisation; None for a subclass that is not understood.

    torch's own leaves nothing, an identity; timm's, which drop and activate in the same module, leave that. The
    activation no longer works in place: its input is now another layer's output, which may be read elsewhere too.
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return None
    if is_plain(norm):
        return nn.Identity()
    children = dict(norm.named_children())
    if set(children) != {"drop", "act"}:
        return None
    kept = {name: out_of_place(child) for name, child in children.items() if not isinstance(child, nn.Identity)}
    return nn.Sequential(OrderedDict(kept)) if kept else nn.Identity()


def out_of_place(module: nn.Module) -> nn.Module:
    """A copy of a module without parameters that does not overwrite its input; any other module itself."""
    if not getattr(module, "inplace", False) or next(module.parameters(), None) is not None:
        return module
    copied = copy.deepcopy(module)
    vars(copied)["inplace"] = False
    return copied


def twin(module: nn.Module, cls: type[nn.Module], **changes: Any) -> nn.Module:
    """A `cls` with the constructor arguments of `module`, on its device, that holds the very same parameters.

    The arguments are the module's attributes of the names that `cls`, and the module's class or one above it, take;
    `changes` overrides or adds some. A parameter is handed over when name and shape agree (ties with other layers stay
    ties), a buffer is copied.
    """
    inits = [vars(kind)["__init__"] for kind in type(module).__mro__ if "__init__" in vars(kind)]
    accepted = {key for init in inits for key in inspect.signature(init).parameters}
    taken = inspect.signature(cls.__init__).parameters
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in taken.values()):  # it passes on what it gets
        taken = inspect.signature(type(module).__init__).parameters
    arguments = {key: getattr(module, key) for key in taken if key in accepted - {"self"} and hasattr(module, key)}
    if "bias" in arguments:
        arguments["bias"] = module.bias is not None
    for key in ("device", "dtype"):
        arguments.pop(key, None)
    new = cls(**{**arguments, **changes})
    if (sample := next(module.parameters(), None)) is not None:
        new.to(device=sample.device, dtype=sample.dtype)
    for name, parameter in module.named_parameters(recurse=False):
        held = new._parameters.get(name)
        if held is not None and held.shape == parameter.shape:
            new._parameters[name] = parameter
    with torch.no_grad():
        for name, buffer in module.named_buffers(recurse=False):
            held_buffer = new._buffers.get(name)
            if held_buffer is not None and held_buffer.shape == buffer.shape:
                held_buffer.copy_(buffer)
    return new.train(module.training)


def _title(module: nn.Module) -> str:
    text = module.extra_repr()
    return f"{type(module).__name__}({text})"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- names and taps ---


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The layer of `model` at the dotted `name`.

    Raises:
        InputError: there is none; the sentence lists the nearest names.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = [known for known, _ in model.named_modules() if known]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        listed = ", ".join(near) or "none: it has no layers"
        raise InputError(f"The model has no layer {name!r}; the nearest names are {listed}.") from None


@dataclass
class Tapped:
    """What one layer last saw: `input` (its first positional argument), `output`, and how often it ran."""

    input: Any = None
    output: Any = None
    calls: int = 0


@contextlib.contextmanager
def tap(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tapped]]:
    """While the block runs, keep input and output of the layers `names` (dotted) of every forward pass.

    Tensors are the live ones: gradients flow through them. A layer that runs several times in a pass keeps the
    last; `calls` counts.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with tap(net, ["0"]) as taps:
        ...     _ = net(torch.ones(1, 2))
        >>> tuple(taps["0"].output.shape)
        (1, 3)

    Raises:
        InputError: a name that the model does not have; the sentence lists the nearest.
    """
    taps: dict[str, Tapped] = {}

    def keep(record: Tapped) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            record.input = inputs[0] if inputs else None
            record.output = output
            record.calls += 1

        return hook

    with contextlib.ExitStack() as stack:
        for name in names:
            taps[name] = Tapped()
            handle = module_at(model, name).register_forward_hook(keep(taps[name]))
            stack.callback(handle.remove)
        yield taps
