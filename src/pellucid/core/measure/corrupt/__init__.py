"""Seeded image corruptions at five severities (Hendrycks and Dietterich 2019, section 3 and appendix B).

Each image has its own random stream, a function of (seed, kind, index): it is corrupted in the same way in any batch,
and by the same draw on any device. Severities are the published ones of ImageNet-C, or, below 97 pixels, those of
CIFAR-10-C, which are milder. The published sets are stored in 8 bits; here only JPEG rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.core.measure.corrupt import blur, digital, noise, weather
from pellucid.core.measure.corrupt.kind import Kind
from pellucid.core.seeds import seed_of

__all__ = ["EXTRA", "KINDS", "SMALLEST", "STANDARD", "Kind", "corrupt_images"]

_ALL = {**noise.KINDS, **blur.KINDS, **weather.KINDS, **digital.KINDS}
STANDARD = tuple(name for name, kind in _ALL.items() if not kind.extra)  # the fifteen, in the paper's order
EXTRA = tuple(name for name, kind in _ALL.items() if kind.extra)  # the four for validation
KINDS: dict[str, Kind] = {name: _ALL[name] for name in (*STANDARD, *EXTRA)}
SMALLEST = 8  # pixels of the shorter side that every kind but noise needs


def corrupt_images(
    images: Tensor,
    kind: str,
    severity: int | None = None,
    *,
    level: float | None = None,
    strengths: Literal["auto", "imagenet", "cifar"] = "auto",
    seed: int = 0,
    indices: Tensor | None = None,
) -> Tensor:
    """Corrupt `images` (B, C, H, W), values in [0, 1]; the result is clipped to [0, 1].

    Args:
        images: (B, C, H, W) in [0, 1].
        kind: a name in `KINDS`.
        severity: 1 to 5; or give `level` instead.
        level: strength in the unit of the kind, where that is one number.
        strengths: "imagenet" or "cifar" for the severities of ImageNet-C or CIFAR-10-C; "auto" takes ImageNet-C's if
            the shorter side has 97 pixels or more.
        seed: determines the draw, together with the kind and the image's index.
        indices: (B,) indices of the images in their data set; default 0 to B - 1.

    Raises:
        InputError: an unknown kind, a severity outside 1 to 5, both or neither of severity and level, a level for a
            kind that has none, values outside [0, 1], or an image below 8x8 pixels for any kind but noise.
    """
    if kind not in KINDS:
        raise InputError(f"Unknown corruption {kind!r}: choose one of {', '.join(KINDS)}.")
    chosen = KINDS[kind]
    height, width = images.shape[-2:]
    table = {"auto": chosen.levels_for((height, width)), "imagenet": chosen.levels, "cifar": chosen.small_levels}
    if strengths not in table:
        raise InputError(f"strengths={strengths!r} must be auto, imagenet or cifar.")
    strength = _strength(chosen, kind, severity, level, table[strengths])
    if chosen.family != "noise" and min(height, width) < SMALLEST:
        raise InputError(f"{kind} needs images of {SMALLEST}x{SMALLEST} pixels or more, not {height}x{width}.")
    if not len(images):
        return images.clone()
    if not (images.min() >= 0 and images.max() <= 1):
        raise InputError(
            f"Corruptions expect images in [0, 1], but these range from {images.min():.3g} to {images.max():.3g}: "
            "corrupt before normalising."
        )
    if indices is None:
        indices = torch.arange(len(images))
    draws = torch.empty(0)
    if chosen.draw is not None:
        # On the CPU, image by image, so that neither batch size nor device changes the draw.
        alone = images.detach().float().cpu()
        drawn = [
            chosen.draw(image, strength, torch.Generator().manual_seed(seed_of(seed, kind, index)))
            for image, index in zip(alone, indices.tolist(), strict=True)
        ]
        draws = torch.stack(drawn).to(images.device)
    return chosen.apply(images.float(), strength, draws).clamp(0, 1).to(images.dtype)


def _strength(chosen: Kind, kind: str, severity: int | None, level: float | None, table: Sequence[Any]) -> Any:
    if (severity is None) == (level is None):
        raise InputError("Give either a severity (1 to 5) or a level, not both.")
    if severity is not None:
        if severity not in (1, 2, 3, 4, 5):
            raise InputError(f"Severity {severity!r} is not one of 1, 2, 3, 4, 5.")
        return table[severity - 1]
    assert level is not None
    if not chosen.unit:
        raise InputError(f"{kind} has no level of one number: give a severity from 1 to 5.")
    if not 0 < level < math.inf:
        raise InputError(f"The level {level:g} of {kind} must be above 0 and finite.")
    return level
