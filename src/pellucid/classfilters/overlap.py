"""Filters that classes share: Jaccard overlap, mutual information, and whether shared filters go with confusion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pellucid.classfilters.accuracy import Sets, members
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

# --- Jaccard overlap ---


@dataclass(frozen=True)
class Overlap:
    """Jaccard indices of the classes' sets.

    Attributes:
        pairs: (K, K) float64, |A and B| / |A or B|; 1 for two empty sets.
        mean: over pairs of different classes.
        chance: the expected `mean` of random sets of the same sizes.
    """

    pairs: Tensor
    mean: float
    chance: float


def jaccard(sets: Sets, width: int) -> Overlap:
    """Jaccard index of every pair of classes' sets, and its chance level.

    The chance level is exact: for independent sets of a and of b of C filters, drawn uniformly, the size of their
    intersection is hypergeometric and
        E[J] = sum over i of  i / (a + b - i) * binom(a, i) binom(C - a, b - i) / binom(C, b).

    Raises:
        InputError: fewer than two sets, or indices that do not fit `width`.
    """
    _at_least_two(sets)
    pairs = jaccard_pairs(sets, width)
    lengths = [len(chosen) for chosen in sets]
    counts = {size: lengths.count(size) for size in sorted(set(lengths))}
    total = sum(
        expected_jaccard(a, b, width) * (m * n if a != b else m * (m - 1))
        for a, m in counts.items()
        for b, n in counts.items()
    )
    k = len(sets)
    mean = float((pairs.sum() - pairs.diagonal().sum()) / (k * (k - 1)))
    return Overlap(pairs, mean, total / (k * (k - 1)))


def jaccard_pairs(sets: Sets, width: int) -> Tensor:
    """(K, K) float64: |A and B| / |A or B| of every pair of classes' sets; 1 for two empty ones.

    Raises:
        InputError: indices that do not fit `width`.
    """
    table = members(sets, width).double()
    both, sizes = table @ table.T, table.sum(1)
    either = sizes[:, None] + sizes[None, :] - both
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


@cache
def expected_jaccard(a: int, b: int, width: int) -> float:
    """Expected Jaccard index of random sets of `a` and `b` out of `width` filters; for the formula see `jaccard`."""
    if not (0 <= a <= width and 0 <= b <= width):
        raise InputError(f"Sets of {a} and {b} filters do not fit {width} filters: take no more than there are.")
    if a == b == 0:
        return 1.0
    ways = math.comb(width, b)
    terms = range(max(1, a + b - width), min(a, b) + 1)
    return sum(i / (a + b - i) * (math.comb(a, i) * math.comb(width - a, b - i) / ways) for i in terms)


# --- mutual information ---


@dataclass(frozen=True)
class MutualInformation:
    """In nats. `mean` is the published number: over all ordered pairs, each class also paired with itself.

    `itself` is the mean over those K pairs, which is entropy and says nothing about overlap; `others` over the rest.
    """

    mean: float
    itself: float
    others: float


def mutual_information(sets: Sets, width: int) -> MutualInformation:
    """Mutual information of the sets' membership vectors, as published (Badola et al. 2021, arXiv:2112.07719).

    For classes a and b, with the filter drawn uniformly from C, and u, v in {0, 1} "is it in the set of a, of b":
        I(a, b) = sum over u, v of p(u, v) log(p(u, v) / (p(u) p(v))),
    averaged over all K^2 ordered pairs, a = b included. Disjoint sets are informative about each other too, and 80 % of
    the published number is the entropy on the diagonal, so it cannot distinguish good sets from random ones: see
    `jaccard`.

    Raises:
        InputError: fewer than two sets, or indices that do not fit `width`.
    """
    _at_least_two(sets)
    table = members(sets, width).double()
    inside = table @ table.T
    sizes = table.sum(1)
    one, other = sizes[:, None].expand_as(inside), sizes[None, :].expand_as(inside)
    joint = ((inside, one, other), (one - inside, one, width - other), (other - inside, width - one, other))
    cells = (*joint, (width - one - other + inside, width - one, width - other))
    total = torch.zeros_like(inside)
    for both, a, b in cells:
        fraction = both / width
        total += torch.where(both > 0, fraction * (both * width / (a * b).clamp(min=1)).clamp(min=1e-300).log(), 0.0)
    same = torch.eye(len(sets), dtype=torch.bool)
    return MutualInformation(float(total.mean()), float(total[same].mean()), float(total[~same].mean()))


def _at_least_two(sets: Sets) -> None:
    if len(sets) < 2:
        raise InputError(f"{len(sets)} set of filters: give at least two classes to compare.")


# --- overlap and confusion ---


@dataclass(frozen=True)
class Association:
    """Spearman's `rho` over `pairs` of classes; None where one side is constant. `p` by `permutations`, two-sided."""

    rho: float | None
    p: float | None
    pairs: int
    permutations: int


def confusion_overlap(overlap: Tensor, confusion: Tensor, *, permutations: int = 999, seed: int = 0) -> Association:
    """Are classes that share filters the ones that are confused?

    Spearman's rank correlation, over pairs of classes a < b, of overlap[a, b] with the rate of confusion
        confusion[a, b] / n_a + confusion[b, a] / n_b,
    rates and not counts, so that large classes do not count as confused. Pairs that share a class are not independent,
    so p is found by permuting the classes of one side (Mantel 1967): (1 + #{|rho*| >= |rho|}) / (1 + permutations).

    Args:
        overlap: (K, K) symmetric, any similarity of classes: `jaccard(...).pairs`, cosines of the head's rows, ...
        confusion: (K, K) counts, rows are true classes.
        permutations: of the classes.
        seed: of the permutations.

    Raises:
        InputError: shapes that do not fit, or fewer than three classes with images.
    """
    classes = len(confusion)
    if confusion.shape != (classes, classes) or overlap.shape != confusion.shape:
        raise InputError(
            f"Overlap {list(overlap.shape)} and confusion {list(confusion.shape)} must both be [classes, classes]."
        )
    if permutations < 1:
        raise InputError(f"permutations={permutations} must be at least 1.")
    counts = confusion.double()
    there = counts.sum(1).nonzero()[:, 0]
    if len(there) < 3:
        raise InputError(f"{len(there)} classes with images: a correlation over pairs needs at least three.")
    rates = counts / counts.sum(1, keepdim=True).clamp(min=1)
    rates = (rates + rates.T)[there][:, there]
    shared = overlap.double()[there][:, there]
    k = len(there)
    above = torch.triu_indices(k, k, 1)
    x, y = _ranks(shared[above[0], above[1]]), _ranks(rates[above[0], above[1]])
    x, y = x - x.mean(), y - y.mean()
    norm = float(x.norm() * y.norm())
    if not norm:
        return Association(None, None, len(x), permutations)
    ranked = torch.zeros(k, k, dtype=torch.float64)
    ranked[above[0], above[1]] = x
    ranked = ranked + ranked.T
    rho = float(x @ y) / norm
    generator = torch.Generator().manual_seed(seed_of("mantel", seed))
    as_extreme = 0
    for _ in range(permutations):
        order = torch.randperm(k, generator=generator)
        # A permutation that gives the same value in another order of sums counts as reaching it.
        other = float(ranked[order[above[0]], order[above[1]]] @ y) / norm
        as_extreme += abs(other) >= abs(rho) - 1e-12
    return Association(rho, (1 + as_extreme) / (1 + permutations), len(x), permutations)


# --- details ---


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, ties sharing the mean of theirs; what differs by rounding only is a tie."""
    _, place, counts = values.round(decimals=12).unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[place]
