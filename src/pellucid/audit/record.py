"""The content of `audit.json`.

    schema    2; raised whenever a number changes its place or meaning
    made      versions, date, device, seed
    model     source, description, parameters
    data      name, fingerprint, classes, how many of them are present, sizes, mean, std
    <card>    the numbers of each card about the model, under the card's name
    left_out  sentences on what is left out because the classes are many
    classes   {class: {card: the numbers of each card about that class}}, for classes with images
    assumed   sentences on what was assumed of the model: image size, normalisation, classes
    gates     each gate with the value found and whether it passed
    passed    whether all gates passed

Among others: accuracy.top1, .interval (low, high), .top5, .loss, .lowest.accuracy, .copies (test images that are
exact copies of training images; null without training images), .without_copies.accuracy; learning.best_epoch,
.best_val_accuracy; calibration.ece, .control.p95; confusion.errors, .pairs, .matrix; noise.mean_accuracy,
noise.severities.5.accuracy, noise.kinds.shot_noise.accuracy; and of a class classes.NAME.answers.accuracy,
.precision, .noise_accuracy. Fractions are in [0, 1]; what has no value is null.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from torch import Tensor, nn

from pellucid.audit.audit import Audit
from pellucid.audit.cards.confusion import FULL_MATRIX
from pellucid.audit.cards.filters import FEW, NAMED
from pellucid.audit.registry import sections_by_class, sections_of
from pellucid.audit.vocabulary import Section
from pellucid.core.data.dataset import Dataset
from pellucid.core.network.blackbox.box import black_box_in
from pellucid.core.registry import broken_guests
from pellucid.core.train.environment import describe_data, describe_environment

SCHEMA = 2  # 2: severities have the strengths of CIFAR-10-C where images are below 97 pixels


def read(
    audit: Audit, source: str | None = None, *, of: Dataset | None = None
) -> tuple[dict[str, Any], dict[str, Section], list[dict[str, Section]]]:
    """Run all cards.

    Args:
        audit: what they read.
        source: where the model came from.
        of: the whole data set, where `audit` holds a sample of its test images.

    Returns:
        The content of `audit.json` without gates, the sections about the model, and those about each class in
        `audit.present`.
    """
    sections = sections_of(audit)
    by_class = sections_by_class(audit)
    environment = describe_environment()
    record = {
        "schema": SCHEMA,
        "made": {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "packages": environment["packages"],
            "python": environment["python"],
            "system": environment["system"],
            "device": audit.device,
            "seed": audit.seed,
            "batch_size": audit.batch_size,
            "broken_plugins": broken_guests(),
        },
        "model": {
            "source": source,
            "description": audit.description,
            # A black box may hide any number of them.
            "parameters": None if black_box_in(audit.model) else _parameters(audit.model),
        },
        "data": {**describe_data(of or audit.dataset), "present": len(audit.present)},
        "left_out": left_out(len(audit.classes)),
        **{name: section.data for name, section in sections.items()},
        "classes": {
            audit.classes[index]: {card: section.data for card, section in of_class.items()}
            for index, of_class in zip(audit.present, by_class, strict=True)
        },
    }
    return plain(record), sections, by_class


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def left_out(classes: int) -> list[str]:
    """Sentences on what grows with the square of the number of classes and is therefore left out."""
    found = []
    if classes > FULL_MATRIX:
        found.append(f"The confusion matrix, of {classes} classes; confusion.pairs has its 100 largest errors.")
    if classes > NAMED:
        found.append(
            f"Of the classes that share a filter, all but the first {FEW}, where they are more than {NAMED}; "
            "shared_with_count counts them all."
        )
    return found


def plain(value: Any) -> Any:
    """`value` in JSON's own types; a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
