"""Whether the model's confidence can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pellucid.audit import figures
from pellucid.audit.vocabulary import Fact, Facts, Figure, Section, Table
from pellucid.audit.words import percent, percent_range

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit


BINS = 15  # of equal width


def calibration(audit: Audit) -> Section:
    """Expected calibration error and reliability diagram, compared with the error that a calibrated model would show.

    A model is calibrated if, of the images that it classifies with 90 % confidence, nine in ten are correct.
    """
    confidence, correct = audit.confidence.double(), (audit.predictions == audit.labels).double()
    bins = (confidence * BINS).long().clamp(0, BINS - 1)

    def gaps(outcome: torch.Tensor) -> torch.Tensor:  # calibration error of each row of outcomes (draws, N)
        sums = torch.zeros(len(outcome), BINS, dtype=torch.float64)
        return sums.index_add(1, bins, outcome - confidence).abs().sum(1) / len(confidence)

    draws = torch.rand(100, len(confidence), generator=torch.Generator().manual_seed(audit.seed), dtype=torch.float64)
    by_chance = gaps((draws < confidence).double())
    ece, stated, top1 = float(audit.evaluation.ece), float(confidence.mean()), float(correct.mean())
    rows: list[dict[str, Any]] = []
    for position in range(BINS):
        inside = bins == position
        if n := int(inside.sum()):
            hits = int(correct[inside].sum())
            rows.append(
                {
                    "n": n,
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": hits / n,
                    "interval": list(audit.interval(hits, n)),
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
    verdict = "any difference is within what chance explains"
    if ece > limit:
        verdict = f"it is {'under' if stated < top1 else 'over'}confident, by more than chance explains"
    return Section(
        "Calibration",
        f"Mean confidence is {percent(stated)}, accuracy {percent(top1)}; {verdict}.",
        [
            Facts(
                [
                    Fact("Calibration error", percent(ece), f"ECE, {BINS} bins of equal width"),
                    Fact(
                        "Control: calibrated model",
                        percent(float(by_chance.mean())),
                        f"mean of 100 simulations; 95\u00a0% of them below {percent(limit)}",
                    ),
                    Fact("Mean confidence", percent(stated), f"accuracy {percent(top1)}"),
                ]
            ),
            Figure(
                drawing,
                "Accuracy by confidence. The area of a dot is the fraction of test images in its bin; below the "
                "dashed line the model is overconfident.",
                Table(
                    "Confidence and accuracy per bin",
                    ["Mean confidence", "Images", "Accuracy", "Interval"],
                    [
                        [
                            percent(row["confidence"]),
                            str(row["n"]),
                            percent(row["accuracy"]),
                            percent_range(row["interval"]),
                        ]
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
