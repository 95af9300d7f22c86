"""What images are like before any network has seen them: smooth, and small. Per image, so that a batch's size is none
of their business."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prior = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TotalVariation:
    """Mean over images of the summed norms of the differences to the right, below, and along both diagonals.

    norm: "l2", as in DeepInversion (its one norm over a batch of B images is about $\\sqrt B$ times this), or "l1",
    the mean absolute difference.
    """

    weight: float
    norm: Literal["l2", "l1"] = "l2"

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W), normalised, to a scalar."""
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
        # The tiny number keeps the gradient finite where neighbours are equal throughout.
        return self.weight * torch.stack([(gap.square().sum(1) + 1e-12).sqrt().mean() for gap in gaps]).sum()


@dataclass(frozen=True)
class L2:
    """Mean over images of the norm."""

    weight: float

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W), normalised, to a scalar."""
        return self.weight * (images.flatten(1).square().sum(1) + 1e-12).sqrt().mean()
