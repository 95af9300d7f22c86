"""A fraction k of n and its interval.

Wilson's score interval for k successes of n (Wilson 1927), z the normal quantile of the level:

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),    p = k/n
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """`correct` of `n` images; a mean over several draws need not be a whole number."""

    correct: float
    n: int

    @classmethod
    def of(cls, right: Tensor) -> Share:
        """The fraction of true values in `right`, any shape."""
        return cls(int(right.sum()), right.numel())

    @property
    def value(self) -> float | None:
        """correct / n; None without an image."""
        return self.correct / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's at 95 %; wider than necessary for a mean over draws, where an image varies by less than p(1-p)."""
        return wilson(self.correct, self.n)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values: "correct", "n", "accuracy", "interval"."""
        return {"correct": self.correct, "n": self.n, "accuracy": self.value, "interval": list(self.interval)}


def wilson(k: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for the fraction k / n; (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = k / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At k = 0 and k = n the bounds are 0 and 1; rounding must not push them past p.
    return max(0.0, min(p, (middle - half) / scale)), min(1.0, max(p, (middle + half) / scale))
