"""What the network should predict for the images: a class, a distribution, or something that another network denies."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from pellucid.core.errors import InputError


@dataclass(frozen=True)
class CrossEntropy:
    """Mean over images of $-\\sum_k t_k \\log \\mathrm{softmax}(z / T)_k$: logits z, targets t, temperature T."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"A temperature of {self.temperature:g} is out of range: give one above 0.")

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar, of logits and targets (B, K); every row of targets sums to 1."""
        return F.cross_entropy(logits / self.temperature, targets)


@dataclass(frozen=True)
class Logit:
    """The negated mean over images of the target's logit, $-\\sum_k t_k z_k$."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar, of logits and targets (B, K)."""
        return -(logits * targets).sum(1).mean()


@dataclass(frozen=True)
class Disagreement:
    """Adaptive DeepInversion's competition (Yin et al. 2020, equation 7): $w (1 - \\mathrm{JS}(p, q))$.

    p and q are the teacher's and the student's probabilities at `temperature`, clipped to [0.01, 0.99]; JS, in nats,
    is clipped to [0, 1].

    Args:
        weight: w; at least 0.
        temperature: divides the logits of both networks.

    Raises:
        InputError: a weight below 0.
    """

    weight: float = 0.2
    temperature: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise InputError(f"A disagreement of {self.weight:g} is out of range: give at least 0.")

    def __call__(self, logits: Tensor, others: Tensor) -> Tensor:
        """The term, a scalar, of the logits (B, K) of the inverted network and of the other one."""
        p, q = ((z / self.temperature).softmax(1).clamp(0.01, 0.99) for z in (logits, others))
        log_middle = ((p + q) / 2).log()
        divergence = ((p * (p.log() - log_middle)).sum(1) + (q * (q.log() - log_middle)).sum(1)) / 2
        return self.weight * (1 - divergence.mean().clamp(0, 1))


Objective = CrossEntropy | Logit
