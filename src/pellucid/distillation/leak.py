r"""How close synthesised images come to training images.

With $d(x)$ the distance of an image to its nearest training image, the score is the fraction of synthesised images
whose d is at most that of the closest 1 % of real test images, which nobody can have copied. By chance it is 1 %.

Every training image is looked at, so that no copy is missed; they are read in parts, and memory does not grow with
their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pellucid.core.data.splits import Split
from pellucid.core.files.atomic import replacing
from pellucid.core.files.ours import png_text
from pellucid.core.terminal import track
from pellucid.distillation.folder import ImageFolder
from pellucid.distillation.manifolds import Nearest

PART = 1024  # training images in memory at a time
LEVEL = 0.01  # fraction of real test images that are as close to a training image, by chance
SHOWN = 8  # pairs in the picture


@dataclass(frozen=True)
class Pair:
    """An image's file, the place of the training image nearest to it, and their distance.

    Places count the training split, and after it the images held out from training for validation.
    """

    file: str
    training: int
    distance: float


@dataclass(frozen=True)
class Leak:
    """How close images come to training images, in one space.

    Attributes:
        space: "features", or "pixels" (root mean square difference, pixels in [0, 1]).
        score: the fraction of images within `threshold` of a training image.
        threshold: the distance within which 1 % of the real test images are from a training image.
        median: the median distance of synthesised images to the nearest training image.
        median_test: the same for real test images.
        worst: the closest pairs.
        searched: the training images that were looked at: all of them.
    """

    space: str
    score: float
    threshold: float
    median: float
    median_test: float
    worst: list[Pair]
    searched: int


def leaks(
    images: ImageFolder,
    made: Tensor,
    test: Tensor,
    training: Sequence[Split],
    features: Callable[[Tensor], Tensor],
) -> list[Leak]:
    """The leaks by features and by pixels.

    Args:
        images: the images.
        made: uint8 (M, C, H, W), their pixels.
        test: uint8 (T, C, H, W), real test images.
        training: splits of all images that the network may have been trained on.
        features: uint8 images (B, C, H, W) -> features (B, D).
    """
    spaces: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
        "features": (features, 1.0),
        "pixels": (lambda pixels: pixels.flatten(1), (made[0].numel() * 255.0**2) ** -0.5),
    }

    def nearest(pixels: Tensor, read: Callable[[Tensor], Tensor]) -> Nearest:
        return Nearest(torch.cat([read(part) for part in pixels.split(PART)]))

    found = {space: (nearest(made, read), nearest(test, read)) for space, (read, _) in spaces.items()}
    parts = [(split, rows) for split in training for rows in torch.arange(len(split)).split(PART) if len(rows)]
    for split, rows in track(parts, len(parts), "comparing with every training image"):
        pixels = split.fetch(rows)
        for space, (read, _) in spaces.items():
            vectors = read(pixels)
            for near in found[space]:
                near.add(vectors)
    return [_leak(space, *found[space], scale, images.names()) for space, (_, scale) in spaces.items()]


def _leak(space: str, made: Nearest, test: Nearest, scale: float, names: Sequence[str]) -> Leak:
    """The leak in one space; distances count in units of 1 / `scale`."""
    distance, chance = scale * made.distance, scale * test.distance
    threshold = torch.quantile(chance, LEVEL).item()
    worst = distance.argsort()[:SHOWN].tolist()
    pairs = [Pair(names[place], int(made.index[place]), float(distance[place])) for place in worst]
    score = (distance <= threshold).double().mean().item()
    return Leak(space, score, threshold, distance.median().item(), chance.median().item(), pairs, made.seen)


def draw_worst(
    path: Path, leaks: Sequence[Leak], images: ImageFolder, pixels: Tensor, training: Sequence[Split]
) -> None:
    """Draw the closest pairs of each space: a row of images, and below it the training image nearest to each.

    Args:
        path: file to write, as PNG.
        leaks: one per space.
        images: the images.
        pixels: uint8 (N, C, H, W) of all of them.
        training: splits of the training images, as `leaks` takes them.
    """
    from PIL import Image

    place = {name: number for number, name in enumerate(images.names())}
    rows: list[Tensor] = []  # (C, H, n W) each
    for found in leaks:
        made = pixels[[place[pair.file] for pair in found.worst]]
        real = torch.cat([_fetched(training, pair.training) for pair in found.worst])
        rows += [torch.cat([*made], 2), torch.cat([*real], 2)]
    gap = torch.full_like(rows[0][:, :2], 255)
    sheet = torch.cat([piece for row in rows for piece in (row, gap)][:-1], 1)
    zoom = max(1, 64 // pixels.shape[2])
    array = sheet.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2).permute(1, 2, 0).numpy()
    with replacing(path) as file:
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "PNG", pnginfo=png_text("assess"))


def _fetched(splits: Sequence[Split], place: int) -> Tensor:
    """The image at a place that counts through several splits: uint8 (1, C, H, W)."""
    for split in splits:
        if place < len(split):
            return split.fetch(torch.tensor([place]))
        place -= len(split)
    raise IndexError(place)
