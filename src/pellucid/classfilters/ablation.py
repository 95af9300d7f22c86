"""Do the filters of a class decide it? Accuracy of a linear head while some of its inputs are replaced.

Everything here is a function of features (N, C) at the input of a linear head, labels (N,), the head's weight (K, C)
and bias (K,) or None, and one set of filters per class, however it was found. Features are read in one pass
(`responses`). N images, C filters, K classes.

The published test (Badola, Roy, Padmanabhan, Lal 2021, arXiv:2112.07719) replaces the filters of the label's class by
N(0, 1) noise, then all the others, and counts the images that are still classified correctly. Four things are added:

- a control, as many of the other filters as the class has, drawn at random: without it, losing 5 filters of 64 is
  compared with losing 59;
- noise that features could hold: the values of another image, or the mean;
- filters chosen by the predicted class instead of the label: noise guided by the label removes evidence for the other
  classes while the evidence for the label stays, which flatters the sets;
- intervals, and several draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pellucid.classfilters.accuracy import Accuracy, Sets, check, members, positive, predictions, tallied
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

CHUNK = 2**22  # feature values replaced at once

Noise = Literal["gaussian", "permutation", "mean"]
Guide = Literal["label", "answer"]


@dataclass(frozen=True)
class Essentiality:
    """Accuracy of the whole head while filters are replaced.

    A lower accuracy after `influential` than after `others` is evidence that the sets decide their classes.

    Attributes:
        noise, by: as requested.
        draws: random draws that the accuracies are means over (with noise "mean" only `others` is random).
        seed: of the draws.
        before: nothing replaced.
        influential: the filters of the image's class replaced.
        others: as many of the remaining filters, drawn at random for each class in each draw; all of them where fewer
            remain.
        rest: all the remaining filters, as published.
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
        noise: what replaces a filter's value. "gaussian": N(0, 1), whatever the scale of the features, as published;
            "permutation": its value for another of the images, with an independent permutation per filter
            (Breiman 2001); "mean": its mean.
        by: which class's filters: "label", the true class (as published); "answer", the class that the undisturbed
            head predicts, for which no label is needed.
        means: (C,) for "mean"; default the means of the given features.
        draws: draws of noise and of random other filters; accuracies are means over them.
        seed: of the draws.

    Raises:
        InputError: shapes, labels or sets that do not fit each other, an unknown noise or guide, or no draw.
    """
    check(features, labels, weight, bias, sets)
    positive(draws=draws)
    if noise not in get_args(Noise):
        raise InputError(f"noise={noise!r} is unknown: choose one of {', '.join(get_args(Noise))}.")
    if by not in get_args(Guide):
        raise InputError(f"by={by!r} is unknown: choose one of {', '.join(get_args(Guide))}.")
    if means is not None and tuple(means.shape) != (features.shape[1],):
        raise InputError(f"means have shape {list(means.shape)}: give one for each of {features.shape[1]} filters.")
    classes, width = weight.shape
    undisturbed = predictions(features, weight, bias)
    guide = labels if by == "label" else undisturbed
    own = members(sets, width)
    middle = features.mean(0) if means is None else means.to(features)
    right = {name: torch.zeros(len(labels), dtype=torch.float64) for name in ("influential", "others", "rest")}
    for draw in range(draws):
        others = _others(own, seed_of("others", seed, draw))
        for rows, replacement in _noise(noise, features, middle, seed_of(noise, seed, draw)):
            kept, classes_of = features[rows], guide[rows]
            for name, table in (("influential", own), ("others", others), ("rest", ~own)):
                mixed = torch.where(table[classes_of], replacement, kept)
                right[name][rows] += (predictions(mixed, weight, bias) == labels[rows]).double()
    after = {name: tallied(values / draws, labels, classes) for name, values in right.items()}
    before = tallied((undisturbed == labels).double(), labels, classes)
    return Essentiality(noise, by, draws, seed, before, **after)


def _noise(kind: Noise, features: Tensor, means: Tensor, seed: int) -> Iterator[tuple[slice, Tensor]]:
    """For one stretch of images after another, the values (n, C) that would replace theirs."""
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
    """(K, C) bool: for each class as many filters outside its set as there are in it, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(own.shape, generator=generator).masked_fill(own, 2.0).argsort(1).argsort(1)
    return (ranks < own.sum(1, keepdim=True)) & ~own
