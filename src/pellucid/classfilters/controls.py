"""Accuracy with chosen filters, next to that with random filters: as many of them for each class.

A rule may choose fewer filters for a class than it was asked for, and random sets of a fixed size would then use more
filters than the sets that they are compared with. Here every random set has the size of the set that it stands for.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.classfilters.accuracy import Sets, positive
from pellucid.core.measure.share import Share
from pellucid.core.seeds import seed_of

DRAWS = 10  # random sets that a rule is compared with
CHOSEN = "chosen"  # what the sets themselves are called in the table that a score function gets


@dataclass(frozen=True, eq=False)
class Row:
    """How many filters sets use, and which images are classified correctly with them.

    Attributes:
        filters: mean number of filters per class.
        right: (D, N) bool: is image n classified correctly with draw d? One row for sets that are not random.
    """

    filters: float
    right: Tensor

    @property
    def share(self) -> Share:
        """Correctly classified images, a mean over draws."""
        draws, n = self.right.shape
        return Share(int(self.right.sum()) / draws, n)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest accuracy of a draw."""
        each = self.right.double().mean(1)
        return float(each.min()), float(each.max())


@dataclass(frozen=True, eq=False)
class Comparison:
    """Chosen sets next to random ones.

    Attributes:
        chosen, random: their rows.
        others: further sets that were scored in the same pass, by name.
        drawn: the random sets, one entry per draw.
    """

    chosen: Row
    random: Row
    others: Mapping[str, Row]
    drawn: tuple[Sets, ...]


def random_sets(sizes: Sequence[int], width: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """For each size a set of that many of `width` filters, drawn without replacement; sets are independent."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(tuple(torch.randperm(width, generator=generator)[:size].tolist()) for size in sizes)


def draw_like(sets: Sets, width: int, *, draws: int = DRAWS, seed: int = 0) -> tuple[Sets, ...]:
    """`draws` times random sets of `width` filters, each of the size of the set that it stands for.

    Raises:
        InputError: no draw.
    """
    positive(draws=draws)
    sizes = [len(chosen) for chosen in sets]
    return tuple(random_sets(sizes, width, seed_of("random sets", seed, draw)) for draw in range(draws))


def compare(
    score: Callable[[Mapping[str, Sets]], Mapping[str, Tensor]],
    sets: Sets,
    width: int,
    *,
    others: Mapping[str, Sets] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Score sets next to random sets of the same sizes, all by one function.

    Args:
        score: gets named sets (the given ones as "chosen", the random ones as "random 0", "random 1", ..., and
            `others`) and returns for each name which of the N images are classified correctly, (N,) bool.
        sets: K sets of filters.
        width: filters of the layer (C).
        others: further named sets for the same pass.
        draws: random sets to draw.
        seed: of the draws.

    Raises:
        InputError: no draw, or what `score` refuses.
    """
    drawn = draw_like(sets, width, draws=draws, seed=seed)
    names = [f"random {draw}" for draw in range(draws)]
    named = {CHOSEN: sets, **(others or {}), **dict(zip(names, drawn, strict=True))}
    right = score(named)

    def row(*which: str) -> Row:
        return Row(mean_size(named[which[0]]), torch.stack([right[name] for name in which]))

    return Comparison(row(CHOSEN), row(*names), {name: row(name) for name in others or {}}, drawn)


def mean_size(sets: Sets) -> float:
    """Mean number of filters per class."""
    return statistics.fmean(len(chosen) for chosen in sets)
