"""Which of a network's classes each class of a data set is: by name, by number, or by a list of the network's classes.

A list has one class per line, in the order of the network's outputs. A line is the class's name; or the name of its
folder, white space, and a name to read, such as `n01440764 tench`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.core.errors import InputError, near, shown
from pellucid.core.files.structured import read_bytes

IMAGENET = Path(__file__).with_name("imagenet.txt")
UNKNOWN = "The classes of the model are not recorded"
LONGEST = 4 * 2**20  # bytes of a list of classes


@dataclass(frozen=True)
class Matched:
    """What `match` found.

    Attributes:
        classes: names of all of the network's classes, in the order of its outputs.
        places: for each class of the data, its position among them.
        sentence: what was assumed, for a reader; empty where nothing was.
    """

    classes: tuple[str, ...]
    places: tuple[int, ...]
    sentence: str


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The lines of a list of classes, without empty ones at its end.

    Raises:
        InputError: no readable text, an empty line between others, a line that occurs twice, or fewer than two.
    """
    name = shown(os.fspath(path), 300)
    try:
        text = read_bytes(path, LONGEST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{name} is not a list of classes in UTF-8: write one class per line.") from None
    return checked((" ".join(line.split()) for line in text.rstrip().splitlines()), name)


def checked(lines: Iterable[str], where: str) -> tuple[str, ...]:
    """`lines` as a list of classes.

    Raises:
        InputError: an empty line, a line that occurs twice, or fewer than two; `where` is what holds them.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise InputError(f"{where} has an empty line {number}: give one class per line, in the model's order.")
        if line in found:
            raise InputError(f"{where} names {shown(line)} in lines {found[line]} and {number}: name each class once.")
        found[line] = number
    if len(found) < 2:
        raise InputError(f"{where} names {len(found)} classes: give all of the model's, one per line, in its order.")
    return tuple(found)


def full_names(classes: Sequence[str]) -> Sequence[str]:
    """ImageNet's list, with the names of its folders, if `classes` are its names to read; else `classes`."""
    lines = read_classes(IMAGENET) if len(classes) == 1000 else ()
    return lines if tuple(classes) == tuple(line.partition(" ")[2] for line in lines) else classes


def match(
    found: Sequence[str],
    outputs: int,
    *,
    known: Sequence[str] | None = None,
    listed: Sequence[str] | None = None,
    in_order: bool = False,
    data: str = "the data",
) -> Matched:
    """Find the classes of a data set among those of a network.

    Names are compared as they are, or else without regard to case and with an underscore for a space. Where no name is
    known, a network of 1000 outputs is taken for one of ImageNet's 1000 classes.

    Args:
        found: names of the data's classes, such as those of its folders.
        outputs: number of the network's classes.
        known: their names, if the network records them.
        listed: their names as in `read_classes`; these count more.
        in_order: where neither is given and there are as many classes as outputs, take them in their order, even if
            they are numbers.
        data: the data's name for messages.

    Raises:
        InputError: a class that the network does not have, two that are the same one, or names that say nothing.
    """
    names = listed if listed is not None else known
    if names is not None and len(names) != outputs:
        whose = "the list of classes" if listed is not None else "it"
        raise InputError(f"The model has {outputs} outputs and {whose} names {len(names)} classes: name one for each.")
    told = "" if names is not None else UNKNOWN
    if names is None and outputs == 1000 and (_numbers(found) or _of_imagenet(found)):
        names, told = read_classes(IMAGENET), f"{UNKNOWN}: they are taken for ImageNet's 1000 (--classes FILE)"
    columns = [] if names is None else _columns(names) if names is not known else [_Column(names)]
    for number, column in enumerate(columns):
        places = column.places(found)
        if places is not None:
            classes = columns[0].names if number == 0 else _readable(columns)
            _check_apart(found, places, classes, data)
            same = not told and classes == tuple(found)
            return Matched(classes, places, "" if same else _sentence(told, "name", found, outputs))
    if names is None and in_order and len(found) == outputs:
        return _sorted(found)
    if _numbers(found):
        classes = tuple(map(str, range(outputs))) if names is None else _readable(columns, cut=_identifier)
        places = _by_number(found, outputs, names, data)
        _check_apart(found, places, classes, data)
        how = "number" if names is not None and _numbers(names) else "number, that of the model's output from 0"
        return Matched(classes, places, _sentence(told, how, found, outputs))
    if names is not None:
        raise InputError(_stranger(found, columns, data))
    if len(found) == outputs:
        return _sorted(found)
    raise InputError(
        f"The model has {outputs} classes, whose names it does not record, and {data} has {len(found)} "
        f"({', '.join(shown(name, 40) for name in found[:3])}{', ...' if len(found) > 3 else ''}): list the model's "
        "classes in its order with --classes FILE, or call each folder by the number of its class, from 0."
    )


def _of_imagenet(found: Sequence[str]) -> bool:
    """Whether all of these are classes of ImageNet; or some, where a network of 1000 has others than these."""
    columns = _columns(read_classes(IMAGENET))
    if any(column.places(found) is not None for column in columns):
        return True
    return len(found) < 1000 and any(column.place(name) is not None for name in found for column in columns)


class _Column:
    """The names of a network's classes of one kind, and where they are."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.distinct = len({*names}) == len(names)
        self._exact = {name: place for place, name in enumerate(names)}
        alike = Counter(map(_plain, names))
        self._loose = {_plain(name): place for place, name in enumerate(names) if alike[_plain(name)] == 1}

    def place(self, name: str) -> int | None:
        """The place of a name, written as here, or else in another way that fits one name only."""
        return self._exact.get(name, self._loose.get(_plain(name)))

    def places(self, found: Sequence[str]) -> tuple[int, ...] | None:
        """The places of all these; None if one is not there, or two classes have one name."""
        places = [self.place(name) for name in found]
        return tuple(place for place in places if place is not None) if self.distinct and None not in places else None


def _columns(names: Sequence[str]) -> list[_Column]:
    """Whole lines, their first words, and what follows these."""
    parts = [name.partition(" ") for name in names]
    if not all(rest for _, _, rest in parts):
        return [_Column(names)]
    return [_Column(names), _Column([first for first, _, _ in parts]), _Column([rest for _, _, rest in parts])]


def _identifier(name: str) -> bool:
    return any(character.isdigit() for character in name)


def _readable(columns: Sequence[_Column], cut: Callable[[str], bool] = lambda name: True) -> tuple[str, ...]:
    """What follows the first words, where all of these may be cut off and the rest is different everywhere."""
    if len(columns) < 3 or not columns[2].distinct or not all(map(cut, columns[1].names)):
        return columns[0].names
    return columns[2].names


def _sentence(told: str, how: str, found: Sequence[str], outputs: int) -> str:
    some = f"; {len(found)} of {outputs} have images" if len(found) < outputs else ""
    return f"{told}{'. ' if told else ''}Classes are matched by {how}{some}."


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _numbers(found: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() and len(name) < 10 for name in found)


def _by_number(found: Sequence[str], outputs: int, names: Sequence[str] | None, data: str) -> tuple[int, ...]:
    """The places of numbers: among names that are numbers themselves, or else the numbers."""
    places = {number: number for number in range(outputs)}
    if names is not None and _numbers(names):
        places = {int(name): place for place, name in enumerate(names)}
    for name in found:
        if int(name) not in places:
            raise InputError(
                f"{data} has the class {shown(name)}, and the model's {outputs} classes have the numbers "
                f"{min(places)} to {max(places)}: call each folder by the number of its class, or list the model's "
                "classes in its order with --classes FILE."
            )
    return tuple(places[int(name)] for name in found)


def _sorted(found: Sequence[str]) -> Matched:
    told = f"{UNKNOWN}: they are taken for the {len(found)} of the data, in their order (--classes FILE)."
    return Matched(tuple(found), tuple(range(len(found))), told)


def _check_apart(found: Sequence[str], places: Sequence[int], classes: Sequence[str], data: str) -> None:
    """Refuse two names for one class, such as 7 and 007."""
    seen: dict[int, str] = {}
    for name, place in zip(found, places, strict=True):
        if place in seen:
            both = f"{shown(seen[place])} and {shown(name)}"
            raise InputError(f"{data} has {both}, which are both the class {shown(classes[place])}: join them.")
        seen[place] = name


def _stranger(found: Sequence[str], columns: Sequence[_Column], data: str) -> str:
    """A sentence about the first class that is not among the network's, by the names that most of them have."""
    best = max(columns, key=lambda column: sum(column.place(name) is not None for name in found))
    name = next((name for name in found if best.place(name) is None), found[0])
    hint = near(name, [one for column in columns for one in column.names])
    return (
        f"{data} has the class {shown(name)}, which is none of the model's {len(columns[0].names)} classes: "
        f"{hint or 'rename its folder, or list the classes of the model in its order with --classes FILE.'}"
    )
