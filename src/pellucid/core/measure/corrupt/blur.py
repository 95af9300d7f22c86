"""Blur: defocus, frosted glass, motion, zoom and Gaussian (Hendrycks and Dietterich 2019, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pellucid.core.measure.corrupt.kind import Kind
from pellucid.core.measure.corrupt.resample import correlate, gaussian, gaussian_weights, inside, pick, zoomed


def disk(radius: float, alias: float) -> list[list[float]]:
    """A disk of `radius` pixels with sum 1, its rim softened by a Gaussian of `alias` pixels with 3 or 5 taps."""
    soft = 1 if radius <= 8 else 2
    reach = int(radius) + soft
    side = range(-reach, reach + 1)
    full = torch.tensor([[float(i * i + j * j <= radius * radius) for j in side] for i in side], dtype=torch.float64)
    taps = gaussian_weights(alias, (soft + 0.25) / alias)
    rim = [[a * b for b in taps] for a in taps]
    return correlate(full / full.sum(), rim, "nearest").tolist()


def defocus(x: Tensor, level: tuple[float, float], draw: Tensor) -> Tensor:
    return correlate(x, disk(*level), "mirror")


def shuffle(x: Tensor, level: tuple[float, int, int], rng: torch.Generator) -> Tensor:
    """(H * W,) source of each pixel after `rounds` passes that exchange every pixel with a random one near it."""
    _, reach, rounds = level
    height, width = x.shape[-2:]
    source = list(range(height * width))
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    steps = torch.randint(-reach, reach, (rounds, len(rows), len(columns), 2), generator=rng).tolist()
    for turn in steps:
        for row, line in zip(rows, turn, strict=True):
            for column, (down, right) in zip(columns, line, strict=True):
                a, b = row * width + column, (row + down) * width + column + right
                source[a], source[b] = source[b], source[a]
    return torch.tensor(source)


def glass(x: Tensor, level: tuple[float, int, int], source: Tensor) -> Tensor:
    blurred = gaussian(x, level[0]).flatten(2)
    moved = blurred.gather(2, source[:, None].expand(-1, x.shape[1], -1)).view_as(x)
    return gaussian(moved, level[0])


def trail(x: Tensor, level: tuple[float, float], rng: torch.Generator, low: float, high: float) -> Tensor:
    """(T, 2) integer offsets, down and right, along the path of a motion blur; its angle is uniform, in degrees."""
    angle = math.radians(low + (high - low) * float(torch.rand((), generator=rng)))
    steps = range(2 * math.ceil(level[0]) + 1)
    return torch.tensor([[math.ceil(k * math.sin(angle) - 0.5), math.ceil(k * math.cos(angle) - 0.5)] for k in steps])


def motion(x: Tensor, level: tuple[float, float], steps: Tensor) -> Tensor:
    """The mean along a trail (B, T, 2), weighted by half a Gaussian: step k by exp(-k^2 / 2 sigma^2)."""
    weights = [math.exp(-0.5 * (k / level[1]) ** 2) for k in range(steps.shape[1])]
    height, width = x.shape[-2:]
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    total = torch.zeros_like(x)
    for k, weight in enumerate(weights):
        down, right = steps[:, k, 0, None, None], steps[:, k, 1, None, None]
        at = inside(rows[:, None] + down, height, "nearest"), inside(columns + right, width, "nearest")
        total += (weight / sum(weights)) * pick(x, *at)
    return total


def zoom(x: Tensor, level: tuple[float, ...], draw: Tensor) -> Tensor:
    """The mean of the image and of itself enlarged by each factor."""
    total = x.clone()
    for factor in level:
        total += zoomed(x, factor)
    return total / (len(level) + 1)


def _factors(*ranges: tuple[int, int]) -> tuple[tuple[float, ...], ...]:
    """For (last, step) in hundredths: 1, 1 + step, ... up to 1 + last."""
    return tuple(tuple(1 + k / 100 for k in range(0, last + 1, step)) for last, step in ranges)


KINDS = {
    "defocus_blur": Kind(
        "blur",
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "",
        defocus,
    ),
    "glass_blur": Kind(
        "blur",
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "",
        glass,
        shuffle,
    ),
    "motion_blur": Kind(
        "blur",
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "",
        motion,
        lambda x, level, rng: trail(x, level, rng, -45, 45),
    ),
    "zoom_blur": Kind(
        "blur",
        _factors((11, 1), (15, 1), (20, 2), (24, 2), (30, 3)),
        _factors((6, 1), (11, 1), (15, 1), (20, 1), (25, 1)),
        "",
        zoom,
    ),
    "gaussian_blur": Kind(
        "blur",
        (1.0, 2.0, 3.0, 4.0, 6.0),
        (0.4, 0.6, 0.7, 0.8, 1.0),
        "standard deviation in pixels",
        lambda x, sigma, draw: gaussian(x, sigma),
        extra=True,
    ),
}
