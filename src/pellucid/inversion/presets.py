"""Recipes by name: what each paper or system does, as values.

The papers' total variation is one norm over a whole batch of B images, about sqrt(B) times the mean norm of an image;
the weights below are converted accordingly, at the batch size of their source.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.inversion.generator import Generator
from pellucid.inversion.matching import Matching
from pellucid.inversion.objective import CrossEntropy, Disagreement, Objective
from pellucid.inversion.priors import L2, Prior, TotalVariation
from pellucid.inversion.schedule import Schedule
from pellucid.inversion.start import Noise, Start
from pellucid.inversion.views import Crop, Flip, Jitter, View

LARGE = 97  # side in pixels from which recipes take their ImageNet form


@dataclass(frozen=True)
class Recipe:
    """How images are searched for: the terms of the loss, the random views of the images, the start and the schedule.

    Args:
        objective: of the class (`CrossEntropy`, `Logit`), or any function of images in [0, 1] to a scalar.
        matching: of statistics; None leaves them out.
        priors: functions of normalised images to a scalar.
        disagreement: with the first verifier; None leaves it out.
        views: random changes of the images before each step; see `views`.
        start: what is optimised, and from where; see `start` and `generator`.
        schedule: steps and learning rate.
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
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(PRESETS)}."
        raise InputError(f"There is no preset {preset!r}: {hint}")
    return PRESETS[preset](shape)


def _large(shape: tuple[int, int, int]) -> bool:
    return min(shape[1:]) >= LARGE


def _mirrored(shape: tuple[int, int, int]) -> tuple[Flip, ...]:
    """Flips for colour images; grey ones may be digits or letters."""
    return (Flip(),) if shape[0] == 3 else ()


def gaussian(shape: tuple[int, int, int]) -> Recipe:
    """The default: scale-free statistics with weight 10 for every network."""
    return Recipe(
        matching=Matching(weight=10.0),
        priors=(TotalVariation(2e-4),),
        views=(Jitter(max(1, min(shape[1:]) // 16)), *_mirrored(shape)),
        schedule=Schedule(steps=2000 if _large(shape) else 300, lr=0.1),
    )


def generator(shape: tuple[int, int, int]) -> Recipe:
    """The default, with images drawn by a small network fitted to each batch: slower, and far better for students."""
    found = gaussian(shape)
    return replace(
        found,
        matching=Matching(weight=10.0, input=1.0),
        start=Generator(),
        schedule=replace(found.schedule, steps=2000 if _large(shape) else 200, lr=0.01),
    )


def deepinversion(shape: tuple[int, int, int]) -> Recipe:
    """Yin et al. 2020 as published: two resolutions for ImageNet; constant learning rate, no clipping for CIFAR."""
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
    """SRe2L (Yin, Xing and Shen 2023): random crops instead of a prior; small images are not cropped."""
    views: tuple[View, ...] = (Crop(), Flip(), Jitter(32)) if _large(shape) else (Jitter(4), *_mirrored(shape))
    return Recipe(
        matching=Matching(weight=0.01, form="norms", first=10.0),
        views=views,
        schedule=Schedule(steps=2000, lr=0.25, keep="last"),
    )


def cda(shape: tuple[int, int, int]) -> Recipe:
    """CDA (Yin and Shen 2024): SRe2L with crops that start as the whole image and become smaller."""
    return replace(sre2l(shape), views=(Crop(curriculum=True), *_mirrored(shape), Jitter(32 if _large(shape) else 4)))


def dream(shape: tuple[int, int, int]) -> Recipe:
    """DeepDream: the class and the priors, without statistics."""
    return replace(gaussian(shape), matching=None)


def hidden(shape: tuple[int, int, int]) -> Recipe:
    """Botach and Cohen 2020: wide jitter, a start far out of range, a learning rate that falls on plateaus."""
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
    """Botach and Cohen 2020 with their regulariser `prior`: without statistics."""
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
    covariance: bool | None = None,
    input: float | None = None,
    tv: float | None = None,
    disagreement: float | None = None,
    parts: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe in which everything that is given is changed; None leaves a value as it is.

    Args:
        found: the recipe.
        steps: number of steps.
        lr: learning rate of Adam.
        weight: weight of the statistics; 0 leaves them out.
        covariance: whether covariances are compared where the table has them, or variances alone.
        input: weight of the normalised input's own mean and variance.
        tv: weight of the total variation.
        disagreement: weight of the disagreement with a verifier.
        parts: whole parts by their names in `Recipe`, put in first.

    Raises:
        InputError: a number out of range, or `input` for a recipe without statistics.
    """
    found = replace(found, **(parts or {}))
    timing: dict[str, Any] = {key: value for key, value in {"steps": steps, "lr": lr}.items() if value is not None}
    if timing:
        found = replace(found, schedule=replace(found.schedule, **timing))
    if weight == 0:
        found = replace(found, matching=None)
    elif weight is not None:
        found = replace(found, matching=replace(found.matching or Matching(), weight=weight))
    if found.matching is not None and covariance is not None:
        found = replace(found, matching=replace(found.matching, covariance=covariance))
    if found.matching is not None and input is not None:
        found = replace(found, matching=replace(found.matching, input=input))
    elif input is not None and weight != 0:
        raise InputError("This recipe matches no statistics, those of the input included: leave out --input.")
    if tv is not None:
        others = tuple(prior for prior in found.priors if not isinstance(prior, TotalVariation))
        found = replace(found, priors=(TotalVariation(tv), *others))
    if disagreement is not None:
        found = replace(found, disagreement=Disagreement(weight=disagreement))
    return found
