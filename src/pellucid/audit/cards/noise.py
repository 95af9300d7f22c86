"""Accuracy and confidence on corrupted images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pellucid.audit import figures
from pellucid.audit.vocabulary import Figure, Picture, Section, Strip, Table
from pellucid.audit.words import confidence_text, percent, percent_range, prediction_of, short
from pellucid.core.measure.corrupt import KINDS, SMALLEST
from pellucid.core.measure.corrupt.kind import PUBLISHED, strengths_for
from pellucid.core.terminal import track

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

NOISE = "gaussian_noise"
MIDDLE = 3  # the severity reported per class
# Cheap kinds whose strength does not depend on the size of the images; `pellucid robust` measures all kinds.
OTHERS = ("shot_noise", "impulse_noise", "speckle_noise", "brightness", "contrast", "jpeg_compression")


def under_noise(audit: Audit) -> torch.Tensor:
    """Indices of the test images that Gaussian noise is added to."""
    return audit.sample(500 if audit.large else 2000)


def under_others(audit: Audit) -> torch.Tensor:
    """Indices of the test images that every other corruption is applied to."""
    return audit.sample(100 if audit.large else 225)


def noise(audit: Audit) -> Section:
    """Accuracy and confidence under Gaussian noise of five severities, compared with always predicting one class."""
    shown, few = under_noise(audit), under_others(audit)
    tasks = [(NOISE, severity, shown) for severity in range(1, 6)]
    tasks += [(kind, severity, few) for kind in _others(audit) for severity in range(1, 6)]
    for task in track(tasks, len(tasks), "corrupting test images"):
        audit.corrupted(*task)
    clean = (audit.predictions == audit.labels)[shown]
    labels = audit.labels[shown]
    majority = float(torch.bincount(labels).max()) / len(labels)
    rows = [_severity(audit, 0, 0.0, clean, audit.confidence[shown])]
    size = audit.dataset.image_size
    strengths = strengths_for(size)
    for severity, sigma in enumerate(KINDS[NOISE].levels_for(size), start=1):
        predictions, confidence = audit.corrupted(NOISE, severity, shown)
        rows.append(_severity(audit, severity, sigma, predictions == labels, confidence))
    others = _other_kinds(audit)
    reach = max(
        abs(bound - accuracy)
        for row in others
        for accuracy, bounds in zip(row["accuracy"], row["interval"], strict=True)
        for bound in bounds
    )
    worst = rows[-1]
    drawing = figures.lines(
        range(6),
        [
            ("accuracy", [row["accuracy"] for row in rows], [row["interval"] for row in rows]),
            ("mean confidence", [row["confidence"] for row in rows], None),
        ],
        title="Accuracy under Gaussian noise",
        description=f"From {percent(rows[0]['accuracy'])} without noise to {percent(worst['accuracy'])} at severity 5.",
        x_label="severity (below: standard deviation; white is 1)",
        levels=[("always one class", majority)],
        ticks=[f"{row['severity']}\n{row['sigma']:g}" for row in rows],
    )
    limited = "" if len(shown) == len(audit.labels) else f" Measured on a sample of {len(shown)} test images."
    return Section(
        "Noise",
        f"Under the strongest Gaussian noise accuracy is {percent(worst['accuracy'])} "
        f"({percent_range(worst['interval'])}) and mean confidence {percent(worst['confidence'])}; always predicting "
        f"one class gives {percent(majority)}.",
        [
            Figure(
                drawing,
                f"Accuracy with its {percent(audit.level, 0)} interval, and mean confidence, by severity of the noise, "
                f"with the strengths of {PUBLISHED[strengths]}, as in pellucid robust for images of this size; "
                f"n = {len(shown)}, seed {audit.seed}.{limited}",
                Table(
                    f"Accuracy under Gaussian noise, severities of {PUBLISHED[strengths]}",
                    ["Severity", "Deviation", "Accuracy", "Interval", "Mean confidence"],
                    [
                        [
                            str(row["severity"]),
                            f"{row['sigma']:g}",
                            percent(row["accuracy"]),
                            percent_range(row["interval"]),
                            percent(row["confidence"]),
                        ]
                        for row in rows
                    ],
                    numeric=range(5),
                ),
            ),
            Table(
                f"Accuracy in % under other corruptions, by severity of {PUBLISHED[strengths]}; n = {others[0]['n']}, "
                f"intervals extend at most {100 * reach:.0f} points to either side",
                ["Corruption", "1", "2", "3", "4", "5"],
                [
                    [row["kind"].replace("_", " "), *(f"{100 * accuracy:.0f}" for accuracy in row["accuracy"])]
                    for row in others
                ],
                numeric=range(1, 6),
            ),
            _noisy_image(audit, shown),
        ],
        {
            "n": len(shown),
            "strengths": strengths,
            "severities": rows,
            "mean_accuracy": float(np.mean([row["accuracy"] for row in rows[1:]])),
            "control": {"majority": majority, "chance": 1 / len(audit.classes)},
            "kinds": {row["kind"]: {key: row[key] for key in ("n", "accuracy", "interval")} for row in others},
        },
    )


def _severity(
    audit: Audit, severity: int, sigma: float, hits: torch.Tensor, confidence: torch.Tensor
) -> dict[str, Any]:
    correct, n = int(hits.sum()), len(hits)
    return {
        "severity": severity,
        "sigma": sigma,
        "n": n,
        "accuracy": correct / n,
        "interval": list(audit.interval(correct, n)),
        "confidence": float(confidence.mean()),
    }


def _others(audit: Audit) -> tuple[str, ...]:
    """The kinds for which these images are large enough."""
    small = min(audit.dataset.image_size) < SMALLEST
    return tuple(kind for kind in OTHERS if KINDS[kind].family == "noise" or not small)


def _other_kinds(audit: Audit) -> list[dict[str, Any]]:
    shown = under_others(audit)
    rows = []
    for kind in _others(audit):
        correct = [
            int((audit.corrupted(kind, severity, shown)[0] == audit.labels[shown]).sum()) for severity in range(1, 6)
        ]
        rows.append(
            {
                "kind": kind,
                "n": len(shown),
                "accuracy": [k / len(shown) for k in correct],
                "interval": [list(audit.interval(k, len(shown))) for k in correct],
            }
        )
    return rows


def _noisy_image(audit: Audit, shown: torch.Tensor) -> Strip:
    """The first image of the sample at every severity, with its predictions."""
    index = int(shown[0])
    pictures = [prediction_of(audit, index, audit.pictures([index])[0])]
    truth = audit.classes[int(audit.labels[index])]
    for severity in range(1, 6):
        predictions, confidence = audit.corrupted(NOISE, severity, shown)
        predicted, stated = audit.classes[int(predictions[0])], confidence_text(float(confidence[0]))
        pictures.append(
            Picture(
                audit.pictures([index], NOISE, severity)[0],
                caption=short(predicted, 24),
                note=stated,
                alt=f"Test image {index}, {truth}, noise of severity {severity}: "
                f"classified as {predicted} with confidence {stated}",
                tone="good" if predicted == truth else "bad",
            )
        )
    return Strip(f"One random test image (true class: {truth}), without noise and at severities 1 to 5", pictures)
