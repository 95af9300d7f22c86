"""What images look like before any network has seen them: smooth, with small norm. Independent of batch size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pellucid.core.errors import InputError

Prior = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TotalVariation:
    """Mean over images of the summed norms of the differences to the right, below, and along both diagonals.

    Args:
        weight: factor; at least 0.
        norm: "l2", as in DeepInversion, whose one norm over a whole batch of B images is about $\\sqrt B$ times this
            mean; or "l1", the mean absolute difference.

    Raises:
        InputError: a weight below 0.
    """

    weight: float
    norm: Literal["l2", "l1"] = "l2"

    def __post_init__(self) -> None:
        _check(self.weight, "total variation")

    def __call__(self, images: Tensor) -> Tensor:
        """The term, a scalar, of normalised images (B, C, H, W)."""
        x = images
        pairs = [
            (x[..., :, 1:], x[..., :, :-1]),
            (x[..., 1:, :], x[..., :-1, :]),
            (x[..., 1:, 1:], x[..., :-1, :-1]),
            (x[..., 1:, :-1], x[..., :-1, 1:]),
        ]
        gaps = [(a - b).flatten(1) for a, b in pairs if a.numel()]
        if self.norm == "l1":
            return self.weight * torch.stack([gap.abs().mean() for gap in gaps]).sum()
        # The tiny number keeps the gradient finite where all neighbours are equal.
        return self.weight * torch.stack([(gap.square().sum(1) + 1e-12).sqrt().mean() for gap in gaps]).sum()


@dataclass(frozen=True)
class L2:
    """Mean over images of the Euclidean norm.

    Args:
        weight: factor; at least 0.

    Raises:
        InputError: a weight below 0.
    """

    weight: float

    def __post_init__(self) -> None:
        _check(self.weight, "L2 norm")

    def __call__(self, images: Tensor) -> Tensor:
        """The term, a scalar, of normalised images (B, C, H, W)."""
        return self.weight * (images.flatten(1).square().sum(1) + 1e-12).sqrt().mean()


def _check(weight: float, what: str) -> None:
    if not 0 <= weight < math.inf:
        raise InputError(f"A weight of {weight:g} of the {what} is out of range: give at least 0.")
