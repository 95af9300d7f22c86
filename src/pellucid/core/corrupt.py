"""Seeded image corruptions at five severities (Hendrycks and Dietterich 2019, section 3 and appendix B).

Each image draws from its own stream, a function of (seed, kind, index): the same image is corrupted the same way in
any batch, on any device. Severities are the published ones of ImageNet-C; a number between them is allowed as
`level`, in the unit that the kind's entry names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of


@dataclass(frozen=True)
class Kind:
    """One corruption: `levels` for severities 1 to 5, the `unit` they are in, and how it is applied to one image."""

    levels: tuple[float, float, float, float, float]
    unit: str
    apply: Callable[[Tensor, float, torch.Generator], Tensor]


def _gaussian(x: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=rng)


def _shot(x: Tensor, photons: float, rng: torch.Generator) -> Tensor:
    return torch.poisson(x * photons, generator=rng) / photons


def _impulse(x: Tensor, fraction: float, rng: torch.Generator) -> Tensor:
    # Salt and pepper: a value is hit with probability `fraction`, and then is 0 or 1 with equal chance.
    draw = torch.rand(x.shape, generator=rng)
    return torch.where(draw < fraction / 2, 0.0, torch.where(draw < fraction, 1.0, x))


def _speckle(x: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
    return x + x * sigma * torch.randn(x.shape, generator=rng)


KINDS: dict[str, Kind] = {
    "gaussian_noise": Kind((0.08, 0.12, 0.18, 0.26, 0.38), "standard deviation", _gaussian),
    "shot_noise": Kind((60.0, 25.0, 12.0, 5.0, 3.0), "photons at full brightness", _shot),
    "impulse_noise": Kind((0.03, 0.06, 0.09, 0.17, 0.27), "fraction of values hit", _impulse),
    "speckle_noise": Kind((0.15, 0.2, 0.35, 0.45, 0.6), "relative standard deviation", _speckle),
}


def corrupt(
    images: Tensor,
    kind: str,
    severity: int | None = None,
    *,
    level: float | None = None,
    seed: int = 0,
    indices: Tensor | None = None,
) -> Tensor:
    """Corrupt `images` (B, C, H, W), values in [0, 1]; the result is clipped to [0, 1].

    Args:
        kind: a name in `KINDS`.
        severity: 1 to 5, or give `level` in the kind's unit instead.
        seed: with the image's index it determines the draw.
        indices: (B,) integers that number the images in their data set; default 0 to B - 1.

    Raises:
        InputError: unknown kind, severity outside 1 to 5, both or neither of severity and level, values not in [0, 1].
    """
    if kind not in KINDS:
        raise InputError(f"Unknown corruption {kind!r}: choose one of {', '.join(KINDS)}.")
    if (severity is None) == (level is None):
        raise InputError("Give either a severity (1 to 5) or a level, not both.")
    chosen = KINDS[kind]
    if severity is not None:
        if severity not in (1, 2, 3, 4, 5):
            raise InputError(f"Severity {severity!r} is not one of 1, 2, 3, 4, 5.")
        level = chosen.levels[severity - 1]
    assert level is not None
    if level <= 0:
        raise InputError(f"The level {level:g} of {kind} must be above 0.")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise InputError(
            f"Corruptions expect images in [0, 1], but these reach from {images.min():.3g} to {images.max():.3g}: "
            "corrupt before normalising."
        )
    if indices is None:
        indices = torch.arange(len(images))
    stream = list(KINDS).index(kind)
    corrupted = torch.empty_like(images)
    # Draws are made on the CPU, image by image, so that neither batch size nor device changes a result.
    for place, index in enumerate(indices.tolist()):
        rng = torch.Generator().manual_seed(seed_of(seed, stream, index))
        corrupted[place] = chosen.apply(images[place].float().cpu(), level, rng).clamp(0, 1).to(images)
    return corrupted
