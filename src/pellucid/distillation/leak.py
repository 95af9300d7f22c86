r"""How close synthesised images come to training images.

With $d(x)$ the distance of an image to its nearest training image, the score is the fraction of synthesised images
whose d is smaller than that of 99 % of real test images, which nobody can have copied. By chance it is 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pellucid.core.data.splits import Split
from pellucid.core.files.atomic import replacing
from pellucid.core.files.ours import png_text
from pellucid.distillation.folder import ImageFolder
from pellucid.distillation.manifolds import nearest

LEVEL = 0.01  # fraction of real test images that are as close to a training image, by chance
SHOWN = 8  # pairs in the picture


@dataclass(frozen=True)
class Pair:
    """An image's file, the place in the split of the training image nearest to it, and their distance."""

    file: str
    training: int
    distance: float


@dataclass(frozen=True)
class Leak:
    """How close images come to training images, in one space.

    Attributes:
        space: "features", or "pixels" (root mean square difference, pixels in [0, 1]).
        score: the fraction of images closer to a training image than `threshold`.
        threshold: the distance below which 1 % of the real test images are from a training image.
        median: the median distance of synthesised images to the nearest training image.
        median_test: the same for real test images.
        worst: the closest pairs.
    """

    space: str
    score: float
    threshold: float
    median: float
    median_test: float
    worst: list[Pair]


def leak(space: str, made: Tensor, training: Tensor, test: Tensor, images: ImageFolder, rows: Tensor) -> Leak:
    """The leak in one space.

    Args:
        space: its name.
        made: vectors (M, D) of the images.
        training: vectors (N, D) of training images.
        test: vectors (T, D) of real test images.
        images: the images.
        rows: (N,) the places of the training images in their split.
    """
    distance, index = nearest(made, training)
    chance, _ = nearest(test, training)
    threshold = torch.quantile(chance, LEVEL).item()
    worst = distance.argsort()[:SHOWN].tolist()
    names = images.names()
    pairs = [Pair(names[place], int(rows[index[place]]), float(distance[place])) for place in worst]
    score = (distance < threshold).double().mean().item()
    return Leak(space, score, threshold, distance.median().item(), chance.median().item(), pairs)


def draw_worst(path: Path, leaks: Sequence[Leak], images: ImageFolder, pixels: Tensor, training: Split) -> None:
    """Draw the closest pairs of each space: a row of images, and below it the training image nearest to each.

    Args:
        path: file to write, as PNG.
        leaks: one per space.
        images: the images.
        pixels: uint8 (N, C, H, W) of all of them.
        training: the training images.
    """
    from PIL import Image

    place = {name: number for number, name in enumerate(images.names())}
    rows: list[Tensor] = []  # (C, H, n W) each
    for found in leaks:
        made = pixels[[place[pair.file] for pair in found.worst]]
        real = training.fetch(torch.tensor([pair.training for pair in found.worst]))
        rows += [torch.cat([*made], 2), torch.cat([*real], 2)]
    gap = torch.full_like(rows[0][:, :2], 255)
    sheet = torch.cat([piece for row in rows for piece in (row, gap)][:-1], 1)
    zoom = max(1, 64 // pixels.shape[2])
    array = sheet.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2).permute(1, 2, 0).numpy()
    with replacing(path) as file:
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "PNG", pnginfo=png_text("assess"))
