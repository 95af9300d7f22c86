"""Bind a function to what words, and the files that they name, give to its parameters."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pellucid.commandline.config import read_table, values_for
from pellucid.commandline.flags import Flag, explained, flags_of
from pellucid.commandline.options import Option, check_entry, options_of, where_else
from pellucid.commandline.values import scalar, value_of
from pellucid.commandline.words import Words, missing, place_positional, sort, values_named, wants_help
from pellucid.core.registry import place

# Flags of every command with a parameter `changes`: functions (value, model) -> model that change a loaded network.
CHANGES = {"decomposed": "pellucid.classfilters.commands:decomposed"}


def bound(function: Callable[..., int], program: str, words: Sequence[str]) -> functools.partial[int]:
    """`function`, bound to the values that `words` give to its parameters.

    Flags count more than files for --config, and of two files the later one counts.

    Raises:
        InputError: a word that cannot be used, or one that is missing.
        SystemExit: with status 0, after --help was printed.
    """
    settings, changes = _groups(function)
    own = {flag.name: flag for flag in own_flags(function)}
    files = {name: read_table(name, words) for name in values_named("--config", words)}
    options = options_of(set(own), words, list(files.values()))
    if wants_help(words):
        from pellucid.commandline.help import print_help

        print_help(function, program, own.values(), options)
        raise SystemExit(0)
    flags = own | {option.flag.name: option.flag for group in options.values() for option in group.values()}
    found = sort(words, flags, program, lambda name: where_else(name, set(own)))
    given: dict[str, Any] = {}
    for name, table in files.items():
        given |= values_for(flags, table, name, program)
    for name, text in {**place_positional(found.positional, flags, program), **found.values}.items():
        given[name] = value_of(flags[name].kind, text, flags[name].spelled)
    tables = {key: _table(key, found, given, options.get(key, {}), key in options) for key in _tables(own)}
    absent = {name: flag for name, flag in flags.items() if not _in_table(name, options, tables)}
    missing(absent, given, program)
    values = {name: given.get(name, flag.default) for name, flag in flags.items()} | tables
    positional, keywords = [], {name: _made(kind, values) for name, kind in settings.items()}
    for flag in flags_of(function):
        if flag.positional:
            positional.append(values[flag.name])
        elif flag.name == "changes":
            wanted = {name: change for name, change in changes.items() if values[name] is not None}
            keywords["changes"] = [functools.partial(change, values[name]) for name, change in wanted.items()]
        elif flag.name not in settings:
            keywords[flag.name] = values[flag.name]
    return functools.partial(function, *positional, **keywords)


def call(function: Callable[..., int], program: str, words: Sequence[str]) -> int:
    """Call `function` with the values that `words` give to its parameters."""
    return bound(function, program, words)()


def own_flags(function: Any) -> Iterator[Flag]:
    """The flags of a command: the fields of its settings, its own parameters, and what changes a network."""
    settings, changes = _groups(function)
    helps = explained(function)
    for kind in settings.values():
        for flag in flags_of(kind, positional=False):
            yield dataclasses.replace(flag, help=helps.get(flag.name, flag.help))
    yield from (flag for flag in flags_of(function) if flag.name not in settings and flag.name != "changes")
    for name, change in changes.items():
        yield Flag(name, str | None, None, next(iter(explained(change).values())), False)


def _groups(function: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters that are settings dataclasses, and the functions that may change a network, by name."""
    types = typing.get_type_hints(function)
    settings = {name: kind for name, kind in types.items() if dataclasses.is_dataclass(kind)}
    return settings, {name: place(where) for name, where in CHANGES.items() if "changes" in types}


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def _tables(flags: Mapping[str, Flag]) -> list[str]:
    return [name for name, flag in flags.items() if flag.table]


def _table(
    key: str, words: Words, given: Mapping[str, Any], known: Mapping[str, Option], chosen: bool
) -> dict[str, Any] | None:
    """The options under the flag `key`: from its own value, from --KEY.NAME, and from the options' own flags.

    Only values that the user chose are among them: they enter a run's settings and its name.
    """
    table = dict(given.get(key) or {})
    for name, text in words.entries.get(key, {}).items():
        table[name] = text if chosen else scalar(text, f"--{key.replace('_', '-')}.{name}")
    for name, value in table.items():
        if chosen:
            owner = next(iter(known.values())).owner if known else "what is chosen"
            check_entry(key, owner, name, known)
            table[name] = value_of(known[name].flag.kind, value, f"--{key.replace('_', '-')}.{name}")
    for option in known.values():
        flag = option.flag
        if flag.name in words.values or (flag.name in given and given[flag.name] != flag.default):
            table[option.name] = given[flag.name]
    return table


def _in_table(name: str, options: Mapping[str, Mapping[str, Option]], tables: Mapping[str, Any]) -> bool:
    """Whether the flag `name` is an option whose value was given as an entry of a table."""
    return any(
        option.flag.name == name and option.name in (tables[key] or {})
        for key, group in options.items()
        for option in group.values()
    )
