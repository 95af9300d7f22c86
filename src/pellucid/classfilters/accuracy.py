"""Accuracy of a linear head, whole or decomposed: logit_c = sum over the filters j of class c of W_cj a_j + b_c."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.core.measure.share import Share

Sets = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Accuracy:
    """Correctly classified images: of all (`overall`), and of each class (`per_class`, K shares)."""

    overall: Share
    per_class: tuple[Share, ...]

    @property
    def balanced(self) -> float:
        """Mean of the per-class accuracies over the classes that have images: every class counts the same."""
        return statistics.fmean(share.correct / share.n for share in self.per_class if share.n)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            **self.overall.to_json(),
            "balanced": self.balanced,
            "per_class": [share.to_json() for share in self.per_class],
        }


def accuracy(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None, sets: Sets | None = None
) -> Accuracy:
    """Accuracy of a head on given features; with `sets`, of the head decomposed to them.

    Args:
        features: (N, C), the inputs of the head.
        labels: (N,) int64, from 0 to K - 1.
        weight, bias: (K, C), and (K,) or None.
        sets: K sets of filters; default all filters.

    Raises:
        InputError: shapes, labels or sets that do not fit each other.
    """
    check(features, labels, weight, bias, sets)
    return tallied((predictions(features, weight, bias, sets) == labels).double(), labels, len(weight))


def predictions(features: Tensor, weight: Tensor, bias: Tensor | None = None, sets: Sets | None = None) -> Tensor:
    """(N,) the class with the largest logit; with `sets`, of a head in which class c reads the filters sets[c] only."""
    kept = weight if sets is None else weight * members(sets, weight.shape[1]).to(weight)
    kept, shift = kept.to(features.dtype), None if bias is None else bias.to(features.dtype)
    return torch.nn.functional.linear(features, kept, shift).argmax(1)


def tallied(right: Tensor, labels: Tensor, classes: int) -> Accuracy:
    """`right` (N,), each from 0 to 1, summed over all images and per class."""
    sums = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, right)
    counts = labels.bincount(minlength=classes)
    per_class = tuple(Share(correct, n) for correct, n in zip(sums.tolist(), counts.tolist(), strict=True))
    return Accuracy(Share(float(right.sum()), len(labels)), per_class)


def members(sets: Sets, width: int) -> Tensor:
    """(K, C) bool: is filter j in the set of class c?

    Raises:
        InputError: an index that is not a filter, or one that appears twice in a set.
    """
    table = torch.zeros(len(sets), width, dtype=torch.bool)
    for number, chosen in enumerate(sets):
        listed = [int(index) for index in chosen]
        if len(set(listed)) < len(listed) or any(not 0 <= index < width for index in listed):
            raise InputError(
                f"The filters {listed[:9]} of class {number} must be different numbers from 0 to {width - 1}."
            )
        table[number, listed] = True
    return table


# --- what fits ---


def check(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None, sets: Sets | None = None
) -> None:
    """Refuse features, labels, a head and sets that do not fit each other.

    Raises:
        InputError: one sentence that names what does not fit.
    """
    if features.dim() != 2 or weight.dim() != 2 or features.shape[1] != weight.shape[1]:
        raise InputError(
            f"Features {list(features.shape)} and weight {list(weight.shape)} do not fit: give [images, filters] and "
            "[classes, filters]."
        )
    if labels.shape != features.shape[:1] or labels.dtype != torch.int64 or not len(labels):
        raise InputError(
            f"Labels {list(labels.shape)} of {labels.dtype} do not fit features {list(features.shape)}: give at least "
            "one image, and one whole number (int64) per image."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(weight):
        raise InputError(
            f"Labels run from {int(labels.min())} to {int(labels.max())}: the head has classes 0 to {len(weight) - 1}."
        )
    if bias is not None and tuple(bias.shape) != (len(weight),):
        raise InputError(f"The bias has shape {list(bias.shape)}: give one number for each of {len(weight)} classes.")
    if sets is not None and len(sets) != len(weight):
        raise InputError(f"{len(sets)} sets of filters for {len(weight)} classes: give one per class.")
    if sets is not None:
        members(sets, weight.shape[1])


def positive(**numbers: int) -> None:
    """Refuse counts below 1.

    Raises:
        InputError: it names the first such number.
    """
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1.")
