"""Stability of sets of filters: how well they agree when they are found again on other images."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.classfilters.accuracy import Sets
from pellucid.classfilters.overlap import expected_jaccard
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of


@dataclass(frozen=True)
class Stability:
    """Mean Jaccard index, over classes, of sets found on `images` images and those found on others.

    Attributes:
        images: how many images the sets were found on.
        against: what they are compared with: "half", the other half of a random split; "all", the sets found on all
            images.
        mean: over draws.
        interval: 2.5 % and 97.5 % quantiles of the draws.
        chance: the expected index of random sets of the same sizes as those found on all images.
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
    """Measure whether other images would have given other sets.

    Args:
        select: given the numbers of images (int64 tensor), returns the sets found on them; it must accept any sample.
        images: number of images; they are numbered from 0.
        width: number of filters (C).
        sizes: sample sizes whose sets are compared with those of all images.
        draws: number of random splits into halves, and of samples of each size.
        seed: of the draws.

    Returns:
        The row of the two halves, then one row for each of `sizes`.

    Raises:
        InputError: fewer than two images, or a size that is not from 1 to `images`.
    """
    if images < 2 or draws < 1:
        raise InputError(f"{images} images and {draws} draws: stability needs at least two images and one draw.")
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
