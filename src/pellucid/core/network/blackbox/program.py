"""A program of tensor operators, read from the JSON of `torch.export` and run one operator after the other.

torch's own loader unpickles, imports functions by dotted names and evaluates text as Python. Here nothing in the file
is more than an operator of a fixed list, a number, or the name of a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.core.errors import InputError, shown
from pellucid.core.network.blackbox.archive import dtype_of
from pellucid.core.network.blackbox.operators import operator_named

_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}


@dataclass(frozen=True)
class Ref:
    """A value by its name."""

    name: str


class _Device:
    """Whatever device the program is run on."""


_HERE = _Device()


@dataclass(frozen=True)
class Step:
    """One call: `results` get their values from `call(*positional, **named)`; `done` are then needed no longer."""

    call: Callable[..., Any]
    target: str
    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    results: tuple[Any, ...]
    done: tuple[str, ...] = ()


def steps_of(graph: Mapping[str, Any], kept: set[str], what: str) -> tuple[Step, ...]:
    """The calls of a graph, in order.

    Args:
        graph: as parsed from JSON.
        kept: names of values that outlive the program: weights and the result.
        what: begins the sentence of every error.

    Raises:
        InputError: an operator that is not allowed, an argument of another kind, or a name that is not known yet.
    """
    steps = []
    try:
        for node in graph["nodes"]:
            call = operator_named(str(node["target"]), what)
            if call is None:
                continue
            positional: list[Any] = []
            named: dict[str, Any] = {}
            for item in node["inputs"]:
                value = _argument(item["arg"], what)
                if item.get("kind") == 2 or named:
                    named[str(item["name"])] = value
                else:
                    positional.append(value)
            _check_mode(call, positional, named, what)
            results = tuple(_argument(item, what) for item in node["outputs"])
            steps.append(Step(call, str(node["target"]), tuple(positional), named, results))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{what} is damaged: one of its operations cannot be read.") from error
    return _freed(steps, kept)


def _check_mode(call: Callable[..., Any], positional: Sequence[Any], named: Mapping[str, Any], what: str) -> None:
    """Refuse dropout and batch norm as in training: the network would predict something else every time."""
    schema = getattr(call, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    given = {**dict(zip(names, positional, strict=False)), **named}
    if given.get("train") is True or (given.get("training") is True and given.get("running_mean") is not None):
        raise InputError(f"{what} was exported in training mode: export model.eval().")


def _freed(steps: Sequence[Step], kept: set[str]) -> tuple[Step, ...]:
    """The same steps, each with the values that none after it reads."""
    seen, freed = set(kept), []
    for step in reversed(steps):
        names = {ref.name for ref in _refs((step.positional, tuple(step.named.values()), step.results))}
        freed.append(Step(step.call, step.target, step.positional, step.named, step.results, tuple(names - seen)))
        seen |= names
    return tuple(reversed(freed))


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _refs(one)


def _argument(table: Mapping[str, Any], what: str) -> Any:
    """The value of an argument: a constant, a `Ref`, or a list of them."""
    if len(table) != 1:
        raise ValueError("an argument of two kinds")
    kind, value = next(iter(table.items()))
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return Ref(str(value["name"]))
    if kind == "as_tensors":
        return [Ref(str(one["name"])) for one in value]
    if kind in ("as_optional_tensors", "as_sym_ints", "as_sym_bools", "as_sym_floats"):
        return [_argument(one, what) for one in value]
    if kind in ("as_optional_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"):
        return _argument(value, what)
    if kind == "as_name":
        return Ref(str(value))
    if kind == "as_int":
        return int(value)
    if kind == "as_float":
        return float(value)
    if kind == "as_bool":
        return bool(value)
    if kind == "as_string":
        return str(value)
    if kind in ("as_ints", "as_floats", "as_bools"):
        of = {"as_ints": int, "as_floats": float, "as_bools": bool}[kind]
        return [of(one) for one in value]
    if kind == "as_scalar_type":
        return dtype_of(value, what)
    if kind == "as_memory_format":
        return _FORMATS[value]
    if kind == "as_layout" and value == 7:
        return torch.strided
    if kind == "as_device":
        return _HERE
    raise InputError(
        f"{what} uses an argument of the kind {shown(kind, 40)}, which is not read here: export it to ONNX."
    )


def run(
    steps: Sequence[Step],
    values: dict[str, Any],
    device: torch.device,
    watch: Callable[[Tensor, Step], None] | None = None,
) -> None:
    """Run the steps on the named `values`, which get the results.

    Args:
        steps: from `steps_of`.
        values: weights and images by name.
        device: where the program's own tensors are made.
        watch: called with every tensor that is computed.

    Raises:
        KeyError: a value that was not computed before.
        Exception: whatever an operator raises.
    """

    def value(item: Any) -> Any:
        if isinstance(item, Ref):
            return values[item.name]
        if isinstance(item, list):
            return [value(one) for one in item]
        return device if item is _HERE else item

    for step in steps:
        found = step.call(*map(value, step.positional), **{key: value(one) for key, one in step.named.items()})
        whole = (found,) if len(step.results) == 1 else tuple(found)
        for name, one in _named(step.results, whole):
            values[name] = one
            if watch is not None and isinstance(one, Tensor):
                watch(one, step)
        for name in step.done:
            values.pop(name, None)


def _named(results: Sequence[Any], found: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    if len(results) != len(found):
        raise ValueError(f"{len(results)} results are named of {len(found)}")
    for name, one in zip(results, found, strict=True):
        if isinstance(name, Ref):
            yield name.name, one
        elif isinstance(name, list):
            yield from _named(name, tuple(one))


def limited(most: int, what: str) -> Callable[[Tensor, Step], None]:
    """A watch that refuses tensors of more than `most` numbers; `what` begins its sentence."""

    def watch(tensor: Tensor, step: Step) -> None:
        if math.prod(tensor.shape) > most:
            raise InputError(
                f"{what} computes a tensor of shape {shown(list(tensor.shape), 60)}, more than is reasonable: it is "
                "damaged."
            )

    return watch
