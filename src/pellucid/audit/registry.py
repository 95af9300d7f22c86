"""The cards of the page, in page order: ours in one table, those of guests by `register`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pellucid.audit.vocabulary import Section
from pellucid.core.registry import Registry
from pellucid.core.terminal import track

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

Card = Callable[..., "Section | None"]
Scope = Literal["model", "class"]

RESERVED = frozenset(
    {"schema", "made", "model", "data", "assumed", "left_out", "classes", "gates", "passed"}
)  # keys of audit.json itself


class Cards(Registry[Card]):
    """The cards of one scope by name, each with its position on the page.

    Args:
        own: name in `audit.json` -> (order on the page, "module:function" in `pellucid.audit.cards`).
    """

    def __init__(self, own: Mapping[str, tuple[float, str]]) -> None:
        super().__init__("card", {name: f"pellucid.audit.cards.{where}" for name, (_, where) in own.items()})
        self._orders = {name: order for name, (order, _) in own.items()}

    def register(self, name: str, value: Card, order: float = 100) -> None:
        """Add a card, in place of the one that had this name before."""
        super().register(name, value)
        self._orders[name] = order

    def in_order(self) -> dict[str, Card]:
        """All cards, those of guests included, in page order."""
        return {name: self[name] for name in sorted(self.names(), key=lambda name: (self._orders[name], name))}


CARDS: dict[Scope, Cards] = {
    "model": Cards(
        {
            "accuracy": (10, "accuracy:accuracy"),
            "learning": (20, "learning:learning"),
            "calibration": (30, "calibration:calibration"),
            "confusion": (40, "confusion:confusion"),
            "noise": (50, "noise:noise"),
            "whitening": (60, "whitening:whitening"),
            "sparse": (62, "sparse:sparse"),
            "subnet": (65, "subnet:subnet"),
            "filters": (70, "filters:filters"),
            "robust": (72, "robust:robust"),
            "inverted": (80, "inverted:inverted"),
            "black_box": (85, "black_box:black_box"),
        }
    ),
    "class": Cards(
        {
            "answers": (10, "predictions:predictions"),
            "examples": (20, "examples:examples"),
            "filters": (30, "filters:class_filters"),
            "sparse_atoms": (35, "sparse:class_atoms"),
            "inverted": (40, "inverted:class_inverted"),
        }
    ),
}


def register(name: str, card: Card, *, scope: Scope = "model", order: float = 100) -> None:
    """Add a card to every page made from now on; the last registration of a name holds.

    Args:
        name: key in `audit.json`; an identifier (letters, digits and `_`), so that gates can name it.
        card: `card(audit)` for scope "model", `card(audit, class_index)` for scope "class"; returns a `Section`, or
            None where it has nothing to say.
        scope: "model" for one section per page, "class" for a part of the card of every class.
        order: position on the page, low first; our own cards use 10 to 85.

    Raises:
        ValueError: a name that is not an identifier, or that `audit.json` uses itself.
    """
    if not name.isidentifier() or name in RESERVED:
        raise ValueError(
            f"A card cannot be named {name!r}: use an identifier other than {', '.join(sorted(RESERVED))}."
        )
    CARDS[scope].register(name, card, order)


def sections_of(audit: Audit, index: int | None = None) -> dict[str, Section]:
    """Run the cards of the model, or those of class `index`; cards that return None are left out."""
    return _made(CARDS["model"], audit) if index is None else _made(CARDS["class"], audit, index)


def sections_by_class(audit: Audit) -> list[dict[str, Section]]:
    """Run the cards of each class in `audit.present`."""
    cards = CARDS["class"].in_order()  # looked up once: that reads what is installed
    shown = track(audit.present, len(audit.present), "reading each class")
    return [_made(cards, audit, index) for index in shown]


def _made(cards: Cards | Mapping[str, Card], *arguments: Any) -> dict[str, Section]:
    found = cards.in_order() if isinstance(cards, Cards) else cards
    made = {name: card(*arguments) for name, card in found.items()}
    return {name: section for name, section in made.items() if section is not None}
