"""Random changes of the images before each step: shifts, flips and crops, drawn for every image separately.

A view takes images, `draws` uniform random numbers in [0, 1) per image, and the fraction of the steps that is done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.core.seeds import seed_of


class View(Protocol):
    """A random change of images."""

    draws: int

    def __call__(self, images: Tensor, draws: Tensor, done: float) -> Tensor:
        """The changed images (B, C, H, W) of images (B, C, H, W) and draws (B, `draws`)."""
        ...


@dataclass(frozen=True)
class Jitter:
    """Roll every image by up to `pixels` along both axes; what leaves at one edge enters at the opposite one."""

    pixels: int
    draws = 2

    def __call__(self, images: Tensor, draws: Tensor, done: float) -> Tensor:
        height, width = images.shape[2:]
        by = (draws * (2 * self.pixels + 1)).floor().long() - self.pixels
        rows = (torch.arange(height, device=images.device) - by[:, :1]) % height
        columns = (torch.arange(width, device=images.device) - by[:, 1:]) % width
        return _PermutePixels.apply(images, rows[:, :, None] * width + columns[:, None, :])


@dataclass(frozen=True)
class Flip:
    """Mirror each image left to right with this probability."""

    probability: float = 0.5
    draws = 1

    def __call__(self, images: Tensor, draws: Tensor, done: float) -> Tensor:
        return torch.where((draws < self.probability)[:, :, None, None], images.flip(3), images)


@dataclass(frozen=True)
class Crop:
    """A random part of each image, resized to the whole (bilinear), as in SRe2L (Yin et al. 2023).

    The crop covers a fraction of the area between `smallest` and 1; its aspect ratio is between 3/4 and 4/3, uniform
    in the logarithm. With `curriculum` (CDA: Yin and Shen 2024) the lower bound of the area falls from 1 to `smallest`
    along a cosine over the steps.
    """

    smallest: float = 0.08
    curriculum: bool = False
    draws = 4

    def __call__(self, images: Tensor, draws: Tensor, done: float) -> Tensor:
        least = self.smallest
        if self.curriculum:
            least += (1 - self.smallest) * (1 + math.cos(math.pi * done)) / 2
        area = least + (1 - least) * draws[:, 0]
        ratio = ((2 * draws[:, 1] - 1) * math.log(4 / 3)).exp()
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)  # width, height
        middle = (2 * draws[:, 2:] - 1) * (1 - sides)
        theta = torch.cat([torch.diag_embed(sides), middle.unsqueeze(2)], 2)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class ViewSequence:
    """All views of a recipe, applied in order; every draw is a function of (seed, image number, step) alone."""

    def __init__(self, views: Sequence[View], numbers: Tensor, steps: int, seed: int) -> None:
        self.views, self.steps = tuple(views), steps
        width = sum(view.draws for view in self.views)
        self.draws = torch.empty(steps, len(numbers), width)
        for place, number in enumerate(numbers.tolist()):
            generator = torch.Generator().manual_seed(seed_of("views", seed, number))
            self.draws[:, place] = torch.rand(steps, width, generator=generator)

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """The images that the network sees at `step`, counted from 0."""
        at = 0
        for view in self.views:
            drawn = self.draws[step, :, at : at + view.draws].to(images.device)
            images = view(images, drawn, step / max(1, self.steps - 1))
            at += view.draws
        return images


class _PermutePixels(torch.autograd.Function):
    """Pixels in another order. The gradient is gathered by the inverse order, faster than scattering it."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return _gathered(images, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        flat = order.flatten(1)
        places = torch.arange(flat.shape[1], device=flat.device).expand_as(flat)
        inverse = torch.empty_like(flat).scatter_(1, flat, places)
        return _gathered(gradients[0], inverse.view_as(order)), None


def _gathered(images: Tensor, order: Tensor) -> Tensor:
    """Pixels of images (B, C, H, W) at the places `order` (B, H, W)."""
    flat = order.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, flat).view_as(images)
