"""What a card is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True)
class Text:
    """A paragraph. `tone="bad"` marks a warning (in words and by a rule, not by colour alone)."""

    kind: ClassVar[str] = "text"
    wide: ClassVar[bool] = True
    body: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Fact:
    """One number with its name and what qualifies it: an interval, a count, a control."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Numbers that belong together, shown side by side."""

    kind: ClassVar[str] = "facts"
    wide: ClassVar[bool] = False
    facts: Sequence[Fact]


@dataclass(frozen=True)
class Table:
    """Rows of text under headers. The first cell of a row is its header; columns named in `numeric` align right."""

    kind: ClassVar[str] = "table"
    wide: ClassVar[bool] = False
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = ()


@dataclass(frozen=True)
class Figure:
    """A drawing from `figures.draw`, its caption, and the numbers behind it for those who cannot see it.

    `wide` figures keep a readable size on a phone and scroll inside their own box.
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
    "good" and "bad" mark a right and a wrong answer.
    """

    image: np.ndarray
    caption: str
    alt: str
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Strip:
    """Pictures in a row under a caption; `empty` is what to say when there are none."""

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
        summary: one sentence with the finding, repeated at the top of the page.
        blocks: what to show, in order.
        data: JSON-able numbers; they go to `audit.json` under the card's name, where gates find them.
    """

    title: str
    summary: str = ""
    blocks: Sequence[Block] = ()
    data: dict[str, Any] = field(default_factory=dict)
