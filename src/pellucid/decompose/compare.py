"""How much sets of filters have to do with each other, with classes, with the images, and with what is confused.

N images, C filters, K classes. Responses are pooled activations (N, C) of any layer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

from .essential import Sets, members

# --- sets beside sets ---


@dataclass(frozen=True)
class MutualInformation:
    """In nats. `mean` is the published number: over all ordered pairs, each class paired with itself too.

    `itself` is the mean over those K pairs, which is entropy and says nothing of overlap; `others` over the rest.
    """

    mean: float
    itself: float
    others: float


@dataclass(frozen=True)
class Overlap:
    """Jaccard indices of the classes' sets.

    Attributes:
        pairs: (K, K) float64, |A and B| / |A or B|; 1 for two empty sets.
        mean: over pairs of different classes.
        chance: what `mean` would be on average for sets of the same sizes drawn at random.
    """

    pairs: Tensor
    mean: float
    chance: float


def mutual_information(sets: Sets, width: int) -> MutualInformation:
    """Mutual information of the sets' membership vectors, as published (Badola et al. 2021, arXiv:2112.07719).

    For classes a and b, with the filter drawn uniformly from C, and u, v in {0, 1} "is it in the set of a, of b":
        I(a, b) = sum over u, v of p(u, v) log(p(u, v) / (p(u) p(v))),
    averaged over all K^2 ordered pairs, a = b included. Disjoint sets inform about each other too, and 80 % of the
    published number is the entropy on the diagonal, so it cannot tell good sets from random ones: see `jaccard`.

    Raises:
        InputError: fewer than two sets, or indices that do not fit `width`.
    """
    table = _pairable(sets, width)
    inside = table @ table.T
    sizes = table.sum(1)
    one, other = sizes[:, None].expand_as(inside), sizes[None, :].expand_as(inside)
    joint = ((inside, one, other), (one - inside, one, width - other), (other - inside, width - one, other))
    cells = (*joint, (width - one - other + inside, width - one, width - other))
    total = torch.zeros_like(inside)
    for both, a, b in cells:
        share = both / width
        total += torch.where(both > 0, share * (both * width / (a * b).clamp(min=1)).clamp(min=1e-300).log(), 0.0)
    same = torch.eye(len(sets), dtype=torch.bool)
    return MutualInformation(float(total.mean()), float(total[same].mean()), float(total[~same].mean()))


def jaccard(sets: Sets, width: int) -> Overlap:
    """Jaccard index of every pair of classes' sets, and the level that chance gives.

    The chance level is exact: for independent sets of a and b of C filters, drawn uniformly, their intersection is
    hypergeometric and
        E[J] = sum over i of  i / (a + b - i) * binom(a, i) binom(C - a, b - i) / binom(C, b).

    Raises:
        InputError: fewer than two sets, or indices that do not fit `width`.
    """
    table = _pairable(sets, width)
    inside = table @ table.T
    sizes = table.sum(1)
    either = sizes[:, None] + sizes[None, :] - inside
    pairs = torch.where(either > 0, inside / either.clamp(min=1), 1.0)
    lengths = [len(chosen) for chosen in sets]
    counts = {size: lengths.count(size) for size in sorted(set(lengths))}
    total = sum(
        expected_jaccard(a, b, width) * (m * n if a != b else m * (m - 1))
        for a, m in counts.items()
        for b, n in counts.items()
    )
    return Overlap(pairs, _mean_of_pairs(pairs), total / (len(sets) * (len(sets) - 1)))


@cache
def expected_jaccard(a: int, b: int, width: int) -> float:
    """Mean Jaccard index of random sets of `a` and `b` of `width` filters; the formula is at `jaccard`."""
    if not (0 <= a <= width and 0 <= b <= width):
        raise InputError(f"Sets of {a} and {b} filters do not fit {width} filters: take no more than there are.")
    if a == b == 0:
        return 1.0
    ways = math.comb(width, b)
    terms = range(max(1, a + b - width), min(a, b) + 1)
    return sum(i / (a + b - i) * (math.comb(a, i) * math.comb(width - a, b - i) / ways) for i in terms)


# --- how selective a layer is ---


def psi(responses: Tensor, labels: Tensor, classes: int, *, share: float = 0.5, mean: bool = False) -> Tensor:
    """Psi (K,): how few filters hold `share` of an image's response, for each class; 1 is few, 0 is all.

    With r = a / |a|_1 sorted descending, m_i the least m such that r_1 + ... + r_m >= share, and M_c the median of m_i
    over the images of class c (their mean, if asked):
        psi_c = (C - M_c) / C            (Badola, Padmanabhan, Lal, MIWAI 2023).
    Each class is judged by its own images, however many: take `psi(...).nanmean()` for one number in which every class
    counts the same. The published code counts one filter fewer (those whose sum is still below `share`) and assumes
    as many images in each class. An image without any response is left out; a class without images is NaN.

    Raises:
        InputError: negative responses, of which no share can be taken; a share that is not above 0 and up to 1.
    """
    _non_negative(responses, "psi")
    _labelled(responses, labels, classes)
    if not 0 < share <= 1:
        raise InputError(f"share={share:g} must be above 0 and at most 1.")
    responses = responses.double()
    total = responses.sum(1)
    ordered = responses.sort(dim=1, descending=True).values.cumsum(1)
    # Rounding may leave the last sum below the total: the whole of a response is always reached.
    needed = 1 + (ordered[:, :-1] < share * total[:, None]).sum(1)
    width = responses.shape[1]
    result = torch.full((classes,), math.nan, dtype=torch.float64)
    for number in range(classes):
        counts = needed[(labels == number) & (total > 0)].tolist()
        if counts:
            middle = statistics.fmean(counts) if mean else statistics.median(counts)
            result[number] = (width - middle) / width
    return result


def class_selectivity(responses: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Class-selectivity index (C,) of every filter, from 0 (all classes alike) to 1 (one class only).

    With mu_c the mean response to the images of class c:
        (mu_max - mu_rest) / (mu_max + mu_rest),   mu_max the largest mu_c, mu_rest the mean of the other mu_c
    (Morcos et al. 2018; Leavitt and Morcos 2020). mu_rest is a mean of class means, not of images, so that a class
    with many images has no more say than one with few. Classes without images are left out; a filter that never
    responds has 0. Gradients flow through it: with a minus or plus it is the published regulariser.

    Raises:
        InputError: negative responses, or fewer than two classes with images.
    """
    _non_negative(responses, "class selectivity")
    _labelled(responses, labels, classes)
    counts = labels.bincount(minlength=classes)
    sums = torch.zeros(classes, responses.shape[1], dtype=responses.dtype, device=responses.device)
    sums = sums.index_add(0, labels, responses)
    there = counts > 0
    if int(there.sum()) < 2:
        raise InputError("Class selectivity compares classes: give images of at least two.")
    means = sums[there] / counts[there, None]
    largest = means.amax(0)
    rest = (means.sum(0) - largest) / (len(means) - 1)
    both = largest + rest
    return torch.where(both > 0, (largest - rest) / torch.where(both > 0, both, 1.0), 0.0)


