"""How images of a class are classified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.audit.cards.noise import MIDDLE, NOISE, under_noise
from pellucid.audit.figures import short
from pellucid.audit.vocabulary import Block, Fact, Facts, Section, Table
from pellucid.audit.words import between, percent

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit


SHOWN_MIXUPS = 3


def answers(audit: Audit, index: int) -> Section | None:
    """Recall, precision and accuracy under noise, and the classes it is taken for and that are taken for it."""
    matrix, result = audit.evaluation.confusion, audit.evaluation.to_json()["per_class"][index]
    said_so = sum(row[index] for row in matrix)
    if not result["n"] and not said_so:
        return None
    hit, n = result["correct"], result["n"]
    precision = hit / said_so if said_so else None
    facts = []
    if said_so:
        facts.append(
            Fact("Precision", percent(hit / said_so), f"{hit} of {said_so}, {between(audit.interval(hit, said_so))}")
        )
    noisy = _under_noise(audit, index)
    if noisy is not None:
        kept, tried = noisy
        facts.append(
            Fact(
                f"Noise, severity {MIDDLE}",
                percent(kept / tried),
                f"{kept} of {tried}, {between(audit.interval(kept, tried))}",
            )
        )
    others = sorted(
        (other for other in range(len(matrix)) if other != index), key=lambda o: -(matrix[index][o] + matrix[o][index])
    )
    mixed = [other for other in others[:SHOWN_MIXUPS] if matrix[index][other] + matrix[other][index]]
    blocks: list[Block] = [Facts(facts)] if facts else []
    if mixed:
        name = short(audit.classes[index], 10)
        blocks.append(
            Table(
                "Mix-ups, as truth → answer",
                ["With", f"{name} → it", f"it → {name}"],
                [
                    [
                        audit.classes[other],
                        f"{matrix[index][other]} of {n}",
                        f"{matrix[other][index]} of {sum(matrix[other])}",
                    ]
                    for other in mixed
                ],
                numeric=(1, 2),
            )
        )
    return Section(
        "Answers",
        blocks=blocks,
        data={
            "n": n,
            "correct": hit,
            "accuracy": result["accuracy"],
            "interval": result["interval"],
            "precision": precision,
            "answered": said_so,
            "noise_accuracy": None if noisy is None else noisy[0] / noisy[1],
            "mixed_up_with": [
                {
                    "class": audit.classes[other],
                    "taken_for_it": matrix[index][other],
                    "it_taken_for_this": matrix[other][index],
                }
                for other in mixed
            ],
        },
    )


def _under_noise(audit: Audit, index: int) -> tuple[int, int] | None:
    """(right, tried) among this class's images in the noise sample at the middle severity."""
    shown = under_noise(audit)
    mine = audit.labels[shown] == index
    if not mine.any():
        return None
    answered, _ = audit.corrupted(NOISE, MIDDLE, shown)
    return int((answered[mine] == index).sum()), int(mine.sum())
