"""Filters with the largest scores, and the fraction of a class's score that each holds."""

from __future__ import annotations

from torch import Tensor

from pellucid.core.errors import InputError


def top_sets(
    scores: Tensor, k: int, *, budget: int | None = None, positive: bool = False
) -> tuple[tuple[int, ...], ...]:
    """For each class its filters with the largest scores, largest first; ties go to the lower index.

    Args:
        scores: (K, C), any floating type.
        k: filters per class, 1 to C.
        budget: filters of all classes together, in place of `k` per class: the largest scores overall.
        positive: leave out filters whose score is not above 0, so that sets may be smaller.

    Raises:
        InputError: k is not from 1 to C.
    """
    classes, width = scores.shape
    if budget is None:
        if not 1 <= k <= width:
            raise InputError(f"k={k} filters per class: choose from 1 to {width}, the number of filters.")
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        ranked = zip(order.tolist(), scores, strict=True)
        return tuple(tuple(j for j in row if not positive or line[j] > 0) for row, line in ranked)
    sets: list[list[int]] = [[] for _ in range(classes)]
    flat = scores.flatten()
    for place in flat.argsort(descending=True, stable=True)[:budget].tolist():
        if not positive or flat[place] > 0:
            sets[place // width].append(place % width)
    return tuple(map(tuple, sets))


def fractions(scores: Tensor, total: float) -> tuple[float, ...]:
    """Each score divided by `total`; 0 where the total is not above 0."""
    return tuple(float(score) / total if total > 0 else 0.0 for score in scores)
