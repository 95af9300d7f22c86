"""The steps of the search: how many, at which learning rate, and when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pellucid.core.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """How many steps Adam takes, and how.

    Args:
        steps: number of steps, at least 1.
        lr: learning rate, above 0.
        betas: Adam's decay rates.
        decay: how the learning rate falls over a stage: "cosine", "constant", or "plateau": to a tenth after
            `patience` without a loss lower by 0.5 % of its size.
        warmup: fraction of a stage over which the learning rate rises linearly.
        patience: of "plateau", as a fraction of all steps.
        stop_after: end the search after this fraction of all steps without a loss lower by a tenth of its size; 0 means
            never.
        half: fraction of the steps in which the network sees the images at half their size (Yin et al. 2020, section
            4.3); in the rest it sees them whole, with a fresh Adam.
        clip: keep pixels in [0, 1].
        keep: return the images with the "best" loss without views, or the "last" ones.

    Raises:
        InputError: fewer than 1 step, a learning rate that is not above 0, or a fraction outside [0, 1).
    """

    steps: int = 300
    lr: float = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    decay: Literal["cosine", "constant", "plateau"] = "cosine"
    warmup: float = 0.0
    patience: float = 0.05
    stop_after: float = 0.0
    half: float = 0.0
    clip: bool = True
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"{self.steps!r} steps are out of range: give a whole number of at least 1.")
        if not 0 < self.lr < math.inf:
            raise InputError(f"A learning rate of {self.lr:g} is out of range: give one above 0.")
        for name in ("warmup", "half", "stop_after", "patience"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"{name} {getattr(self, name):g} is not a fraction of the steps: give one from 0 to below 1."
                )

    def stages(self) -> list[tuple[int, int, int]]:
        """(first step, end, factor by which images are shrunk) for each stage."""
        turn = round(self.half * self.steps)
        return [stage for stage in ((0, turn, 2), (turn, self.steps, 1)) if stage[0] < stage[1]]

    def rate(self, done: float) -> float:
        """The factor of `lr` when the fraction `done` of a stage has passed."""
        factor = (1 + math.cos(math.pi * done)) / 2 if self.decay == "cosine" else 1.0
        return factor * min(1.0, (done + 1e-9) / self.warmup) if self.warmup else factor


def falls(loss: float, lowest: float, by: float) -> bool:
    """Whether `loss` is lower than `lowest` by the fraction `by` of its size, whatever the sign.

    Losses are negative where a logit is raised: there 0.9 times the lowest loss so far would be a higher one.
    """
    return loss < (1 - by if lowest >= 0 else 1 + by) * lowest


class Plateau:
    """A factor of the learning rate: divided by 10 whenever `patience` steps bring no loss lower by 0.5 %."""

    def __init__(self, patience: int) -> None:
        self.patience, self.best, self.bad, self.factor = patience, math.inf, 0, 1.0

    def step(self, loss: float) -> float:
        """The factor after a step with this loss."""
        if falls(loss, self.best, 0.005):
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        if self.bad > self.patience:
            self.factor, self.bad = self.factor / 10, 0
        return self.factor
