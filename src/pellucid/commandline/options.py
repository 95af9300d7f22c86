"""Flags for the options of what a command line chooses: the layers, the objective, ..."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pellucid.commandline.flags import Flag, flags_of
from pellucid.commandline.words import values_named
from pellucid.core.errors import InputError, near, shown
from pellucid.core.registry import Registry, place


@dataclasses.dataclass(frozen=True)
class Choice:
    """A flag that names something with options of its own: the flag that holds them, and the registry of names."""

    options: str
    known: str
    none: str  # the name of what has no options


# A command with one of these flags, and the flag for its options, also takes each option of what is named as a flag.
CHOICES = {
    "layers": Choice("options", "pellucid.core.network.rules:RULES", "plain"),
    "objective": Choice("objective_options", "pellucid.core.train.objective:OBJECTIVES", "cross-entropy"),
}


@dataclasses.dataclass(frozen=True)
class Option:
    """The option `name` of what is called `owner`, its own flag, and the name `key` of the flag for all options."""

    owner: str
    key: str
    name: str
    flag: Flag


def options_of(
    taken: set[str], words: Sequence[str], configs: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Option]]:
    """Flags for the options of the layer rule, objective, ... that words, or files of values, select.

    They are by the name of the flag that holds all options, and then by their own name. An option with the name of
    another flag is prefixed with its owner's: --deconv-momentum. Of --layers csc+deconv, an option that both have is
    prefixed with the name of each: --csc-published, --deconv-published.

    Raises:
        InputError: an unknown name of layers, objective, ...
    """
    found: dict[str, dict[str, Option]] = {}
    taken = taken | {"config", "help"}
    for key, choice in CHOICES.items():
        if not {key, choice.options} <= taken:
            continue
        owner = _chosen(key, words, configs)
        if owner is None or owner == choice.none:
            continue
        options = {}
        for part, flag in _flags(place(choice.known), owner):
            name = f"{part}_{flag.name}".replace("-", "_") if flag.name in taken else flag.name
            options[flag.name] = Option(
                owner, choice.options, flag.name, dataclasses.replace(flag, name=name, positional=False)
            )
        found[choice.options] = options
        taken = taken | {option.flag.name for option in options.values()}
    return found


def _flags(known: Registry[Any], owner: str) -> Iterator[tuple[str, Flag]]:
    """The options of what is called `owner`, each with the name of the rule that has it, which may be a part of it."""
    factory = known[owner]
    for name, (part, own) in getattr(factory, "options", {}).items():  # a combination of several rules
        flag = next(flag for flag in flags_of(known[part]) if flag.name == own)
        yield part, dataclasses.replace(flag, name=name)
    if not hasattr(factory, "options"):
        for flag in flags_of(factory):
            yield owner, flag


def check_entry(key: str, owner: str, name: str, known: Mapping[str, Option]) -> None:
    """Refuse an option that its owner does not have.

    Raises:
        InputError: it has no such option.
    """
    if name not in known:
        hint = near(name, known) or (f"its options are {', '.join(known)}." if known else "it has none.")
        raise InputError(f"{owner} has no option {shown(name)} for --{key.replace('_', '-')}: {hint}")


def where_else(name: str, taken: set[str]) -> str:
    """What to add so that the flag `name` exists: the layers or the objective that have it as an option."""
    bare = name.removeprefix("--").removeprefix("no-").replace("-", "_")
    for key, choice in CHOICES.items():
        if {key, choice.options} <= taken:
            known = place(choice.known)
            owners = [owner for owner in known.names() if bare in {flag.name for flag in flags_of(known[owner])}]
            if owners:
                return f"it is an option of --{key} {' or '.join(owners)}, so add that."
    return ""


def _chosen(key: str, words: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> str | None:
    """The name that the words give to the flag `key`, or else the last file that names one."""
    if named := values_named(f"--{key.replace('_', '-')}", words):
        return named[-1].strip() or None  # an empty value is refused where values are checked
    for content in reversed(configs):
        if isinstance(content.get(key), str):
            return content[key]
    return None
