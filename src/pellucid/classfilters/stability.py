"""How far sets of filters agree when they are found again."""

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
