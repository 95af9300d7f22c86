"""Which classes are confused with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pellucid.audit import figures
from pellucid.audit.vocabulary import Block, Figure, Section, Strip, Table
from pellucid.audit.words import percent, percent_range, prediction_of

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

SHOWN_CLASSES = 30  # at most, in the matrix
SHOWN_PAIRS = 8
FULL_MATRIX = 100  # classes up to which audit.json holds the matrix
PICTURED_PAIRS = 4


def confusion(audit: Audit) -> Section:
    """The confusion matrix (beyond 30 classes, of the most confused), the most confused pairs, and their images."""
    matrix = audit.confusion
    totals, wrong = matrix.sum(1), matrix * ~np.eye(len(matrix), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    pairs = [(int(place) // len(matrix), int(place) % len(matrix)) for place in order]
    top, errors = pairs[:SHOWN_PAIRS], int(wrong.sum())
    names = audit.classes

    seen = np.flatnonzero(totals + matrix.sum(0))  # as a label or a prediction
    chosen = np.arange(len(matrix)) if len(matrix) <= SHOWN_CLASSES else seen
    if len(chosen) > SHOWN_CLASSES:
        by_confusion = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")
        ranked = dict.fromkeys([*(member for pair in pairs for member in pair), *by_confusion.tolist()])
        chosen = np.sort(np.array(list(ranked)[:SHOWN_CLASSES]))
    block = matrix[np.ix_(chosen, chosen)]
    cut = (
        ""
        if len(chosen) == len(matrix)
        else (
            f" Of {len(matrix)} classes, the {len(chosen)} "
            f"{'that occur' if len(chosen) == len(seen) else 'in the most confused pairs'} are shown, with "
            f"{int((wrong[np.ix_(chosen, chosen)]).sum())} of all {errors} errors."
        )
    )
    blocks: list[Block] = [
        Figure(
            figures.heat(
                [names[i] for i in chosen],
                block,
                totals[chosen],
                title="Confusion matrix",
                description=f"Rows: true class; columns: predicted class. {errors} of {int(totals.sum())} are off "
                "the diagonal.",
            ),
            "Counts of test images by true class (rows) and predicted class (columns). Correct predictions, on the "
            "diagonal, are shaded by their fraction of the row; errors have their own hue, scaled to the largest."
            + cut,
            wide=len(chosen) > 12,
        ),
        Table(
            "Most confused pairs: fraction of the true class with its interval, and the reverse confusion",
            ["True class", "Predicted", "Count", "Fraction", "Interval", "Reverse"],
            [
                [
                    names[i],
                    names[j],
                    f"{matrix[i, j]} of {totals[i]}",
                    percent(matrix[i, j] / totals[i]),
                    percent_range(audit.interval(int(matrix[i, j]), int(totals[i]))),
                    f"{matrix[j, i]} of {totals[j]}",
                ]
                for i, j in top
            ],
            numeric=(2, 3, 4, 5),
        ),
        *(_pair_strip(audit, i, j) for i, j in top[:PICTURED_PAIRS]),
    ]
    summary = "No test image is misclassified."
    if top:
        i, j = top[0]
        summary = (
            f"The most frequent error is {names[i]} classified as {names[j]}: {matrix[i, j]} of {totals[i]} images "
            f"({errors} error{'' if errors == 1 else 's'} in all)."
        )
    return Section(
        "Confusion",
        summary,
        blocks,
        {
            "errors": errors,
            "matrix": matrix.tolist() if len(matrix) <= FULL_MATRIX else None,
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


def _pair_strip(audit: Audit, truth: int, predicted: int) -> Strip:
    """Images of `truth` classified as `predicted`, most confident first, and the most confident correct one of each."""
    confident = audit.confidence.argsort(descending=True, stable=True)
    labels, predictions = audit.labels[confident], audit.predictions[confident]
    mistaken = confident[(labels == truth) & (predictions == predicted)][: audit.examples].tolist()
    controls = [confident[(labels == c) & (predictions == c)][:1].tolist() for c in (truth, predicted)]
    indices = mistaken + [index for control in controls for index in control]
    pictures = [
        prediction_of(audit, index, image) for index, image in zip(indices, audit.pictures(indices), strict=True)
    ]
    shown = (
        "" if audit.evaluation.confusion[truth][predicted] == len(mistaken) else f", the {len(mistaken)} most confident"
    )
    return Strip(
        f"{audit.classes[truth]} classified as {audit.classes[predicted]}{shown}; for comparison, the most confident "
        f"correct {audit.classes[truth]} and {audit.classes[predicted]}",
        pictures,
    )
