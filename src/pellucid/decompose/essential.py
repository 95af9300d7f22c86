"""Do the filters of a class decide it? Accuracy of a linear head when some of its inputs are disturbed or left out.

Everything here is a function of features (N, C) at the input of a linear head, labels (N,), the head's weight (K, C)
and bias (K,) or None, and index sets, one a class: how the sets were found does not matter. Features are read in one
pass (`evidence.responses`). N images, C filters, K classes.

The published test (Badola, Roy, Padmanabhan, Lal 2021, arXiv:2112.07719) replaces by N(0, 1) noise the filters of the
label's class, then all the others, and counts the images that are still answered right. Four things are added here:

- as many others as the class has filters, drawn at random: without them a class of 5 filters of 64 is compared with
  the loss of 59;
- noise that features could hold: another image's values, or the mean;
- filters chosen by the answer instead of the label: noise guided by the label takes evidence away from the other
  classes where the label's is left alone, and flatters the sets;
- intervals and several draws.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.core.metrics import wilson
from pellucid.core.seeds import seed_of

Sets = Sequence[Sequence[int]]
Noise = Literal["gaussian", "permutation", "mean"]
Guide = Literal["label", "answer"]

CHUNK = 2**22  # numbers of features disturbed at once


# --- what comes back ---


@dataclass(frozen=True)
class Share:
    """`correct` of `n` images, where `correct` is a mean over draws and need not be whole."""

    correct: float
    n: int

    @property
    def value(self) -> float | None:
        """correct / n; None without an image."""
        return self.correct / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's at 95 %. For a mean over draws it is wider than need be: such an image varies less than p(1-p)."""
        return wilson(self.correct, self.n)  # type: ignore[arg-type]  # the formula takes any share

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {"correct": self.correct, "n": self.n, "accuracy": self.value, "interval": list(self.interval)}


@dataclass(frozen=True)
class Accuracy:
    """Right answers over all images (`overall`) and of each class's images (`per_class`, K shares)."""

    overall: Share
    per_class: tuple[Share, ...]

    @property
    def balanced(self) -> float:
        """Mean of the classes' accuracies, over those that have images: each class counts the same."""
        return statistics.fmean(share.correct / share.n for share in self.per_class if share.n)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            **self.overall.to_json(),
            "balanced": self.balanced,
            "per_class": [share.to_json() for share in self.per_class],
        }


@dataclass(frozen=True)
class Essentiality:
    """Accuracy of the whole head while filters are disturbed; lower after `influential` than after `others` is proof.

    Attributes:
        noise, by: as asked.
        draws: random draws that the accuracies are means over (1 for the mean, but for `others`).
        seed: of the draws.
        before: nothing disturbed.
        influential: the filters of the image's class.
        others: as many of the remaining ones, drawn at random for each class in each draw; all where fewer remain.
        rest: all the remaining ones, as published.
    """

    noise: Noise
    by: Guide
    draws: int
    seed: int
    before: Accuracy
    influential: Accuracy
    others: Accuracy
    rest: Accuracy

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        parts = {name: getattr(self, name).to_json() for name in ("before", "influential", "others", "rest")}
        return {"noise": self.noise, "by": self.by, "draws": self.draws, "seed": self.seed, **parts}


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


# --- accuracy of a decomposed head ---


