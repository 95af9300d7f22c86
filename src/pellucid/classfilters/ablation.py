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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pellucid.classfilters.accuracy import CHUNK, Accuracy, Sets, answers, check, members, tallied
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

Noise = Literal["gaussian", "permutation", "mean"]
Guide = Literal["label", "answer"]


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
    positive(draws=draws)
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
    after = {name: tallied(values / draws, labels, classes) for name, values in right.items()}
    before = tallied((undisturbed == labels).double(), labels, classes)
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


def positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1.")
