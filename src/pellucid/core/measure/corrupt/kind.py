"""What a corruption is: its published strengths, the random draw per image, and the operation on a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Family = Literal["noise", "blur", "weather", "digital"]
Strengths = Literal["imagenet", "cifar"]
PUBLISHED: dict[Strengths, str] = {"imagenet": "ImageNet-C", "cifar": "CIFAR-10-C"}  # the sets that have them
LARGE = 97  # from this shorter side on the strengths are those of ImageNet-C, below it those of CIFAR-10-C


@dataclass(frozen=True)
class Kind:
    """One corruption.

    Attributes:
        family: noise, blur, weather or digital, as in the paper.
        levels: ImageNet-C's strengths of severities 1 to 5, numbers or tuples of numbers.
        small_levels: CIFAR-10-C's.
        unit: of a level that is one number; empty where a level is several numbers.
        apply: `(images (B, C, H, W) in [0, 1], level, draws (B, ...) or None) -> images`, not yet clipped. Every
            output pixel results from the same operations in the same order for any B.
        draw: `(image (C, H, W) on the CPU, level, generator) -> tensor`: all random numbers for one image.
        extra: one of the four meant for validation, which are not among the fifteen of the benchmark.
    """

    family: Family
    levels: Sequence[Any]
    small_levels: Sequence[Any]
    unit: str
    apply: Callable[[Tensor, Any, Tensor], Tensor]
    draw: Callable[[Tensor, Any, torch.Generator], Tensor] | None = None
    extra: bool = False

    def levels_for(self, image_size: tuple[int, int]) -> Sequence[Any]:
        """The published strengths for images of (H, W) pixels."""
        return self.levels if strengths_for(image_size) == "imagenet" else self.small_levels


def strengths_for(image_size: tuple[int, int]) -> Strengths:
    """Whose severities images of (H, W) pixels get, in every command and on the page."""
    return "imagenet" if min(image_size) >= LARGE else "cifar"