def members(sets: Sets, width: int) -> Tensor:
    """(K, C) bool: is filter j in the set of class c?

    Raises:
        InputError: an index that is not a filter, or one that comes twice in a set.
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


def answers(features: Tensor, weight: Tensor, bias: Tensor | None = None, sets: Sets | None = None) -> Tensor:
    """(N,) the class with the largest logit; of a head that sees only the filters in `sets`, if given.

    logit_c(x) = sum over j in sets[c] of a_j(x) W_cj + b_c, a row of W masked by the set.
    """
    kept = weight if sets is None else weight * members(sets, weight.shape[1]).to(weight)
    kept, shift = kept.to(features.dtype), None if bias is None else bias.to(features.dtype)
    return torch.nn.functional.linear(features, kept, shift).argmax(1)


def accuracy(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None, sets: Sets | None = None
) -> Accuracy:
    """Accuracy of a head on given features; of the head decomposed to `sets`, if given.

    Args:
        features: (N, C), what reaches the head.
        labels: (N,) from 0 to K - 1.
        weight, bias: (K, C) and (K,) or None.
        sets: K sets of filters; default all filters.

    Raises:
        InputError: shapes, labels or sets that do not fit each other.
    """
    check(features, labels, weight, bias, sets)
    return _accuracy((answers(features, weight, bias, sets) == labels).double(), labels, len(weight))


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
    _positive(draws=draws, resamples=resamples)
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
                per_class=_accuracy(right, labels, len(weight)).per_class,
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
    _positive(resamples=resamples)
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


# --- disturbing filters ---


def essentiality(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sets: Sets,
    *,
    noise: Noise = "gaussian",
    by: Guide = "label",
    means: Tensor | None = None,
    draws: int = 10,
    seed: int = 0,
) -> Essentiality:
    """Accuracy of the whole head while the filters of an image's class, or others, are replaced.

    Args:
        features, labels, weight, bias: as for `accuracy`.
        sets: K sets of filters.
        noise: what a disturbed filter holds. "gaussian": N(0, 1), replacing and not added, as published, whatever the
            scale of the features; "permutation": what it holds for another of the images, each filter by a permutation
            of its own (Breiman 2001); "mean": its mean.
        by: whose filters: "label", the true class's (as published); "answer", those of the class that the undisturbed
            head answers, for which no label is needed.
        means: (C,) for "mean"; default those of the given features.
        draws: of noise and of random others; accuracies are means over them.
        seed: of the draws.

    Raises:
        InputError: shapes, labels or sets that do not fit each other, no such noise or guide, no draw.
    """
    check(features, labels, weight, bias, sets)
    _positive(draws=draws)
    if noise not in get_args(Noise):
        raise InputError(f"noise={noise!r} is unknown: choose one of {', '.join(get_args(Noise))}.")
    if by not in get_args(Guide):
        raise InputError(f"by={by!r} is unknown: choose one of {', '.join(get_args(Guide))}.")
    if means is not None and tuple(means.shape) != (features.shape[1],):
        raise InputError(f"means have shape {list(means.shape)}: give one for each of {features.shape[1]} filters.")
    classes, width = weight.shape
    undisturbed = answers(features, weight, bias)
    whose = labels if by == "label" else undisturbed
    own = members(sets, width)
    middle = features.mean(0) if means is None else means.to(features)
    right = {name: torch.zeros(len(labels), dtype=torch.float64) for name in ("influential", "others", "rest")}
    for draw in range(draws):
        others = _others(own, seed_of("others", seed, draw))
        disturbed = _noise(noise, features, middle, seed_of(noise, seed, draw))
        for rows, replacement in disturbed:
            kept, classes_of = features[rows], whose[rows]
            for name, table in (("influential", own), ("others", others), ("rest", ~own)):
                mixed = torch.where(table[classes_of], replacement, kept)
                right[name][rows] += (answers(mixed, weight, bias) == labels[rows]).double()
    after = {name: _accuracy(values / draws, labels, classes) for name, values in right.items()}
    before = _accuracy((undisturbed == labels).double(), labels, classes)
    return Essentiality(noise, by, draws, seed, before, **after)


def _noise(kind: Noise, features: Tensor, means: Tensor, seed: int) -> Iterator[tuple[slice, Tensor]]:
    """For one stretch of images after another, what their filters would be replaced by, (n, C)."""
    n, width = features.shape
    generator = torch.Generator().manual_seed(seed)
    permuted = features.clone() if kind == "permutation" else None
    if permuted is not None:
        for number in range(width):
            permuted[:, number] = features[torch.randperm(n, generator=generator), number]
    step = max(1, CHUNK // width)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        size = rows.stop - rows.start
        if permuted is not None:
            yield rows, permuted[rows]
        elif kind == "mean":
            yield rows, means.expand(size, width)
        else:
            yield rows, torch.randn(size, width, generator=generator, dtype=features.dtype)


def _others(own: Tensor, seed: int) -> Tensor:
    """(K, C) bool: for each class as many filters outside its set as it holds, at random."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(own.shape, generator=generator).masked_fill(own, 2.0).argsort(1).argsort(1)
    return (ranks < own.sum(1, keepdim=True)) & ~own


def _accuracy(right: Tensor, labels: Tensor, classes: int) -> Accuracy:
    """`right` (N,), each from 0 to 1, added up."""
    sums = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, right)
    counts = labels.bincount(minlength=classes)
    per_class = tuple(Share(correct, n) for correct, n in zip(sums.tolist(), counts.tolist(), strict=True))
    return Accuracy(Share(float(right.sum()), len(labels)), per_class)


# --- what fits ---


def check(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None, sets: Sets | None = None
) -> None:
    """Refuse, in one sentence, what does not fit each other.

    Raises:
        InputError: as it says.
    """
    if features.dim() != 2 or weight.dim() != 2 or features.shape[1] != weight.shape[1]:
        raise InputError(
            f"Features {list(features.shape)} and weight {list(weight.shape)} do not fit: give [images, filters] and "
            "[classes, filters]."
        )
    if labels.shape != features.shape[:1] or labels.dtype != torch.int64 or not len(labels):
        raise InputError(
            f"Labels {list(labels.shape)} of {labels.dtype} do not fit features {list(features.shape)}: give at least "
            "one, a whole number (int64) for each image."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(weight):
        raise InputError(
            f"Labels run from {int(labels.min())} to {int(labels.max())}: the head has classes 0 to {len(weight) - 1}."
        )
    if bias is not None and tuple(bias.shape) != (len(weight),):
        raise InputError(f"The bias has shape {list(bias.shape)}: give one number for each of {len(weight)} classes.")
    if sets is not None and len(sets) != len(weight):
        raise InputError(f"{len(sets)} sets of filters for {len(weight)} classes: give one a class.")
    if sets is not None:
        members(sets, weight.shape[1])


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1.")
