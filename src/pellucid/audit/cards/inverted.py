r"""The cards of inverted images: what the model alone shows of each class, and what stands out there.

A trace of the training images that only one class had, such as a mark in a corner, comes back in that class's
inverted images and in no other's. With $m_k(p)$ the mean of class k's images at pixel p, the gap is how far
$m_k(p)$ lies outside of what all other classes have there, and at the pixel with the largest gap

$$z = \frac{|m_k - \bar m_{-k}|}{\sqrt{s_{-k}^2 + 0.05^2}},$$

with mean and deviation over the other classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.audit.album import picture
from pellucid.audit.figures import short
from pellucid.audit.vocabulary import Block, Fact, Facts, Picture, Section, Strip, Text
from pellucid.audit.words import percent
from pellucid.core.errors import InputError
from pellucid.core.network.statistics import Statistics, statistics
from pellucid.core.network.tap import tap
from pellucid.core.seeds import seed_of
from pellucid.inversion.invert import invert
from pellucid.inversion.presets import recipe

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

WORK = 2.5e11  # multiplications that a page may spend here: about 15 seconds of one processor core
PLANS = ((10, 250), (10, 100), (10, 60), (4, 100), (2, 100), (1, 60))  # images a class and steps, the best first
MAPPED = 4  # images a class from which on their mean says something
SMALL = 16  # pixels a side up to which images are not shifted: a pixel matters there
ODD = 6.0  # z from which on a class is marked: above every class without a planted mark that was seen (up to 5.2)
SLACK = 0.05  # of the range of pixels, added to the deviation of the other classes


@dataclass(frozen=True, eq=False)
class Inverted:
    """Images of all classes, images[i] of labels[i]; own and noise: shares that the model takes for their class, of
    them and of noise; gaps (K, C, H, W), z (K,) and places (K, 2) as above, empty where images are too few."""

    images: Tensor
    labels: Tensor
    steps: int
    own: float
    noise: float
    gaps: Tensor | None
    z: list[float]
    places: list[tuple[int, int]]


_INVERTED: WeakKeyDictionary[Audit, Inverted | None] = WeakKeyDictionary()


def inverted_images(audit: Audit) -> Inverted | None:
    """The inverted images of an audit, made once; None for a model without statistics or too large for the page."""
    if audit not in _INVERTED:
        _INVERTED[audit] = _invert(audit)
    return _INVERTED[audit]


def _invert(audit: Audit) -> Inverted | None:
    try:
        table = statistics(audit.model)
    except InputError:
        return None
    shape = (audit.dataset.channels, *audit.dataset.image_size)
    count = len(audit.classes)
    cost = _cost(audit, table)
    plan = next(((each, steps) for each, steps in PLANS if each * steps * count * cost <= WORK), None)
    if plan is None:
        return None
    each, steps = plan
    found = recipe("gaussian", shape)
    if max(shape[1:]) <= SMALL:
        found = replace(found, views=())
    try:
        made = invert(
            audit.model,
            ("balanced", each * count),
            found,
            steps=steps,
            lr=0.05 if steps > 100 else 0.1,
            shape=shape,
            normalization=audit.normalization,
            seed=seed_of("inverted", audit.seed),
            quiet=True,
        )
    except InputError:
        return None
    noise = torch.rand(made.images.shape, generator=torch.Generator().manual_seed(seed_of("noise", audit.seed)))
    gaps, z, places = (None, [], []) if each < MAPPED else artefacts(made.images, made.labels, count)
    own, control = (
        float((audit.forward(shown).argmax(1) == made.labels).float().mean()) for shown in (made.images, noise)
    )
    return Inverted(made.images, made.labels, steps, own, control, gaps, z, places)


def _cost(audit: Audit, table: Statistics) -> float:
    """Multiplications of a step an image: three passes over the layers, two over the covariances."""
    layers = [
        name for name, layer in audit.model.named_modules() if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)
    ]
    with tap(audit.model, layers) as taps:
        audit.forward(audit.images(torch.tensor([0])))
    total = 0.0
    for name, seen in taps.items():
        if not isinstance(seen.output, Tensor):
            continue  # it did not run
        weight: Any = audit.model.get_submodule(name).weight
        places = seen.output.numel() / weight.shape[0]
        cov = table[name].cov if name in table else None
        total += 3 * places * weight.numel() + (2 * places * cov.numel() if cov is not None else 0)
    return total


def artefacts(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, list[float], list[tuple[int, int]]]:
    """Gaps (K, C, H, W), and for each class z and the (row, column) of the largest gap."""
    means = torch.stack([images[labels == index].mean(0) for index in range(count)]).double()
    gaps, z, places = [], [], []
    for index, mean in enumerate(means):
        others = torch.cat([means[:index], means[index + 1 :]])
        gap = torch.maximum(mean - others.amax(0), others.amin(0) - mean).clamp_min(0)
        score = (mean - others.mean(0)).abs() / (others.var(0, correction=0) + SLACK**2).sqrt()
        at = int(gap.argmax())
        row, column = divmod(at % gap[0].numel(), gap.shape[2])
        gaps.append(gap)
        z.append(float(score.flatten()[at]))
        places.append((row, column))
    return torch.stack(gaps), z, places


# --- the model ---


def inverted(audit: Audit) -> Section | None:
    """One image of each class, how the model answers to them, and the class with the strongest mark."""
    found = inverted_images(audit)
    if found is None:
        return None
    each = len(found.labels) // len(audit.classes)
    facts = [
        Fact("Answered as meant", percent(found.own), f"{len(found.labels)} images; of noise {percent(found.noise)}"),
        Fact("Real images used", "none", f"{found.steps} steps from noise"),
    ]
    data: dict[str, object] = {
        "images": len(found.labels),
        "steps": found.steps,
        "own": found.own,
        "noise": found.noise,
    }
    summary = (
        f"The model shows its classes without any image: {percent(found.own)} of {len(found.labels)} are answered so."
    )
    marked = [index for index, z in enumerate(found.z) if z >= ODD]
    blocks: list[Block] = [Facts(facts)]
    if found.z:
        top = int(np.argmax(found.z))
        others = sorted(found.z)[-2] if len(found.z) > 1 else 0.0
        facts.append(Fact("Strongest mark", f"z = {found.z[top]:.1f}", f"{audit.classes[top]}; next {others:.1f}"))
        data["artefact"] = {"z": found.z[top], "class": audit.classes[top], "next": others, "marked": len(marked)}
    if marked:
        named = ", ".join(audit.classes[index] for index in marked)
        summary = (
            f"Something stands out in the inverted images of {named} and of no other class: look for it in the data."
        )
        blocks.append(Text(summary, "bad"))
    shown = [int((found.labels == index).nonzero()[0]) for index in range(len(audit.classes))][:20]
    blocks.append(Strip("An image of each class, out of the model alone", [_picture(audit, found, i) for i in shown]))
    blocks.append(
        Text(
            "Images are searched for on which the model answers the class and each layer sees the statistics that it "
            f"holds of its training. {each} a class here; pellucid invert makes more and better ones. A mark is the "
            "pixel at which a class's mean image lies farthest outside of all other classes' mean images; "
            f"from z = {ODD:g} on it is worth a look. It shows what the model remembers, not what it relies on."
        )
    )
    return Section("Inverted images", summary, blocks, data)


def _picture(audit: Audit, found: Inverted, index: int) -> Picture:
    name = audit.classes[int(found.labels[index])]
    return Picture(picture(found.images[index]), short(name, 12), f"Inverted image of class {name}")


# --- a class ---


def class_inverted(audit: Audit, index: int) -> Section | None:
    """A class's inverted images, and the map of what stands out in them."""
    found = inverted_images(audit)
    if found is None:
        return None
    rows = (found.labels == index).nonzero().flatten().tolist()[: audit.examples]
    pictures = [_picture(audit, found, i) for i in rows]
    blocks: list[Block] = [Strip("Out of the model alone", pictures)]
    data: dict[str, object] = {}
    if found.gaps is not None:
        z, (row, column) = found.z[index], found.places[index]
        gap = found.gaps[index].amax(0, keepdim=True)
        image = picture((gap / max(float(gap.max()), 1e-6)).float())
        where = f"row {row + 1}, column {column + 1}"
        shown = Picture(
            image, f"z = {z:.1f}", f"Map of what stands out in class {audit.classes[index]}: {where}", where
        )
        blocks.append(Strip("What stands out here and in no other class, brightest where most", [shown]))
        if z >= ODD:
            blocks.append(Text(f"The pixel at {where} sets this class apart from all others: an artefact?", "bad"))
        data = {"z": z, "row": row, "column": column, "gap": float(found.gaps[index].max())}
    return Section("Inverted", blocks=blocks, data=data)
