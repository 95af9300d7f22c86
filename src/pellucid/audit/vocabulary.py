"""The parts of a card: a section of texts, facts, tables, figures and image strips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True)
class Text:
    """A paragraph. `tone="bad"` marks a warning, in words and by a rule, not by colour alone."""

    kind: ClassVar[str] = "text"
    wide: ClassVar[bool] = True
    body: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Fact:
    """One number with its name and, as a note, its interval, count or control."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Related numbers, shown side by side."""

    kind: ClassVar[str] = "facts"
    wide: ClassVar[bool] = False
    facts: Sequence[Fact]


@dataclass(frozen=True)
class Table:
    """Rows of text under headers. The first cell of a row is its header; columns in `numeric` are right-aligned."""

    kind: ClassVar[str] = "table"
    wide: ClassVar[bool] = False
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = ()


@dataclass(frozen=True)
class Figure:
    """An `<svg>` from `figures`, its caption, and the numbers behind it, for those who cannot see it.

    A `wide` figure keeps a readable size on a phone and scrolls in its own box.
    """

    kind: ClassVar[str] = "figure"
    svg: str
    caption: str
    numbers: Table | None = None
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """One image, uint8 of shape (H, W), (H, W, 1) or (H, W, 3).

    `caption` and `note` are a word or a number each, shown below it; `alt` is for those who cannot see it. The tones
    "good" and "bad" mark a correct and a wrong prediction.
    """

    image: np.ndarray
    caption: str
    alt: str
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Strip:
    """Pictures in a row under a caption; `empty` is shown where there are none."""

    kind: ClassVar[str] = "strip"
    wide: ClassVar[bool] = False
    caption: str
    pictures: Sequence[Picture]
    empty: str = "None."


Block = Text | Facts | Table | Figure | Strip


@dataclass(frozen=True)
class Section:
    """What one card contributes.

    Attributes:
        title: heading on the page.
        summary: one sentence with the finding, shown at the top of the page.
        blocks: what to show, in order.
        data: JSON-able numbers, written to `audit.json` under the name of the card, where gates find them.
    """

    title: str
    summary: str = ""
    blocks: Sequence[Block] = ()
    data: dict[str, Any] = field(default_factory=dict)
