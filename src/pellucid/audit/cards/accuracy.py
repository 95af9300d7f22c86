"""How accurate the model is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pellucid.audit import figures
from pellucid.audit.vocabulary import Fact, Facts, Figure, Section, Table
from pellucid.audit.words import percent, percent_range
from pellucid.core.measure.evaluate import about_copies

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

SHOWN_CLASSES = 30  # at most, in the figure
SPLITS = {"training": "train", "held out": "val"}  # name on the page -> name in the rows of a run


def accuracy(audit: Audit) -> Section:
    """Top-1 accuracy with its interval and two controls, top-5 accuracy, loss, and the accuracy of every class."""
    result, classes = audit.evaluation, audit.classes
    counts = torch.bincount(audit.labels, minlength=len(classes))
    majority = int(counts.argmax())
    control, chance = float(counts[majority]) / result.n, 1 / len(classes)
    tested = sorted((row for row in result.to_json()["per_class"] if row["n"]), key=lambda row: row["accuracy"])
    lowest, shown = tested[0], tested[:SHOWN_CLASSES]
    facts = [
        Fact(
            "Accuracy (top 1)",
            percent(result.top1),
            f"{percent_range(result.top1_interval)}, {result.correct} of {result.n}",
        ),
        Fact("Lowest class", percent(lowest["accuracy"]), f"{lowest['class']}: {lowest['correct']} of {lowest['n']}"),
        Fact(
            "Control: always one class",
            percent(control),
            f"always predicting {classes[majority]}; chance {percent(chance)}",
        ),
        Fact("Loss", f"{result.loss:.3f}", f"cross-entropy; {math.log(len(classes)):.3f} for a uniform prediction"),
    ]
    if result.top5 is not None and len(classes) > 5:
        facts.insert(1, Fact("Accuracy (top 5)", percent(result.top5), f"chance {percent(5 / len(classes))}"))
    if len(tested) <= SHOWN_CLASSES:  # small enough to keep the order the reader knows
        shown = [row for row in result.to_json()["per_class"] if row["n"]]
        what = "Accuracy per class"
    else:
        what = f"The {SHOWN_CLASSES} classes with the lowest accuracy, of {len(tested)}"
    names = [row["class"] for row in shown]
    drawing = figures.intervals(
        names,
        [row["accuracy"] for row in shown],
        [row["interval"] for row in shown],
        ("all classes", result.top1),
        title=what,
        description=f"Lowest: {lowest['class']}, {percent(lowest['accuracy'])}. All classes: {percent(result.top1)}.",
    )
    numbers = Table(
        what,
        ["Class", "Correct", "Of", "Accuracy", "Interval"],
        [
            [row["class"], str(row["correct"]), str(row["n"]), percent(row["accuracy"]), percent_range(row["interval"])]
            for row in shown
        ],
        numeric=(1, 2, 3, 4),
    )
    copied = about_copies(result.to_json())
    some = f", of {len(audit.present)} of {len(classes)} classes," if len(audit.present) < len(classes) else ""
    return Section(
        "Accuracy",
        f"{percent(result.top1)} ({percent_range(result.top1_interval)}) of {result.n} test images{some} are "
        f"classified correctly; always predicting {classes[majority]} would give {percent(control)}."
        + (f" {copied}" if copied else ""),
        [
            Facts(facts),
            Figure(drawing, f"{what}, with {percent(audit.level, 0)} intervals (Wilson).", numbers),
        ],
        {
            "n": result.n,
            "classes": len(audit.present),
            "outputs": len(classes),
            "correct": result.correct,
            "top1": result.top1,
            "interval": result.top1_interval,
            "top5": result.top5,
            "loss": result.loss,
            "lowest": {key: lowest[key] for key in ("class", "n", "correct", "accuracy", "interval")},
            "control": {"majority": control, "chance": chance},
            "copies": result.copies,
            "without_copies": None if result.without_copies is None else result.without_copies.to_json(),
        },
    )
