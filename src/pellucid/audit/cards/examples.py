"""Images of a class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.audit.vocabulary import Section, Strip
from pellucid.audit.words import said

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit


def examples(audit: Audit, index: int) -> Section | None:
    """The surest right images, the least sure right ones, and the surest wrong ones."""
    mine = (audit.labels == index).nonzero()[:, 0]
    if not len(mine):
        return None
    mine = mine[audit.confidence[mine].argsort(descending=True, stable=True)]
    right, wrong = mine[audit.answers[mine] == index].tolist(), mine[audit.answers[mine] != index].tolist()
    k = audit.examples
    surest, hardest = right[:k], right[k:][::-1][:k]  # no image twice
    groups = (
        ("Right, surest first", surest, "No image of this class is answered right."),
        ("Right, least sure first", hardest, "No others."),
        (
            f"Wrong, surest first ({len(wrong)} in all)" if wrong else "Wrong",
            wrong[:k],
            "No image of this class is answered wrong.",
        ),
    )
    pictures = dict(zip(shown := surest + hardest + wrong[:k], audit.pictures(shown), strict=True))
    return Section(
        "Images",
        blocks=[
            Strip(caption, [said(audit, i, pictures[i]) for i in chosen], empty) for caption, chosen, empty in groups
        ],
        data={"surest_right": surest, "least_sure_right": hardest, "surest_wrong": wrong[:k]},
    )
