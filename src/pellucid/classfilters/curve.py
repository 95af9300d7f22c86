"""Accuracy of a head against the number of filters that each class may use."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.classfilters.ablation import positive
from pellucid.classfilters.accuracy import Sets, Share, answers, check, tallied
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy of a head that sees `k` filters a class, beside random ones.

    Attributes:
        k: the key it was asked under.
        filters: mean size of the sets.
        accuracy, interval: of the sets, with a bootstrap interval at 95 % over images.
        random, random_interval: mean over draws of random sets of the same sizes, with a bootstrap interval at 95 %
            over draws and images.
        per_class: of the sets.
    """

    k: int
    filters: float
    accuracy: float
    interval: tuple[float, float]
    random: float
    random_interval: tuple[float, float]
    per_class: tuple[Share, ...]


def accuracy_curve(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sets: Mapping[int, Sets],
    *,
    fitted: Mapping[int, tuple[Tensor, Tensor | None]] | None = None,
    draws: int = 10,
    resamples: int = 1000,
    seed: int = 0,
) -> list[CurvePoint]:
    """Accuracy of the decomposed head by number of filters, beside random filters of the same number.

    Args:
        features, labels, weight, bias: as for `accuracy`.
        sets: for each k its K sets (`top_sets` makes nested ones of scores).
        fitted: for some k, weights (K, C) and bias that were fitted to its sets; the random sets keep the model's own.
        draws: draws of random sets.
        resamples: of the bootstrap.
        seed: of draws and bootstrap.

    Returns:
        One point a key of `sets`, in ascending order.

    Raises:
        InputError: shapes, labels or sets that do not fit each other, no draw or no resample.
    """
    positive(draws=draws, resamples=resamples)
    points = []
    for k in sorted(sets):
        own_weight, own_bias = (fitted or {}).get(k, (weight, bias))
        check(features, labels, own_weight, own_bias, sets[k])
        right = (answers(features, own_weight, own_bias, sets[k]) == labels).double()
        sizes = [len(chosen) for chosen in sets[k]]
        control = torch.empty(draws, len(labels), dtype=torch.float64)
        for draw in range(draws):
            drawn = random_sets(sizes, weight.shape[1], seed_of("curve", seed, k, draw))
            control[draw] = answers(features, weight, bias, drawn) == labels
        points.append(
            CurvePoint(
                k=k,
                filters=statistics.fmean(sizes),
                accuracy=float(right.mean()),
                interval=bootstrap(right[None], resamples=resamples, seed=seed_of("bootstrap", seed, k)),
                random=float(control.mean()),
                random_interval=bootstrap(control, resamples=resamples, seed=seed_of("bootstrap of random", seed, k)),
                per_class=tallied(right, labels, len(weight)).per_class,
            )
        )
    return points


def top_sets(scores: Tensor, k: int) -> tuple[tuple[int, ...], ...]:
    """For each class the k filters with the largest of `scores` (K, C), largest first, the earlier one on a tie.

    Raises:
        InputError: k is not from 1 to C.
    """
    if not 1 <= k <= scores.shape[1]:
        raise InputError(f"k={k} filters a class: choose from 1 to {scores.shape[1]}, the number of filters.")
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return tuple(tuple(row) for row in order.tolist())


def random_sets(sizes: Sequence[int], width: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """For each size that many of `width` filters, drawn without replacement, each set by itself."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(tuple(torch.randperm(width, generator=generator)[:size].tolist()) for size in sizes)


def bootstrap(values: Tensor, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval for the mean of `values` (D, N): images (columns) and draws (rows) are drawn anew.

    With one row that is the ordinary bootstrap over images (Efron 1979). Where all values are equal the interval has no
    width, which says that the images cannot tell, not that the value is certain; Wilson's interval does not collapse.
    """
    positive(resamples=resamples)
    generator = torch.Generator().manual_seed(seed)
    d, n = values.shape
    values = values.double()
    means = torch.empty(resamples, dtype=torch.float64)
    for place in range(resamples):
        columns = torch.randint(n, (n,), generator=generator)
        # A row drawn twice counts twice; the columns are shared, since all draws are tried on the same images.
        rows = torch.randint(d, (d,), generator=generator).bincount(minlength=d).double() / d
        means[place] = (rows @ values)[columns].mean()
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high
