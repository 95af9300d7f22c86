"""The ranges of numeric settings and flags, written into their types: `epochs: Count = 20`.

The command line checks every flag against its type, and settings check themselves when they are made, so that a number
out of range is refused before anything is computed. NaN and infinity are out of every range.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from pellucid.core.errors import InputError, shown

LARGE = 2**31 - 1  # of counts: the largest that every library below takes


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; without an end if it `excludes` that."""

    low: float = -math.inf
    high: float = math.inf
    excludes: tuple[float, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether the number is finite and in range."""
        finite = isinstance(value, int) or math.isfinite(value)  # of an int beyond any float, that would be an error
        return finite and self.low <= value <= self.high and value not in self.excludes

    def wanted(self, value: float) -> str:
        """What to give in place of `value`, which is out of range: "at least 1"."""
        least = "a number above" if self.low in self.excludes else "at least"
        most = "below" if self.high in self.excludes else "at most"
        low = f"{least} {self.low:g}" if self.low > -math.inf and not value > self.high else ""
        high = f"{most} {self.high:.15g}" if self.high < (LARGE if low else math.inf) else ""
        return " and ".join(filter(None, [low, high])) or "a finite number"


Count = Annotated[int, Range(1, LARGE)]  # of images, epochs, processes, ...
Limit = Annotated[int, Range(0, LARGE)]  # where 0 means none or all
Number = Annotated[int, Range(0, 2**53)]  # of steps and images so far, in files
Seed = Annotated[int, Range(0, 2**63 - 1)]
Side = Annotated[int, Range(4, 16384)]  # of an image, in pixels
Channels = Annotated[int, Range(1, 4096)]
Classes = Annotated[int, Range(1, 10**6)]
Positive = Annotated[float, Range(0, excludes=(0,))]
NotNegative = Annotated[float, Range(0)]
Part = Annotated[float, Range(0, 1)]  # a fraction, all included
Rate = Annotated[float, Range(0, 1, excludes=(1,))]  # a fraction, but not all
Finite = Annotated[float, Range()]


def number(value: Any, whole: bool, name: str, span: Range | None = None) -> Any:
    """`value`, if it is a number in range.

    Args:
        value: what was given.
        whole: whether only whole numbers will do.
        name: what an error calls it, such as "--epochs".
        span: its range; None for every finite number.

    Raises:
        InputError: something else.
    """
    kind = numbers.Integral if whole else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
        what = "whole number" if whole else "number"
        raise InputError(f"{name} {shown(value)} is not a {what}: give one.")
    span = span or Range()
    if not span.holds(typing.cast(float, value)):
        raise InputError(f"{name} {shown(value)} is out of range: give {span.wanted(typing.cast(float, value))}.")
    return value


def check_ranges(settings: Any) -> None:
    """Check every numeric field of a settings dataclass against its type.

    Raises:
        InputError: a field that is not a number, or out of range.
    """
    kind_of: Any = type(settings)
    for name, (kind, span, several, optional) in _numeric(kind_of).items():
        value = getattr(settings, name)
        if value is None and optional:
            continue
        flag = f"--{name.replace('_', '-')}"
        for one in value if several and isinstance(value, list | tuple) else [value]:
            number(one, kind is int, flag, span)


@functools.cache
def _numeric(kind: Any) -> dict[str, tuple[type, Range | None, bool, bool]]:
    """The fields of numbers: int or float, range, whether a list of them, whether None will do."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        base, optional = without_none(hints[field.name])
        several = typing.get_origin(base) is list
        base, span = plain(typing.get_args(base)[0] if several else base)
        if base in (int, float):
            found[field.name] = (base, span, several, optional)
    return found


def without_none(kind: Any) -> tuple[Any, bool]:
    """`T | None` as (T, True), anything else as (kind, False)."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Annotated or type(None) not in options:
        return kind, False
    rest = tuple(option for option in options if option is not type(None))
    return typing.Union[rest], True  # noqa: UP007 (of a tuple)


def plain(kind: Any) -> tuple[Any, Range | None]:
    """`Annotated[T, Range(...)]` as (T, the range), anything else as (kind, None)."""
    if typing.get_origin(kind) is not Annotated:
        return kind, None
    base, *notes = typing.get_args(kind)
    return base, next((note for note in notes if isinstance(note, Range)), None)
