"""Recipes by name: what each paper or system does, as values.

A norm over a whole batch of B images, as the papers' total variation has it, is about sqrt(B) times the mean norm of an
image; weights below are converted so, at the batch size of their source.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.inversion.matching import Matching
from pellucid.inversion.objective import CrossEntropy, Disagreement, Objective
from pellucid.inversion.priors import L2, Prior, TotalVariation
from pellucid.inversion.schedule import Schedule
from pellucid.inversion.start import Generator, Noise, Start
from pellucid.inversion.views import Crop, Flip, Jitter, View

LARGE = 97  # pixels a side from which on the ImageNet forms are meant


@dataclass(frozen=True)
class Recipe:
    """How images are inverted: `objective` + `matching` + `priors` + `disagreement`, seen through `views`.

    objective: of the class (`CrossEntropy`, `Logit`), or any function of images in [0, 1] to a scalar. matching: of
    statistics; None is without. priors: functions of normalised images to a scalar. disagreement: with a verifier.
    views, start, schedule: see these modules.
    """

    objective: Objective | Callable[[Tensor], Tensor] = field(default_factory=CrossEntropy)
    matching: Matching | None = field(default_factory=Matching)
    priors: tuple[Prior, ...] = ()
    disagreement: Disagreement | None = None
    views: tuple[View, ...] = ()
    start: Start = field(default_factory=Noise)
    schedule: Schedule = field(default_factory=Schedule)


def recipe(preset: str, shape: tuple[int, int, int]) -> Recipe:
    """The recipe called `preset` for images of `shape` (C, H, W).

    Raises:
        InputError: no such preset.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(str(preset), PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(PRESETS)}."
        raise InputError(f"There is no preset {preset!r}: {hint}")
    return PRESETS[preset](shape)


def _large(shape: tuple[int, int, int]) -> bool:
    return min(shape[1:]) >= LARGE


def _mirrored(shape: tuple[int, int, int]) -> tuple[Flip, ...]:
    """Grey images are not mirrored: they may be digits or letters."""
    return (Flip(),) if shape[0] == 3 else ()


def gaussian(shape: tuple[int, int, int]) -> Recipe:
    """The default: scale-free statistics of weight 10, whatever the network."""
    return Recipe(
        matching=Matching(weight=10.0),
        priors=(TotalVariation(2e-4),),
        views=(Jitter(max(1, min(shape[1:]) // 16)), *_mirrored(shape)),
        schedule=Schedule(steps=2000 if _large(shape) else 300, lr=0.1),
    )


def generator(shape: tuple[int, int, int]) -> Recipe:
    """The default, drawn by a small network that is fitted to each batch: slower, and far better to learn from."""
    found = gaussian(shape)
    return replace(
        found,
        matching=Matching(weight=10.0, input=1.0),
        start=Generator(),
        schedule=replace(found.schedule, steps=2000 if _large(shape) else 200, lr=0.01),
    )


def deepinversion(shape: tuple[int, int, int]) -> Recipe:
    """Yin et al. 2020 as published: on ImageNet two resolutions, on CIFAR a constant rate and nothing clipped."""
    if _large(shape):
        return Recipe(
            matching=Matching(weight=0.01, form="norms", first=10.0),
            priors=(TotalVariation(1e-4 * math.sqrt(84)), L2(1e-5)),
            views=(Jitter(30),),
            schedule=Schedule(steps=3000, lr=0.25, warmup=0.05, half=2 / 3),
        )
    return Recipe(
        matching=Matching(weight=10.0, form="norms"),
        priors=(TotalVariation(2.5e-5 * math.sqrt(256)),),
        views=(Jitter(2),),
        schedule=Schedule(steps=2000, lr=0.05, betas=(0.9, 0.999), decay="constant", clip=False),
    )


def adaptive(shape: tuple[int, int, int]) -> Recipe:
    """DeepInversion in competition with a verifier (Yin et al. 2020, section 3.3)."""
    return replace(deepinversion(shape), disagreement=Disagreement())


def sre2l(shape: tuple[int, int, int]) -> Recipe:
    """SRe2L (Yin, Xing and Shen 2023): random crops instead of a prior; on small images none."""
    views: tuple[View, ...] = (Crop(), Flip(), Jitter(32)) if _large(shape) else (Jitter(4), *_mirrored(shape))
    return Recipe(
        matching=Matching(weight=0.01, form="norms", first=10.0),
        views=views,
        schedule=Schedule(steps=2000, lr=0.25, keep="last"),
    )


def cda(shape: tuple[int, int, int]) -> Recipe:
    """SRe2L with crops that begin whole and become smaller (Yin and Shen 2024)."""
    return replace(sre2l(shape), views=(Crop(curriculum=True), *_mirrored(shape), Jitter(32 if _large(shape) else 4)))


def dream(shape: tuple[int, int, int]) -> Recipe:
    """DeepDream: the class and the priors, no statistics."""
    return replace(gaussian(shape), matching=None)


def hidden(shape: tuple[int, int, int]) -> Recipe:
    """Botach and Cohen 2020: a wide jitter, a start far out of range, a rate that falls on a plateau."""
    return Recipe(
        matching=Matching(weight=1e-2, form="norms"),
        priors=(TotalVariation(8e-3 / math.sqrt(100)), L2(1e-5)),
        views=(Jitter(30), Flip()),
        start=Noise(twice=True),
        schedule=Schedule(
            steps=20000, lr=0.2, betas=(0.9, 0.999), decay="plateau", patience=0.05, stop_after=0.15, keep="best"
        ),
    )


def prior_only(shape: tuple[int, int, int]) -> Recipe:
    """The same system with its regulariser `prior`: no statistics."""
    return replace(hidden(shape), matching=None)


PRESETS: dict[str, Callable[[tuple[int, int, int]], Recipe]] = {
    "gaussian": gaussian,
    "generator": generator,
    "deepinversion": deepinversion,
    "adaptive": adaptive,
    "sre2l": sre2l,
    "cda": cda,
    "dream": dream,
    "hidden": hidden,
    "prior-only": prior_only,
}


def changed(
    found: Recipe,
    *,
    steps: int | None = None,
    lr: float | None = None,
    weight: float | None = None,
    parts: dict[str, Any] | None = None,
) -> Recipe:
    """A recipe with other steps, rate, weight of statistics (0 is none), or other whole `parts`."""
    found = replace(found, **(parts or {}))
    timing: dict[str, Any] = {key: value for key, value in {"steps": steps, "lr": lr}.items() if value is not None}
    if timing:
        found = replace(found, schedule=replace(found.schedule, **timing))
    if weight == 0:
        return replace(found, matching=None)
    if weight is not None:
        found = replace(found, matching=replace(found.matching or Matching(), weight=weight))
    return found
