"""Which word of a command line is a flag, which its value, and which a positional argument."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.commandline.flags import Flag
from pellucid.commandline.values import is_switch_word, what
from pellucid.core.errors import InputError, near, plain_text, shown
from pellucid.core.ranges import without_none

SPELLINGS = {"--arch": "--model"}  # other names of a flag
_ENTRY = re.compile(r"[^\W\d][\w-]*=")  # NAME=VALUE
_NUMBER = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)


@dataclass
class Words:
    """A command line, sorted; values are still text.

    Attributes:
        positional: the words that belong to no flag.
        values: for each flag one word, a list of words if it takes several, or True or False for a switch.
        entries: for each flag of named values, as in --options.block 16, the text of each.
    """

    positional: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    entries: dict[str, dict[str, str]] = field(default_factory=dict)


def is_flag(word: str) -> bool:
    """Whether a word begins with a dash and is no number; a name with a space is never a flag."""
    return len(word) > 1 and word[0] == "-" and not _NUMBER.match(word) and " " not in word.partition("=")[0]


def wants_help(words: Sequence[str]) -> bool:
    """Whether the words ask for help, whatever else they say."""
    return any(word in ("-h", "--help") for word in _before_dashes(words))


def spelled(word: str) -> tuple[str, str | None]:
    """The flag that a word names, as it is spelled here, and the value after its "=", if any."""
    name, assigned, value = word.partition("=")
    entry, dot, key = name.partition(".")
    entry = entry.replace("_", "-")
    return SPELLINGS.get(entry, entry) + dot + key, value if assigned else None


def values_named(name: str, words: Sequence[str]) -> list[str]:
    """The values that the flag `name`, with its dashes, has in words that are not sorted yet."""
    found, words = [], _before_dashes(words)
    for place, word in enumerate(words):
        flag, value = spelled(word) if is_flag(word) else ("", None)
        after = words[place + 1] if place + 1 < len(words) else None
        if flag == name and value is None and after is not None and not is_flag(after):
            value = after
        if flag == name and value is not None:
            found.append(value)
    return found


def sort(
    words: Sequence[str], flags: Mapping[str, Flag], program: str, elsewhere: Callable[[str], str] = lambda name: ""
) -> Words:
    """Sort the words of a command line by the flags, by name, of the command.

    Args:
        words: without the command.
        flags: all that it takes, positional ones included.
        program: such as "pellucid train", for errors.
        elsewhere: what to say of a flag that is unknown here; "" if it is unknown everywhere.

    Raises:
        InputError: an unknown flag, or one without its value.
    """
    found, place = Words(), 0
    named = {flag.spelled: flag for flag in flags.values() if not flag.positional}
    places = len(named) < len(flags)  # whether a word after a switch may be a positional argument
    while place < len(words):
        word = words[place]
        place += 1
        if word == "--":
            found.positional += words[place:]
            break
        if not is_flag(word):
            found.positional.append(word)
            continue
        name, value = spelled(word)
        rest: list[str] = []
        while value is None and place + len(rest) < len(words) and not is_flag(words[place + len(rest)]):
            rest.append(words[place + len(rest)])
        owner, dot, key = name.partition(".")
        if name == "--config":
            _single(name, value, rest, "a YAML file, or the name of a recipe")  # read before; see `values_named`
            place += value is None
        elif dot and owner in named and named[owner].table and key:
            entries = found.entries.setdefault(named[owner].name, {})
            entries[key.replace("-", "_")] = _single(plain_text(name, 80), value, rest, "a value")
            place += value is None
        elif name in named:
            flag = named[name]
            if flag.switch or flag.value_may_be_left_out:
                taken = value if value is not None else rest[0] if rest else None
                if flag.switch and value is None and taken is not None and places and not is_switch_word(taken):
                    taken = None
                place += value is None and taken is not None
                found.values[flag.name] = True if taken is None else taken
            elif flag.table and _ENTRY.match(value if value is not None else rest[0] if rest else ""):
                several = [value] if value is not None else list(itertools.takewhile(_ENTRY.match, rest))
                entries = found.entries.setdefault(flag.name, {})
                entries |= {key.replace("-", "_"): text for key, _, text in (one.partition("=") for one in several)}
                place += 0 if value is not None else len(several)
            elif flag.several:
                several = [value] if value is not None else rest
                if not several:
                    raise InputError(f"{name} needs a value: give {_wanted(flag)}.")
                found.values.setdefault(flag.name, []).extend(several)
                place += len(rest)
            else:
                found.values[flag.name] = _single(name, value, rest, _wanted(flag))
                place += value is None
        elif (negated := "--" + name.removeprefix("--no-")) in named and named[negated].switch:
            if value is not None:
                raise InputError(f"{name} takes no value: leave out {shown('=' + value)}.")
            found.values[named[negated].name] = False
        else:
            hint = _near_flag(name, named, 0.8) or elsewhere(name) or _near_flag(name, named)
            hint = hint or f"{program} --help lists its flags."
            raise InputError(f"{program} has no flag {plain_text(name, 80)}: {hint}")
    return found


def place_positional(words: Sequence[str], flags: Mapping[str, Flag], program: str) -> dict[str, str]:
    """Which positional argument each word is.

    Raises:
        InputError: more words than arguments.
    """
    order = [flag for flag in flags.values() if flag.positional]
    if len(words) > len(order):
        extra = words[len(order)]
        hint = _near_flag(f"--{spelled(extra)[0]}", {flag.spelled: flag for flag in flags.values()})
        takes = " ".join(flag.name.upper() for flag in order)
        takes = f"takes only {takes} without a flag" if takes else "takes no argument without a flag"
        raise InputError(
            f"{program} {takes}, and {shown(extra)} is one too many: {hint or f'{program} --help lists its flags.'}"
        )
    return {flag.name: word for flag, word in zip(order, words, strict=False)}


def missing(flags: Mapping[str, Flag], given: Mapping[str, Any], program: str) -> None:
    """Refuse a command line without what has no default.

    Raises:
        InputError: something is missing.
    """
    absent = [flag for flag in flags.values() if flag.required and flag.name not in given]
    if absent:
        names = [flag.name if flag.positional else flag.spelled for flag in absent]
        all_of_them = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        needed = [flag for flag in flags.values() if flag.required]
        usage = [flag.name.upper() if flag.positional else f"{flag.spelled} ..." for flag in needed]
        raise InputError(f"{program} needs {all_of_them}: give {program} {' '.join(usage)}; --help explains them.")


def _before_dashes(words: Sequence[str]) -> Sequence[str]:
    """The words before "--", after which nothing is a flag."""
    return words[: words.index("--")] if "--" in words else words


def _single(name: str, value: str | None, rest: Sequence[str], wanted: str) -> str:
    if value is None and not rest:
        raise InputError(f"{name} needs a value: give {wanted}.")
    return value if value is not None else rest[0]


def _wanted(flag: Flag) -> str:
    return what(without_none(flag.kind)[0])


def _near_flag(name: str, named: Mapping[str, Flag], least: float = 0.6) -> str:
    bare = name.lstrip("-").replace("_", "-")
    known = {one[2:]: one for one in [*named, "--config", "--help"] if one.startswith("--")}
    if bare.startswith("no-"):
        known |= {
            f"no-{one}": f"--no-{one}" for one, flag in list(known.items()) if flag in named and named[flag].switch
        }
    hint = near(bare, known, limit=0, least=least) if bare else ""
    return re.sub(r"'([^' ]+)'", r"--\1", hint)
