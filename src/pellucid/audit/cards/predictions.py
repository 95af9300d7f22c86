"""How images of a class are classified."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pellucid.audit.cards.noise import MIDDLE, NOISE, under_noise
from pellucid.audit.vocabulary import Block, Fact, Facts, Section, Table
from pellucid.audit.words import percent, percent_range, short

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit


SHOWN_CONFUSIONS = 3


def predictions(audit: Audit, index: int) -> Section | None:
    """Recall, precision and accuracy under noise, and the classes that it is confused with."""
    matrix, result = audit.confusion, audit.evaluation.per_class[index]
    predicted, totals = int(matrix[:, index].sum()), matrix.sum(1)
    if not result.n and not predicted:
        return None
    hit, n = int(result.correct), result.n
    precision = hit / predicted if predicted else None
    facts = []
    if predicted:
        facts.append(
            Fact(
                "Precision",
                percent(hit / predicted),
                f"{hit} of {predicted}, {percent_range(audit.interval(hit, predicted))}",
            )
        )
    noisy = _under_noise(audit, index)
    if noisy is not None:
        kept, tested = noisy
        facts.append(
            Fact(
                f"Noise, severity {MIDDLE}",
                percent(kept / tested),
                f"{kept} of {tested}, {percent_range(audit.interval(kept, tested))}",
            )
        )
    both = matrix[index] + matrix[:, index]
    both[index] = 0
    mixed = [int(other) for other in np.argsort(-both, kind="stable")[:SHOWN_CONFUSIONS] if both[other]]
    blocks: list[Block] = [Facts(facts)] if facts else []
    if mixed:
        name = short(audit.classes[index], 10)
        blocks.append(
            Table(
                "Confusions, as true class → predicted class",
                ["With", f"{name} → it", f"it → {name}"],
                [
                    [
                        audit.classes[other],
                        f"{matrix[index, other]} of {n}",
                        f"{matrix[other, index]} of {totals[other]}",
                    ]
                    for other in mixed
                ],
                numeric=(1, 2),
            )
        )
    return Section(
        "Predictions",
        blocks=blocks,
        data={
            "n": n,
            "correct": hit,
            "accuracy": result.value,
            "interval": result.interval,
            "precision": precision,
            "answered": predicted,
            "noise_accuracy": None if noisy is None else noisy[0] / noisy[1],
            "mixed_up_with": [
                {
                    "class": audit.classes[other],
                    "taken_for_it": int(matrix[index, other]),
                    "it_taken_for_this": int(matrix[other, index]),
                }
                for other in mixed
            ],
        },
    )


def _under_noise(audit: Audit, index: int) -> tuple[int, int] | None:
    """(correct, tested) among this class's images in the noise sample at the middle severity."""
    shown = under_noise(audit)
    mine = audit.labels[shown] == index
    if not mine.any():
        return None
    found, _ = audit.corrupted(NOISE, MIDDLE, shown)
    return int((found[mine] == index).sum()), int(mine.sum())
