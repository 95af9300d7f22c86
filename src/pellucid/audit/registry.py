"""The cards of the page, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pellucid.audit.vocabulary import Section
from pellucid.core.registry import Registry

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit


Card = Callable[..., "Section | None"]
RESERVED = frozenset({"schema", "made", "model", "data", "classes", "gates", "passed"})
Scope = Literal["model", "class"]

# Ours, in page order: card about the model or about each class -> (place, order).
_OWN: dict[Scope, dict[str, tuple[str, float]]] = {
    "model": {
        "accuracy": ("accuracy:accuracy", 10),
        "learning": ("learning:learning", 20),
        "calibration": ("calibration:calibration", 30),
        "confusion": ("confusion:confusion", 40),
        "noise": ("noise:noise", 50),
        "whitening": ("whitening:whitening", 60),
        "sparse": ("sparse:sparse", 62),
        "subnet": ("subnet:subnet", 65),
        "filters": ("filters:filters", 70),
        "robust": ("robust:robust", 72),
        "inverted": ("inverted:inverted", 80),
    },
    "class": {
        "answers": ("predictions:answers", 10),
        "examples": ("examples:examples", 20),
        "filters": ("filters:class_filters", 30),
        "sparse_atoms": ("sparse:class_atoms", 35),
        "inverted": ("inverted:class_inverted", 40),
    },
}


def _registry(scope: Scope) -> Registry[Card]:
    places = {name: f"pellucid.audit.cards.{where}" for name, (where, _) in _OWN[scope].items()}
    return Registry("card", own=places)


CARDS: dict[Scope, Registry[Card]] = {scope: _registry(scope) for scope in _OWN}
_ORDER: dict[Scope, dict[str, float]] = {
    scope: {name: order for name, (_, order) in own.items()} for scope, own in _OWN.items()
}


def register(name: str, card: Card, *, scope: Scope = "model", order: float = 100) -> None:
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
    CARDS[scope].register(name, card)
    _ORDER[scope][name] = order


def cards(scope: Scope) -> dict[str, Card]:
    """The cards of a scope, ours and those of guests, in page order."""
    names = sorted(CARDS[scope].names(), key=lambda name: (_ORDER[scope][name], name))
    return {name: CARDS[scope][name] for name in names}


def sections_of(audit: Audit, index: int | None = None) -> dict[str, Section]:
    """Run the cards of the model, or those of class `index`; those with nothing to say are left out."""
    made = (
        {name: card(audit) for name, card in cards("model").items()}
        if index is None
        else {name: card(audit, index) for name, card in cards("class").items()}
    )
    return {name: section for name, section in made.items() if section is not None}
