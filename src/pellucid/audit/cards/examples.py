"""Images of a class, with their predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.audit.vocabulary import Section, Strip
from pellucid.audit.words import prediction_of

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit


def examples(audit: Audit, index: int) -> Section | None:
    """The most and the least confident correct images, and the most confident errors."""
    mine = (audit.labels == index).nonzero()[:, 0]
    if not len(mine):
        return None
    mine = mine[audit.confidence[mine].argsort(descending=True, stable=True)]
    correct, wrong = mine[audit.predictions[mine] == index].tolist(), mine[audit.predictions[mine] != index].tolist()
    k = audit.examples
    surest, hardest = correct[:k], correct[k:][::-1][:k]  # no image twice
    groups = (
        ("Correct, most confident first", surest, "No image of this class is classified correctly."),
        ("Correct, least confident first", hardest, "No others."),
        (
            f"Misclassified, most confident first ({len(wrong)} in all)" if wrong else "Misclassified",
            wrong[:k],
            "No image of this class is misclassified.",
        ),
    )
    pictures = dict(zip(shown := surest + hardest + wrong[:k], audit.pictures(shown), strict=True))
    return Section(
        "Images",
        blocks=[
            Strip(caption, [prediction_of(audit, i, pictures[i]) for i in chosen], empty)
            for caption, chosen, empty in groups
        ],
        data={"surest_right": surest, "least_sure_right": hardest, "surest_wrong": wrong[:k]},
    )
