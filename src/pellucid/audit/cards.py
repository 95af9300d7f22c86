"""The base cards about how well the model does: accuracy, learning curve, calibration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from . import figures
from .sections import Fact, Facts, Figure, Section, Table, register
from .words import between, percent

if TYPE_CHECKING:
    from .audit import Audit

BINS = 15  # of equal width, for the calibration error
SHOWN_CLASSES = 30  # a drawing by class shows no more than these
SPLITS = {"training": "train", "held out": "val"}  # in words, and in the rows of a run


def accuracy(audit: Audit) -> Section:
    """Top-1 with its interval and two controls, top-5, loss, and a dot for every class."""
    result, classes = audit.evaluation, audit.classes
    counts = torch.bincount(audit.labels, minlength=len(classes))
    majority = int(counts.argmax())
    control, chance = float(counts[majority]) / result.n, 1 / len(classes)
    tested = sorted((row for row in result.per_class if row["n"]), key=lambda row: row["accuracy"])
    lowest, shown = tested[0], tested[:SHOWN_CLASSES]
    facts = [
        Fact("Top 1", percent(result.top1), f"{between(result.top1_interval)}, {result.correct} of {result.n}"),
        Fact("Lowest class", percent(lowest["accuracy"]), f"{lowest['class']}: {lowest['correct']} of {lowest['n']}"),
        Fact(
            "Control: always one class",
            percent(control),
            f"always answering {classes[majority]}; chance {percent(chance)}",
        ),
        Fact("Loss", f"{result.loss:.3f}", f"cross-entropy; knowing nothing is {math.log(len(classes)):.3f}"),
    ]
    if result.top5 is not None and len(classes) > 5:
        facts.insert(1, Fact("Top 5", percent(result.top5), f"chance {percent(5 / len(classes))}"))
    if len(tested) <= SHOWN_CLASSES:  # small enough to keep the order the reader knows
        shown = [row for row in result.per_class if row["n"]]
        what = "Accuracy of each class"
    else:
        what = f"The {SHOWN_CLASSES} classes with the lowest accuracy, of {len(tested)}"
    names = [row["class"] for row in shown]
    drawing = figures.intervals(
        names,
        [row["accuracy"] for row in shown],
        [row["interval"] for row in shown],
        ("all classes", result.top1),
        title=what,
        description=f"Lowest: {lowest['class']}, {percent(lowest['accuracy'])}. All together: {percent(result.top1)}.",
    )
    numbers = Table(
        what,
        ["Class", "Right", "Of", "Accuracy", "Interval"],
        [
            [row["class"], str(row["correct"]), str(row["n"]), percent(row["accuracy"]), between(row["interval"])]
            for row in shown
        ],
        numeric=(1, 2, 3, 4),
    )
    return Section(
        "Accuracy",
        f"Right on {result.correct} of {result.n} test images, {percent(result.top1)} "
        f"({between(result.top1_interval)}); always answering {classes[majority]} would give {percent(control)}.",
        [
            Facts(facts),
            Figure(drawing, f"{what}, with {percent(audit.level, 0)} intervals (Wilson).", numbers),
        ],
        {
            "n": result.n,
            "correct": result.correct,
            "top1": result.top1,
            "interval": result.top1_interval,
            "top5": result.top5,
            "loss": result.loss,
            "lowest": {key: lowest[key] for key in ("class", "n", "correct", "accuracy", "interval")},
            "control": {"majority": control, "chance": chance},
        },
    )


def learning(audit: Audit) -> Section | None:
    """Loss and accuracy by epoch, from the run that made the model."""
    rows = audit.history
    if not rows:
        return None
    epochs = [row["epoch"] + 1 for row in rows]  # as many as were completed
    best = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))

    def drawing(quantity: str, **options: Any) -> str:
        curves = {name: [row[f"{split}_{quantity}"] for row in rows] for name, split in SPLITS.items()}
        return figures.lines(
            epochs,
            [(name, values, None) for name, values in curves.items()],
            title=f"{quantity.capitalize()} by epoch",
            description="; ".join(f"{name} ends at {values[-1]:.3f}" for name, values in curves.items()),
            x_label="epoch",
            mark=best["epoch"] + 1,
            **options,
        )

    step = max(1, len(rows) // 20)
    numbers = Table(
        "Learning by epoch" + (f", every {step} epochs" if step > 1 else ""),
        ["Epoch", "Training loss", "Held-out loss", "Training accuracy", "Held-out accuracy"],
        [
            [
                str(row["epoch"] + 1),
                *(f"{row[f'{split}_loss']:.3f}" for split in SPLITS.values()),
                *(percent(row[f"{split}_accuracy"]) for split in SPLITS.values()),
            ]
            for row in rows[::-step][::-1]
        ],
        numeric=range(5),
    )
    return Section(
        "Learning",
        f"Best on held-out images after epoch {best['epoch'] + 1} of {epochs[-1]}, at {percent(best['val_accuracy'])}; "
        "the test images had no part in the choice.",
        [
            Figure(
                drawing("accuracy", levels=[("chance", 1 / len(audit.classes))]),
                "Accuracy on the training images as they were drawn, and on held-out images. The vertical line is the "
                "best epoch.",
                numbers,
            ),
            Figure(drawing("loss", percent=False), "Loss by epoch, on a logarithmic scale."),
        ],
        {
            "epochs": len(rows),
            "best_epoch": best["epoch"] + 1,
            "best_val_accuracy": best["val_accuracy"],
            "final_train_loss": rows[-1]["train_loss"],
        },
    )


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


register("accuracy", accuracy, order=10)
register("learning", learning, order=20)
register("calibration", calibration, order=30)
