"""The base card about corrupted images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pellucid.audit import figures
from pellucid.audit.vocabulary import Figure, Picture, Section, Strip, Table
from pellucid.audit.words import between, percent, said, sure
from pellucid.core.measure.corrupt import KINDS, SMALLEST
from pellucid.core.terminal import track

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

NOISE = "gaussian_noise"
MIDDLE = 3  # the severity that single classes are judged at
# Cheap kinds whose strength does not hang on the images' size; `pellucid corrupt` has all of them.
OTHERS = ("shot_noise", "impulse_noise", "speckle_noise", "brightness", "contrast", "jpeg_compression")


def under_noise(audit: Audit) -> torch.Tensor:
    """Indices of the test images that Gaussian noise is added to."""
    return audit.sample(500 if audit.large else 2000)


def under_others(audit: Audit) -> torch.Tensor:
    """Indices of the test images that every other corruption is tried on."""
    return audit.sample(100 if audit.large else 225)


def noise(audit: Audit) -> Section:
    """Accuracy and stated confidence under Gaussian noise of five severities, against the best blind answer."""
    shown, few = under_noise(audit), under_others(audit)
    tasks = [(NOISE, severity, shown) for severity in range(1, 6)]
    tasks += [(kind, severity, few) for kind in _others(audit) for severity in range(1, 6)]
    for task in track(tasks, len(tasks), "corrupting test images"):
        audit.corrupted(*task)
    clean = (audit.answers == audit.labels)[shown]
    labels = audit.labels[shown]
    majority = float(torch.bincount(labels).max()) / len(labels)
    rows = [_severity(audit, 0, 0.0, clean, audit.confidence[shown])]
    for severity, sigma in enumerate(KINDS[NOISE].levels, start=1):
        answers, confidence = audit.corrupted(NOISE, severity, shown)
        rows.append(_severity(audit, severity, sigma, answers == labels, confidence))
    others = _other_kinds(audit)
    reach = max(
        abs(bound - share)
        for row in others
        for share, bounds in zip(row["accuracy"], row["interval"], strict=True)
        for bound in bounds
    )
    worst = rows[-1]
    drawing = figures.lines(
        range(6),
        [
            ("right", [row["accuracy"] for row in rows], [row["interval"] for row in rows]),
            ("mean confidence", [row["confidence"] for row in rows], None),
        ],
        title="Accuracy under Gaussian noise",
        description=f"From {percent(rows[0]['accuracy'])} without noise to {percent(worst['accuracy'])} at severity 5.",
        x_label="severity (below: standard deviation, white = 1)",
        levels=[("always one class", majority)],
        ticks=[f"{row['severity']}\n{row['sigma']:g}" for row in rows],
    )
    limited = "" if len(shown) == len(audit.labels) else f" Measured on {len(shown)} test images drawn by seed."
    return Section(
        "Noise",
        f"Under the strongest Gaussian noise {percent(worst['accuracy'])} right ({between(worst['interval'])}) while "
        f"{percent(worst['confidence'])} sure on average; always answering one class gives {percent(majority)}.",
        [
            Figure(
                drawing,
                f"Share of right answers with its {percent(audit.level, 0)} interval, and the confidence stated, by "
                f"severity of the noise; n = {len(shown)}, seed {audit.seed}.{limited}",
                Table(
                    "Accuracy under Gaussian noise",
                    ["Severity", "Deviation", "Right", "Interval", "Mean confidence"],
                    [
                        [
                            str(row["severity"]),
                            f"{row['sigma']:g}",
                            percent(row["accuracy"]),
                            between(row["interval"]),
                            percent(row["confidence"]),
                        ]
                        for row in rows
                    ],
                    numeric=range(5),
                ),
            ),
            Table(
                f"Accuracy in % under other corruptions, by severity; n = {others[0]['n']}, intervals reach at most "
                f"{100 * reach:.0f} points to either side",
                ["Corruption", "1", "2", "3", "4", "5"],
                [
                    [row["kind"].replace("_", " "), *(f"{100 * share:.0f}" for share in row["accuracy"])]
                    for row in others
                ],
                numeric=range(1, 6),
            ),
            _noisy_image(audit, shown),
        ],
        {
            "n": len(shown),
            "severities": rows,
            "mean_accuracy": float(np.mean([row["accuracy"] for row in rows[1:]])),
            "control": {"majority": majority, "chance": 1 / len(audit.classes)},
            "kinds": {row["kind"]: {key: row[key] for key in ("n", "accuracy", "interval")} for row in others},
        },
    )


def _severity(
    audit: Audit, severity: int, sigma: float, right: torch.Tensor, confidence: torch.Tensor
) -> dict[str, Any]:
    correct, n = int(right.sum()), len(right)
    return {
        "severity": severity,
        "sigma": sigma,
        "n": n,
        "accuracy": correct / n,
        "interval": list(audit.interval(correct, n)),
        "confidence": float(confidence.mean()),
    }


def _others(audit: Audit) -> tuple[str, ...]:
    """The kinds that these images are large enough for."""
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
    """The first image of the sample at every severity, with what the model then says."""
    index = int(shown[0])
    pictures = [said(audit, index, audit.pictures([index])[0])]
    truth = audit.classes[int(audit.labels[index])]
    for severity in range(1, 6):
        answers, confidence = audit.corrupted(NOISE, severity, shown)
        answer, stated = audit.classes[int(answers[0])], sure(float(confidence[0]))
        pictures.append(
            Picture(
                audit.pictures([index], NOISE, severity)[0],
                caption=figures.short(answer, 24),
                note=stated,
                alt=f"Test image {index}, {truth}, noise of severity {severity}: "
                f"answered {answer} with confidence {stated}",
                tone="good" if answer == truth else "bad",
            )
        )
    return Strip(f"One test image, drawn by seed (truth: {truth}), without noise and at severities 1 to 5", pictures)