# --- how stable sets are ---


@dataclass(frozen=True)
class Stability:
    """Mean Jaccard index, over classes, of sets found on `images` images with those found on others.

    Attributes:
        images: how many the sets were found on.
        against: "half" for the two halves of a random split, "all" for n random images beside all.
        mean: over draws.
        interval: quantiles of the draws at 95 %.
        chance: for random sets of the same sizes as those found on all images.
    """

    images: int
    against: str
    mean: float
    interval: tuple[float, float]
    chance: float


def stability(
    select: Callable[[Tensor], Sets],
    images: int,
    width: int,
    *,
    sizes: Sequence[int] = (),
    draws: int = 20,
    seed: int = 0,
) -> list[Stability]:
    """Would other images have given other sets?

    Args:
        select: finds sets on images of given numbers, an int64 tensor; it must cope with any sample.
        images: how many there are; numbers run from 0.
        width: C.
        sizes: numbers of images whose sets are compared with those of all images.
        draws: random halves, and samples of each size.
        seed: of the draws.

    Returns:
        The two halves first, then one row for each of `sizes`.

    Raises:
        InputError: fewer than two images, or a size that is not from 1 to `images`.
    """
    if images < 2 or draws < 1:
        raise InputError(f"{images} images and {draws} draws: stability needs two images and one draw at least.")
    if wrong := [size for size in sizes if not 1 <= size <= images]:
        raise InputError(f"A sample of {wrong[0]} images cannot be drawn: choose from 1 to {images}.")
    whole = select(torch.arange(images))
    chance = statistics.fmean(expected_jaccard(len(chosen), len(chosen), width) for chosen in whole)

    def order(*what: int | str) -> Tensor:
        return torch.randperm(images, generator=torch.Generator().manual_seed(seed_of("stability", seed, *what)))

    def row(size: int, against: str, found: list[float]) -> Stability:
        low, high = torch.tensor(found, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        return Stability(size, against, statistics.fmean(found), (low, high), chance)

    half = images // 2
    halves = [order("half", draw) for draw in range(draws)]
    rows = [row(half, "half", [agreement(select(one[:half]), select(one[half : 2 * half])) for one in halves])]
    for size in sizes:
        samples = [order("sample", size, draw)[:size].sort().values for draw in range(draws)]
        rows.append(row(size, "all", [agreement(select(sample), whole) for sample in samples]))
    return rows


def agreement(one: Sets, other: Sets) -> float:
    """Mean over classes of the Jaccard index of a class's two sets; 1 for two empty ones."""
    if len(one) != len(other) or not len(one):
        raise InputError(f"{len(one)} sets cannot be compared with {len(other)}: give the same classes.")
    pairs = [(set(a), set(b)) for a, b in zip(one, other, strict=True)]
    return statistics.fmean(len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs)


# --- overlap beside confusion ---


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
    rates and not counts, so that large classes do not count as confused. Pairs of the same class depend on each other,
    so p is by a permutation of the classes of one side (Mantel 1967): (1 + #{|rho*| >= |rho|}) / (1 + permutations).

    Args:
        overlap: (K, K) symmetric, any likeness of classes: `jaccard(...).pairs`, cosines of the head's rows, ...
        confusion: (K, K) counts, rows true.
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


def _mean_of_pairs(pairs: Tensor) -> float:
    k = len(pairs)
    return float((pairs.sum() - pairs.diagonal().sum()) / (k * (k - 1)))


def _pairable(sets: Sets, width: int) -> Tensor:
    if len(sets) < 2:
        raise InputError(f"{len(sets)} set of filters: give at least two classes to compare.")
    return members(sets, width).double()


def _non_negative(responses: Tensor, what: str) -> None:
    if responses.dim() != 2 or not responses.shape[1]:
        raise InputError(f"Responses have shape {list(responses.shape)}: give [images, filters].")
    if not bool((responses >= 0).all()):
        raise InputError(
            f"Some responses are negative or not numbers, and {what} is a matter of shares: take a layer after a ReLU."
        )


def _labelled(responses: Tensor, labels: Tensor, classes: int) -> None:
    if labels.shape != responses.shape[:1] or not len(labels):
        raise InputError(f"Labels {list(labels.shape)} do not fit responses {list(responses.shape)}: one an image.")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise InputError(f"Labels run from {int(labels.min())} to {int(labels.max())}: classes are 0 to {classes - 1}.")
