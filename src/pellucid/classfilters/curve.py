"""Accuracy of a head against the number of filters per class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.classfilters.accuracy import Sets, check, positive, predictions, tallied
from pellucid.classfilters.controls import CHOSEN, DRAWS, compare
from pellucid.core.measure.share import Share
from pellucid.core.seeds import seed_of


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy of a head that reads about `k` filters per class, next to random ones.

    Attributes:
        k: the key of the sets.
        filters: mean number of filters per class, of the sets and of the random ones alike.
        accuracy, interval: of the sets, with a 95 % bootstrap interval over images.
        random, random_interval: mean over draws of random sets of the same sizes, with a 95 % bootstrap interval over
            draws and images.
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
    draws: int = DRAWS,
    resamples: int = 1000,
    seed: int = 0,
) -> list[CurvePoint]:
    """Accuracy of the decomposed head by number of filters, next to as many random filters.

    Args:
        features, labels, weight, bias: as for `accuracy`.
        sets: for each k its K sets (`top_sets` makes nested ones from scores).
        fitted: for some k, weights (K, C) and bias that were fitted to its sets; the random sets keep the model's own.
        draws: draws of random sets.
        resamples: resamples of the bootstrap.
        seed: of draws and bootstrap.

    Returns:
        One point per key of `sets`, in ascending order.

    Raises:
        InputError: shapes, labels or sets that do not fit each other, no draw or no resample.
    """
    positive(draws=draws, resamples=resamples)
    points = []
    for k in sorted(sets):
        own = (fitted or {}).get(k, (weight, bias))
        check(features, labels, *own, sets[k])

        def score(named: Mapping[str, Sets], own: tuple[Tensor, Tensor | None] = own) -> dict[str, Tensor]:
            heads = {name: own if name == CHOSEN else (weight, bias) for name in named}
            return {name: predictions(features, *heads[name], named[name]) == labels for name in named}

        found = compare(score, sets[k], weight.shape[1], draws=draws, seed=seed_of("curve", seed, k))
        right, control = found.chosen.right.double(), found.random.right.double()
        points.append(
            CurvePoint(
                k=k,
                filters=found.chosen.filters,
                accuracy=float(right.mean()),
                interval=bootstrap(right, resamples=resamples, seed=seed_of("bootstrap", seed, k)),
                random=float(control.mean()),
                random_interval=bootstrap(control, resamples=resamples, seed=seed_of("bootstrap of random", seed, k)),
                per_class=tallied(right[0], labels, len(weight)).per_class,
            )
        )
    return points


def bootstrap(values: Tensor, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval for the mean of `values` (D, N): both images (columns) and draws (rows) are resampled.

    With one row that is the ordinary bootstrap over images (Efron 1979). Where all values are equal the interval has no
    width: the images cannot show any spread, which does not make the value certain. Wilson's interval does not
    collapse.
    """
    positive(resamples=resamples)
    generator = torch.Generator().manual_seed(seed)
    d, n = values.shape
    values = values.double()
    means = torch.empty(resamples, dtype=torch.float64)
    for place in range(resamples):
        columns = torch.randint(n, (n,), generator=generator)
        # A row drawn twice counts twice; the columns are shared, since all draws are scored on the same images.
        rows = torch.randint(d, (d,), generator=generator).bincount(minlength=d).double() / d
        means[place] = (rows @ values)[columns].mean()
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high
