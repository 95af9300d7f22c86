"""Whether the model's confidence can be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pellucid.audit import figures
from pellucid.audit.vocabulary import Fact, Facts, Figure, Section, Table
from pellucid.audit.words import between, percent

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit


BINS = 15  # of equal width, for the calibration error


def calibration(audit: Audit) -> Section:
    """Does "90 % sure" mean right nine times in ten? Beside the error a calibrated model of this size would show."""
    confidence, right = audit.confidence.double(), (audit.answers == audit.labels).double()
    bins = (confidence * BINS).long().clamp(0, BINS - 1)

    def gaps(outcome: torch.Tensor) -> torch.Tensor:  # expected calibration error of each row of outcomes (draws, N)
        sums = torch.zeros(len(outcome), BINS, dtype=torch.float64)
        return sums.index_add(1, bins, outcome - confidence).abs().sum(1) / len(confidence)

    draws = torch.rand(100, len(confidence), generator=torch.Generator().manual_seed(audit.seed), dtype=torch.float64)
    by_chance = gaps((draws < confidence).double())
    ece, stated, top1 = float(audit.evaluation.ece), float(confidence.mean()), float(right.mean())
    rows: list[dict[str, Any]] = []
    for position in range(BINS):
        inside = bins == position
        if n := int(inside.sum()):
            correct = int(right[inside].sum())
            rows.append(
                {
                    "n": n,
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": correct / n,
                    "interval": list(audit.interval(correct, n)),
                }
            )
    drawing = figures.reliability(
        [row["confidence"] for row in rows],
        [row["accuracy"] for row in rows],
        [row["interval"] for row in rows],
        [row["n"] / len(confidence) for row in rows],
        title="Reliability diagram",
        description=f"Mean confidence {percent(stated)}, accuracy {percent(top1)}, calibration error {percent(ece)}.",
    )
    limit = float(by_chance.quantile(0.95))
    verdict = "no miscalibration beyond what chance explains"
    if ece > limit:
        verdict = f"it claims too {'little' if stated < top1 else 'much'}, by more than chance explains"
    return Section(
        "Calibration",
        f"On average {percent(stated)} sure and {percent(top1)} right; {verdict}.",
        [
            Facts(
                [
                    Fact("Calibration error", percent(ece), f"ECE, {BINS} bins of equal width"),
                    Fact(
                        "Control: calibrated model",
                        percent(float(by_chance.mean())),
                        f"mean of 100 simulated; 95\u00a0% of them below {percent(limit)}",
                    ),
                    Fact("Mean confidence", percent(stated), f"accuracy {percent(top1)}"),
                ]
            ),
            Figure(
                drawing,
                "Share of right answers by stated confidence. A dot's area is its share of the test images; "
                "below the dashed line the model claims too much.",
                Table(
                    "Confidence and accuracy, bin by bin",
                    ["Mean confidence", "Images", "Right", "Interval"],
                    [
                        [percent(row["confidence"]), str(row["n"]), percent(row["accuracy"]), between(row["interval"])]
                        for row in rows
                    ],
                    numeric=range(4),
                ),
            ),
        ],
        {
            "ece": ece,
            "mean_confidence": stated,
            "bins": rows,
            "control": {"mean": float(by_chance.mean()), "p95": limit, "draws": len(by_chance)},
        },
    )
