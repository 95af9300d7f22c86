r"""The cards of inverted images: what the model alone reveals of each class, and what sets a class apart.

A trace that only one class had in the training images, such as a mark in a corner, comes back in that class's inverted
images and in no others. With $m_k(p)$ the mean of class k's images at pixel p, the gap is how far $m_k(p)$ lies outside
the range of the other classes at p; at the pixel with the largest gap

$$z = \frac{|m_k - \bar m_{-k}|}{\sqrt{s_{-k}^2 + 0.05^2}},$$

with $\bar m_{-k}$ and $s_{-k}$ the mean and standard deviation over the other classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.audit.thumbnails import thumbnail
from pellucid.audit.vocabulary import Block, Fact, Facts, Picture, Section, Strip, Text
from pellucid.audit.words import percent, short
from pellucid.core.errors import InputError
from pellucid.core.network.plain import CONVOLUTIONS
from pellucid.core.network.statistics import Statistics, statistics
from pellucid.core.network.tap import tap
from pellucid.core.seeds import seed_of
from pellucid.inversion.invert import invert
from pellucid.inversion.presets import recipe

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

WORK = 2.5e11  # multiplications that a page may spend on this: about 15 seconds of one processor core
PLANS = ((10, 250), (10, 100), (10, 60), (4, 100), (2, 100), (1, 60))  # images per class and steps, the best first
MAPPED = 4  # images per class from which on their mean is informative
SMALL = 16  # pixels a side up to which images are not shifted, since single pixels matter there
ODD = 6.0  # z from which on a class is flagged; classes without a planted mark reached 5.2 at most
SLACK = 0.05  # of the range of pixels, added (in squares) to the deviation of the other classes


@dataclass(frozen=True, eq=False)
class Inverted:
    """Inverted images of all classes.

    Attributes:
        images, labels: (N, C, H, W) in [0, 1] and (N,), the class each was optimised for.
        steps: of the optimisation.
        own: fraction of them that the model classifies as intended.
        noise: the same of random noise, as the control.
        gaps, z, places: (K, C, H, W), K numbers, K (row, column), as above; None and empty where images are too few.
    """

    images: Tensor
    labels: Tensor
    steps: int
    own: float
    noise: float
    gaps: Tensor | None
    z: list[float]
    places: list[tuple[int, int]]


def inverted_images(audit: Audit) -> Inverted | None:
    """The inverted images of an audit, made once; None for a model without statistics, or too large for the page."""
    return audit.once("inverted", lambda: _invert(audit))


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
    """Multiplications per step and image: three passes over the layers, two over the covariances."""
    layers = [name for name, layer in audit.model.named_modules() if isinstance(layer, CONVOLUTIONS | nn.Linear)]
    with tap(audit.model, layers) as taps:
        audit.forward(audit.images(torch.tensor([0])))
    total = 0.0
    for name, seen in taps.items():
        if not isinstance(seen.output, Tensor):
            continue  # the layer did not run
        weight: Any = audit.model.get_submodule(name).weight
        places = seen.output.numel() / weight.shape[0]
        cov = table[name].cov if name in table else None
        total += 3 * places * weight.numel() + (2 * places * cov.numel() if cov is not None else 0)
    return total


def artefacts(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, list[float], list[tuple[int, int]]]:
    """Gaps (K, C, H, W), and for each class z and the (row, column) of its largest gap."""
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
    """One image per class, how many are classified as intended, and the class that stands out most."""
    found = inverted_images(audit)
    if found is None:
        return None
    each = len(found.labels) // len(audit.classes)
    facts = [
        Fact(
            "Classified as intended",
            percent(found.own),
            f"of {len(found.labels)} images; of random noise {percent(found.noise)}",
        ),
        Fact("Real images used", "none", f"{found.steps} steps of optimisation from noise"),
    ]
    data: dict[str, object] = {
        "images": len(found.labels),
        "steps": found.steps,
        "own": found.own,
        "noise": found.noise,
    }
    n, kept = len(found.labels), percent(found.own)
    summary = f"Of {n} images generated from the model alone, {kept} are classified as intended."
    marked = [index for index, z in enumerate(found.z) if z >= ODD]
    blocks: list[Block] = [Facts(facts)]
    if found.z:
        top = int(np.argmax(found.z))
        others = sorted(found.z)[-2] if len(found.z) > 1 else 0.0
        facts.append(
            Fact("Largest outlier", f"z = {found.z[top]:.1f}", f"{audit.classes[top]}; next class {others:.1f}")
        )
        data["artefact"] = {"z": found.z[top], "class": audit.classes[top], "next": others, "marked": len(marked)}
    if marked:
        named = ", ".join(audit.classes[index] for index in marked)
        summary = (
            f"Something stands out in the inverted images of {named} and of no other class: look for it in the data."
        )
        blocks.append(Text(summary, "bad"))
    shown = [int((found.labels == index).nonzero()[0]) for index in range(len(audit.classes))][:20]
    blocks.append(
        Strip("One image per class, generated from the model alone", [_picture(audit, found, i) for i in shown])
    )
    blocks.append(
        Text(
            "Each image is optimised so that the model predicts its class and every layer receives the statistics that "
            f"it stored in training; {each} per class here. pellucid invert makes more and better ones. The outlier "
            "of a class is the pixel at which its mean image lies farthest outside the range of the other classes' "
            f"mean images; from z = {ODD:g} on it is worth a look. It shows what the model remembers, not what it "
            "relies on."
        )
    )
    return Section("Inverted images", summary, blocks, data)


def _picture(audit: Audit, found: Inverted, index: int) -> Picture:
    name = audit.classes[int(found.labels[index])]
    return Picture(thumbnail(found.images[index]), short(name, 12), f"Inverted image of class {name}")


# --- a class ---


def class_inverted(audit: Audit, index: int) -> Section | None:
    """The inverted images of a class, and the map of what stands out in them."""
    found = inverted_images(audit)
    if found is None:
        return None
    rows = (found.labels == index).nonzero().flatten().tolist()[: audit.examples]
    pictures = [_picture(audit, found, i) for i in rows]
    blocks: list[Block] = [Strip("Generated from the model alone", pictures)]
    data: dict[str, object] = {}
    if found.gaps is not None:
        z, (row, column) = found.z[index], found.places[index]
        gap = found.gaps[index].amax(0, keepdim=True)
        image = thumbnail((gap / max(float(gap.max()), 1e-6)).float())
        where = f"row {row + 1}, column {column + 1}"
        shown = Picture(
            image, f"z = {z:.1f}", f"Map of what stands out in class {audit.classes[index]}: {where}", where
        )
        blocks.append(Strip("What stands out in this class and no other (brighter is stronger)", [shown]))
        if z >= ODD:
            blocks.append(
                Text(
                    f"The pixel at {where} sets this class apart from all others: is it an artefact of the data?", "bad"
                )
            )
        data = {"z": z, "row": row, "column": column, "gap": float(found.gaps[index].max())}
    return Section("Inverted", blocks=blocks, data=data)
