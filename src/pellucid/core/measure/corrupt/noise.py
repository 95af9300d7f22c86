"""Noise: Gaussian, shot, impulse and speckle (Hendrycks and Dietterich 2019, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.core.measure.corrupt.kind import Kind


def normal(x: Tensor, level: float, rng: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=rng)


def uniform(x: Tensor, level: float, rng: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=rng)


def photons(x: Tensor, full: float, rng: torch.Generator) -> Tensor:
    return torch.poisson(x * full, generator=rng)


def impulse(x: Tensor, fraction: float, draw: Tensor) -> Tensor:
    # Salt and pepper: a value is hit with probability `fraction`, and then is 0 or 1 with equal chance.
    return torch.where(draw < fraction / 2, 0.0, torch.where(draw < fraction, 1.0, x))


KINDS = {
    "gaussian_noise": Kind(
        "noise",
        (0.08, 0.12, 0.18, 0.26, 0.38),
        (0.04, 0.06, 0.08, 0.09, 0.10),
        "standard deviation",
        lambda x, sigma, draw: x + sigma * draw,
        normal,
    ),
    "shot_noise": Kind(
        "noise",
        (60.0, 25.0, 12.0, 5.0, 3.0),
        (500.0, 250.0, 100.0, 75.0, 50.0),
        "photons at full brightness",
        lambda x, full, counts: counts / full,
        photons,
    ),
    "impulse_noise": Kind(
        "noise",
        (0.03, 0.06, 0.09, 0.17, 0.27),
        (0.01, 0.02, 0.03, 0.05, 0.07),
        "fraction of values hit",
        impulse,
        uniform,
    ),
    "speckle_noise": Kind(
        "noise",
        (0.15, 0.2, 0.35, 0.45, 0.6),
        (0.06, 0.1, 0.12, 0.16, 0.2),
        "relative standard deviation",
        lambda x, sigma, draw: x + x * sigma * draw,
        normal,
        extra=True,
    ),
}
