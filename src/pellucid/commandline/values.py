"""Text, or a value from a file, as a value of a flag's type. Every refusal is a sentence about that flag."""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any, Literal

from pellucid.core.errors import InputError, listed, near, shown
from pellucid.core.ranges import number, plain

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
LONGEST = 4096  # characters of a text; no path is longer
DIGITS = 40  # of a whole number; more are a mistake, and slow to read


def is_switch_word(text: str) -> bool:
    """Whether `text` says yes or no."""
    return text.lower() in _WORDS


def value_of(kind: Any, given: Any, name: str) -> Any:
    """`given` as a value of type `kind`.

    Args:
        kind: the flag's type.
        given: a word of the command line, or a value of a file.
        name: what an error calls it, such as "--lr", or "lr in 'c.yaml'".

    Raises:
        InputError: it is none, or out of range.
    """
    kind, span = plain(kind)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union or isinstance(kind, types.UnionType):
        return _one_of(options, given, name)
    if kind is Any:
        return scalar(given, name) if isinstance(given, str) else given
    if given is None:
        raise InputError(f"{name} has no value: give {what(kind)}.")
    if kind is bool:
        return _switch(given, name)
    if kind in (int, float):
        return number(_number(given, kind, name), kind is int, name, span)
    if origin is Literal:
        if str(given) in options:
            return str(given)
        raise InputError(f"{name} {shown(given)} is unknown: {_choice(given, options)}")
    if origin is list or origin is tuple:
        item = options[0] if options else Any
        several = list(given) if isinstance(given, list | tuple) else [given]
        return (tuple if origin is tuple else list)(value_of(item, one, name) for one in several)
    if origin is dict or kind is dict:
        table = scalar(given, name) if isinstance(given, str) else given
        if not isinstance(table, dict):
            raise InputError(f"{name} {shown(given)} is no table: write {name}.NAME VALUE for each entry.")
        return {str(key): value for key, value in table.items()}
    if kind in (str, Path):
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            raise InputError(f"{name} {shown(given)} is no text: put it in quotes.")
        return kind(_text(str(given), name))
    return given  # of a type that only another package's option has


def what(kind: Any) -> str:
    """What to give for a type, with its article."""
    kind, _ = plain(kind)
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, options))}"
    if typing.get_origin(kind) is typing.Union or isinstance(kind, types.UnionType):
        return listed([what(option) for option in options])
    if typing.get_origin(kind) is list:
        return f"{what(options[0])}, or several"
    names = {int: "a whole number", float: "a number", bool: "yes or no"}
    return names.get(kind, "a value")


def scalar(text: str, name: str) -> Any:
    """The number, truth value, text or flat table that YAML or JSON means by `text`."""
    import yaml

    if len(text) > 10_000 or any(text.count(mark) > 50 for mark in "[{"):
        raise InputError(f"{name} {shown(text)} is too long or too deep: put the values into a file for --config.")
    try:
        value = yaml.safe_load(text) if "*" not in text else text  # which would be a reference
        if isinstance(value, str) and any(c.isdigit() for c in value) and value.isascii():
            value = float(value)  # YAML 1.1 does not take 1e-3 for a number
        json.dumps(value, allow_nan=False)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):  # no value that settings can hold: text
        return text
    return value


def _one_of(options: tuple[Any, ...], given: Any, name: str) -> Any:
    """A value of the first type that `given` is one of."""
    rest = [option for option in options if option is not type(None)]
    if len(rest) < len(options) and given in (None, "null", "None"):
        return None
    if len(rest) == 1:
        return value_of(rest[0], given, name)
    problem: InputError | None = None
    # Text last: anything could be that. A word is True or False only where it cannot be text.
    rest.sort(key=lambda option: (option is str, option is bool and isinstance(given, str) and str in rest))
    for option in rest:
        if option is bool and isinstance(given, str) and str in rest:
            continue
        try:
            return value_of(option, given, name)
        except InputError as error:
            problem = problem or error
    choices = [one for option in rest if typing.get_origin(option) is Literal for one in typing.get_args(option)]
    if choices and isinstance(given, str) and not _is_number(given):
        also = [what(option) for option in rest if typing.get_origin(option) is not Literal]
        raise InputError(f"{name} {shown(given)} is unknown: {_choice(given, choices, also)}")
    if choices and _is_number(given):  # then it is the number that is wrong
        return value_of(next(option for option in rest if typing.get_origin(option) is not Literal), given, name)
    raise problem or InputError(f"{name} {shown(given)} cannot be used.")


def _text(given: str, name: str) -> str:
    """`given`, if it may be a name or a path."""
    if not given.strip():
        raise InputError(f"{name} is empty: give a value.")
    if len(given) > LONGEST:
        raise InputError(f"{name} {shown(given)} has {len(given)} characters: give at most {LONGEST}.")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in given):
        raise InputError(f"{name} {shown(given)} contains control characters: leave them out.")
    return given


def _choice(given: Any, options: typing.Iterable[Any], also: typing.Sequence[str] = ()) -> str:
    names = [str(option) for option in options]
    hint = near(str(given), names, limit=0)
    choices = listed([*names, *also])
    return f"{hint} The choices are {choices}." if hint else f"choose {choices}."


def _switch(given: Any, name: str) -> bool:
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and is_switch_word(given):
        return _WORDS[given.lower()]
    raise InputError(f"{name} {shown(given)} is neither yes nor no: give one of them.")


def _number(given: Any, kind: type, name: str) -> Any:
    """`given` itself, or the number that it spells."""
    if not isinstance(given, str):
        return given
    if kind is int and given.lstrip("+-").isdecimal() and given.isascii() and len(given) <= DIGITS:
        return int(given)
    if kind is float and _is_number(given):
        return float(given)
    wanted = "whole number" if kind is int else "number"
    raise InputError(f"{name} {shown(given)} is not a {wanted}: give one.")


def _is_number(given: Any) -> bool:
    if not isinstance(given, str):
        return isinstance(given, int | float) and not isinstance(given, bool)
    try:
        float(given)
    except ValueError:
        return False
    return given.isascii() and len(given) <= 400
