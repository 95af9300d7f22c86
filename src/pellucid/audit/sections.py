"""What a card returns, and where it registers: the vocabulary that ideas and the page share.

A card is a function of an `Audit`. It returns a `Section` (a title, one sentence, blocks to show, numbers to keep) or
None when it has nothing to say about this model. Its strings are plain text: the page escapes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

if TYPE_CHECKING:
    from .audit import Audit

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


Card = Callable[..., "Section | None"]
RESERVED = frozenset({"schema", "made", "model", "data", "classes", "gates", "passed"})
_CARDS: dict[str, dict[str, tuple[float, Card]]] = {"model": {}, "class": {}}


def register(name: str, card: Card, *, scope: Literal["model", "class"] = "model", order: float = 100) -> None:
    """Add a card to every page made from now on; the last registration of a name holds.

    Args:
        name: key in `audit.json`; letters, digits and `_` only, so that gates can name it.
        card: `card(audit)` for scope "model", `card(audit, class_index)` for scope "class".
        scope: once for the model, or once inside the card of every class.
        order: low comes first; the base cards use 10 to 50.

    Raises:
        ValueError: a name that is not an identifier or that `audit.json` uses itself.
    """
    if not name.isidentifier() or name in RESERVED:
        raise ValueError(
            f"A card cannot be named {name!r}: use an identifier other than {', '.join(sorted(RESERVED))}."
        )
    _CARDS[scope][name] = (order, card)


def cards(scope: Literal["model", "class"]) -> dict[str, Card]:
    """The registered cards of a scope, in page order."""
    ranked = sorted(_CARDS[scope].items(), key=lambda entry: (entry[1][0], entry[0]))
    return {name: card for name, (_, card) in ranked}


def sections_of(audit: Audit, index: int | None = None) -> dict[str, Section]:
    """Run the cards of the model, or those of class `index`; those with nothing to say are left out."""
    made = (
        {name: card(audit) for name, card in cards("model").items()}
        if index is None
        else {name: card(audit, index) for name, card in cards("class").items()}
    )
    return {name: section for name, section in made.items() if section is not None}
