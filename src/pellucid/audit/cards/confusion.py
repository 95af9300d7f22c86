"""The base card about which class is taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pellucid.audit import figures
from pellucid.audit.vocabulary import Block, Figure, Section, Strip, Table
from pellucid.audit.words import between, percent, said

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

SHOWN_CLASSES = 30  # the matrix shows no more than these
SHOWN_PAIRS = 8
PICTURED_PAIRS = 4


def confusion(audit: Audit) -> Section:
    """The matrix (beyond 30 classes its most confused block), the most confused pairs, and images of each."""
    matrix = np.array(audit.evaluation.confusion, dtype=np.int64)
    totals, wrong = matrix.sum(1), matrix * ~np.eye(len(matrix), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    pairs = [(int(place) // len(matrix), int(place) % len(matrix)) for place in order]
    top, errors = pairs[:SHOWN_PAIRS], int(wrong.sum())
    names = audit.classes

    chosen = np.arange(len(matrix))
    if len(chosen) > SHOWN_CLASSES:
        by_confusion = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")
        ranked = dict.fromkeys([*(member for pair in pairs for member in pair), *by_confusion.tolist()])
        chosen = np.sort(np.array(list(ranked)[:SHOWN_CLASSES]))
    block = matrix[np.ix_(chosen, chosen)]
    cut = (
        ""
        if len(chosen) == len(matrix)
        else (
            f" Shown are the {len(chosen)} classes of the most confused pairs, of {len(matrix)}; they hold "
            f"{int((wrong[np.ix_(chosen, chosen)]).sum())} of all {errors} wrong answers."
        )
    )
    blocks: list[Block] = [
        Figure(
            figures.heat(
                [names[i] for i in chosen],
                block,
                totals[chosen],
                title="Confusion matrix",
                description=f"Rows: truth; columns: answer. {errors} of {int(totals.sum())} are off the diagonal.",
            ),
            "Counts of test images: rows are the truth, columns the answer. The diagonal is right, shaded by share of "
            "its row; wrong answers have their own hue and scale, up to the largest of them." + cut,
            wide=len(chosen) > 12,
        ),
        Table(
            "Most confused pairs, share of the truth with its interval, and how often the reverse happens",
            ["Truth", "Answer", "Times", "Share", "Interval", "Reverse"],
            [
                [
                    names[i],
                    names[j],
                    f"{matrix[i, j]} of {totals[i]}",
                    percent(matrix[i, j] / totals[i]),
                    between(audit.interval(int(matrix[i, j]), int(totals[i]))),
                    f"{matrix[j, i]} of {totals[j]}",
                ]
                for i, j in top
            ],
            numeric=(2, 3, 4, 5),
        ),
        *(_pair_strip(audit, i, j) for i, j in top[:PICTURED_PAIRS]),
    ]
    summary = "No test image is confused with another class."
    if top:
        i, j = top[0]
        summary = (
            f"Most often takes {names[i]} for {names[j]}: {matrix[i, j]} of {totals[i]} times ({errors} errors in all)."
        )
    return Section(
        "Confusion",
        summary,
        blocks,
        {
            "errors": errors,
            "matrix": matrix.tolist() if len(matrix) <= 100 else None,
            "pairs": [
                {
                    "truth": names[i],
                    "answer": names[j],
                    "count": int(matrix[i, j]),
                    "n": int(totals[i]),
                    "share": float(matrix[i, j] / totals[i]),
                    "interval": audit.interval(int(matrix[i, j]), int(totals[i])),
                }
                for i, j in pairs[:100]
            ],
        },
    )


def _pair_strip(audit: Audit, truth: int, answer: int) -> Strip:
    """Images of `truth` taken for `answer`, most confident first, and for comparison the surest right one of each."""
    confident = audit.confidence.argsort(descending=True, stable=True)
    labels, answers = audit.labels[confident], audit.answers[confident]
    mistaken = confident[(labels == truth) & (answers == answer)][: audit.examples].tolist()
    controls = [confident[(labels == c) & (answers == c)][:1].tolist() for c in (truth, answer)]
    indices = mistaken + [index for control in controls for index in control]
    pictures = [said(audit, index, image) for index, image in zip(indices, audit.pictures(indices), strict=True)]
    shown = "" if audit.evaluation.confusion[truth][answer] == len(mistaken) else f", the surest {len(mistaken)}"
    return Strip(
        f"{audit.classes[truth]} taken for {audit.classes[answer]}{shown}; "
        f"for comparison the surest right {audit.classes[truth]} and {audit.classes[answer]}",
        pictures,
    )
