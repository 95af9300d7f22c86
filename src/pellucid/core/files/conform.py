"""Compare a value from an untrusted file with the type that the code expects, before anything uses it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pellucid.core.errors import InputError, shown


def conform(value: Any, kind: Any, what: str, where: str = "") -> Any:
    """`value`, if it is of the type `kind`.

    A whole number passes for a float and becomes one. Tables may hold more than what is asked for.

    Args:
        value: as parsed from JSON or YAML.
        kind: a plain type, `list[T]`, `tuple[T, ...]`, `tuple[S, T]`, `dict[str, T]`, a union, a `Literal`, an
            `Annotated` number with a `Range`, a dataclass (whose fields a table must have where they have no default;
            the result is a table), or a mapping from names to such types (each required unless its type
            admits None, which it then is).
        what: begins the error message, such as "'x.json' is damaged".
        where: the place in the file, such as "data.classes".

    Raises:
        InputError: it is not; the message names the place, the value and what it should be.
    """
    place = f" at {shown(where, 60)}" if where else ""
    if isinstance(kind, Mapping) or dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{what}: expected a table{place}, found {_found(value, where)}.")
        kinds, optional = _fields(kind)
        found = dict(value)
        for name, of in kinds.items():
            inner = f"{where}.{name}" if where else name
            if name in value:
                found[name] = conform(value[name], of, what, inner)
            elif name not in optional:
                raise InputError(f"{what}: {shown(inner, 60)} is missing.")
            elif isinstance(kind, Mapping):
                found[name] = None
        return found
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        number = conform(value, inside[0], what, where)
        if not inside[1].holds(number):
            wanted = inside[1].wanted(number)
            raise InputError(f"{what}: {shown(number, 40)}{place} is out of range: it should be {wanted}.")
        return number
    if origin in (typing.Union, types.UnionType):
        problems = []
        for one in inside:
            try:
                return conform(value, one, what, where)
            except InputError as error:
                problems.append(error)
        raise problems[0]
    if origin is Literal:
        if not any(value == one and type(value) is type(one) for one in inside):
            raise InputError(f"{what}: {shown(value, 40)}{place} is not one of {', '.join(map(str, inside))}.")
        return value
    if origin is tuple and isinstance(value, list) and inside[-1] is not Ellipsis:
        if len(value) != len(inside):
            raise InputError(f"{what}: expected a list of {len(inside)}{place}, found {shown(value, 40)}.")
        return [conform(one, of, what, f"{where}[{i}]") for i, (one, of) in enumerate(zip(value, inside, strict=True))]
    if origin in (list, tuple) and isinstance(value, list):
        return [conform(one, inside[0], what, f"{where}[{index}]") for index, one in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: conform(one, inside[1], what, f"{where}.{key}" if where else key) for key, one in value.items()}
    plain = {list: list, tuple: list, dict: dict}.get(origin or kind, kind)
    if kind is Any:
        return value
    if plain is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000:
        return float(value)
    if plain is int and isinstance(value, int) and abs(value) >= 2**63:
        raise InputError(f"{what}: {shown(value, 40)}{place} is out of range.")
    if kind is None or plain is type(None):
        good = value is None
    else:
        good = isinstance(value, plain) and not (isinstance(value, bool) and plain is not bool)
    if not good:
        raise InputError(f"{what}: expected {_NAMES.get(plain, 'null')}{place}, found {_found(value, where)}.")
    return value


def _found(value: Any, where: str) -> str:
    """A value for a message; of a whole file, which may be any, only the type."""
    return shown(value, 40) if where else _NAMES.get(type(value), "null")


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "a table"}


def _fields(kind: Any) -> tuple[dict[str, Any], set[str]]:
    """Types by name, and the names that may be missing."""
    if isinstance(kind, Mapping):
        return dict(kind), {name for name, of in kind.items() if type(None) in typing.get_args(of)}
    hints = typing.get_type_hints(kind, include_extras=True)
    missing = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    optional = {f.name for f in fields if f.default is not missing or f.default_factory is not missing}
    return {f.name: hints[f.name] for f in fields}, optional
