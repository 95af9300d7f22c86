r"""What a folder of images is worth, before anything is trained on it.

Accuracy under the network it came from and under others that had no part in it; Inception score; against real images
Fréchet distance, precision, recall, density and coverage; how alike the images of a class are; and what of the training
images leaks. The features are those of a network that is named in the result: numbers compare under one network only.

Leak: with $d(x)$ the distance of an image to its nearest training image, the share of synthesised images with a d below
that of 99 in 100 real test images, which nobody can have copied. By chance it is 1 %.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core import vision
from pellucid.core.data.dataset import Dataset
from pellucid.core.data.splits import Split
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization, facts
from pellucid.core.files.atomic import replacing
from pellucid.core.terminal import track
from pellucid.distillation.features import CHUNK, Seen, answers, look
from pellucid.distillation.folder import Images, read
from pellucid.distillation.manifolds import Alike, alike, diversity, inception_score, nearest

LEAK_LEVEL = 0.01  # share of real test images that are as near to a training image by chance
SHOWN = 8  # worst pairs in the picture


@dataclass(frozen=True)
class Accuracy:
    """Shares of N images that a network gives their class, and has among its five first (None up to five classes)."""

    name: str
    top1: float
    top5: float | None


@dataclass(frozen=True)
class Pair:
    """An image and the training image nearest to it: its file, the other's place in the split, and their distance."""

    file: str
    training: int
    distance: float


@dataclass(frozen=True)
class Leak:
    """How near images come to training images, in one space.

    space: "features" or "pixels" (root mean square of differences, pixels in [0, 1]). score: share of the images that
    are nearer to a training image than `threshold`, which by chance 1 % of the `test` real test images are. median:
    distance to the nearest training image, of synthesised and of real test images. worst: the nearest pairs.
    """

    space: str
    score: float
    threshold: float
    median: float
    median_test: float
    worst: list[Pair]


@dataclass(frozen=True)
class Assessment:
    """What `assess` found; see there. `features` says under which network and layer; `images` and `real` how many."""

    images: int
    features: str
    accuracy: list[Accuracy]
    inception_score: float
    diversity: dict[str, float | None]
    real: int
    diversity_real: dict[str, float | None] | None
    frechet: float | None
    alike: Alike | None
    leaks: list[Leak]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def assess(
    folder: str | os.PathLike[str] | Images,
    teacher: nn.Module,
    verifiers: Mapping[str, nn.Module] | None = None,
    data: Dataset | None = None,
    features: nn.Module | None = None,
    *,
    name: str = "the teacher",
    layer: str | None = None,
    k: int = 5,
    limit: int = 5000,
    picture: str | os.PathLike[str] | None = None,
) -> Assessment:
    """Judge the images in `folder`.

    Args:
        folder: class folders of images, synthesised here or anywhere; or what `folder.read` made of them.
        teacher: the network that they came from.
        verifiers: other networks of the same classes, by name.
        data: real data; without, there are no scores that compare with real images, and no leak scores.
        features: the network whose features and probabilities are used; default the teacher.
        name: what to call that network in the result.
        layer: its layer whose input the features are; default the last one with weights.
        k: neighbours of precision, recall, density and coverage.
        limit: real images that are used at most, of each split.
        picture: file that the worst pairs are drawn into, as PNG.

    Raises:
        InputError: images, networks and data that do not fit each other, or too few images.
    """
    images = folder if isinstance(folder, Images) else read(folder)
    norm = None if data is None else data.normalization
    if data is not None and (data.channels, *data.image_size) != (images.split.channels, *images.split.image_size):
        raise InputError(f"The images in {str(images.path)!r} and those of {data.name} differ in size or channels.")
    pixels = _pixels(images.split, None)
    labels = images.split.labels
    accuracy = []
    for title, network in {"teacher": teacher, **(verifiers or {})}.items():
        accuracy.append(_accuracy(title, network, images, answers(network, pixels, norm), data))
    reader = features if features is not None else teacher
    seen = _look(reader, pixels, norm, layer)
    found: dict[str, Any] = {}
    if data is not None:
        found = _against(data, images, pixels, seen, reader, norm, k, limit, picture)
    return Assessment(
        images=len(pixels),
        features=f"{name}, input of {seen.layer!r} ({seen.features.shape[1]} features)",
        accuracy=accuracy,
        inception_score=inception_score(seen.logits.double().softmax(1)),
        diversity=_by_class(images.classes, diversity(seen.features, labels, len(images.classes))),
        **{"real": 0, "diversity_real": None, "frechet": None, "alike": None, "leaks": [], **found},
    )


def _against(
    data: Dataset,
    images: Images,
    pixels: Tensor,
    seen: Seen,
    reader: nn.Module,
    norm: Normalization | None,
    k: int,
    limit: int,
    picture: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """The scores that compare with real training images."""
    rows = torch.arange(len(data.train))[:: max(1, -(-len(data.train) // limit))]
    training, test = _pixels(data.train, rows), _pixels(data.test, torch.arange(min(limit, len(data.test))))
    real, held = _look(reader, training, norm, seen.layer), _look(reader, test, norm, seen.layer)
    scale = (pixels[0].numel() * 255.0**2) ** -0.5
    flat = [part.flatten(1).float() * scale for part in (pixels, training, test)]
    leaks = [
        _leak("features", seen.features, real.features, held.features, images, rows),
        _leak("pixels", flat[0], flat[1], flat[2], images, rows),
    ]
    if picture is not None:
        _draw(Path(picture), [_pictures(leak, images, pixels, data) for leak in leaks])
    classes = len(data.classes)
    return {
        "real": len(rows),
        "diversity_real": _by_class(data.classes, diversity(real.features, data.train.labels[rows], classes)),
        "frechet": frechet(real.features, seen.features),
        "alike": alike(real.features, seen.features, k),
        "leaks": leaks,
    }


def frechet(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance of the Gaussians of two sets of features (N, D) (Heusel et al. 2017), by torchmetrics."""
    vision.repair()
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(nn.Module):
        """Features in place of images: they are known already."""

        num_features = real.shape[1]

        def forward(self, features: Tensor) -> Tensor:
            return features

    metric = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return float(metric.compute())


def _leak(space: str, made: Tensor, training: Tensor, test: Tensor, images: Images, rows: Tensor) -> Leak:
    distance, index = nearest(made, training)
    chance, _ = nearest(test, training)
    threshold = torch.quantile(chance, LEAK_LEVEL).item()
    worst = distance.argsort()[:SHOWN].tolist()
    pairs = [
        Pair(images.files[place].relative_to(images.path).as_posix(), int(rows[index[place]]), float(distance[place]))
        for place in worst
    ]
    score = (distance < threshold).double().mean().item()
    return Leak(space, score, threshold, distance.median().item(), chance.median().item(), pairs)


def _pictures(leak: Leak, images: Images, pixels: Tensor, data: Dataset) -> tuple[Tensor, Tensor]:
    """The worst pairs: synthesised images and the training images nearest to them, uint8 (N, C, H, W) each."""
    place = {file.relative_to(images.path).as_posix(): number for number, file in enumerate(images.files)}
    made = pixels[[place[pair.file] for pair in leak.worst]]
    return made, data.train.fetch(torch.tensor([pair.training for pair in leak.worst]))


def _draw(path: Path, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
    """For each space two rows: images above, and below each the training image nearest to it."""
    from PIL import Image

    rows = [torch.cat([*row], 2) for part in parts for row in part]  # (C, H, N W)
    gap = torch.full_like(rows[0][:, :2], 255)
    sheet = torch.cat([piece for row in rows for piece in (row, gap)][:-1], 1)
    zoom = max(1, 64 // parts[0][0].shape[2])
    sheet = sheet.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2).permute(1, 2, 0)
    array = sheet.numpy()
    with replacing(path) as file:
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "PNG")


def _accuracy(title: str, network: nn.Module, images: Images, logits: Tensor, data: Dataset | None) -> Accuracy:
    names = facts(network).classes or (data.classes if data is not None else images.classes)
    if logits.shape[1] != len(names) or not set(images.classes) <= set(names):
        raise InputError(
            f"The network {title!r} has {logits.shape[1]} classes, which are not those of the images "
            f"({', '.join(images.classes[:5])}{', ...' if len(images.classes) > 5 else ''})."
        )
    place = torch.tensor([names.index(name) for name in images.classes])
    labels = place[images.split.labels]
    top1 = (logits.argmax(1) == labels).double().mean().item()
    if logits.shape[1] <= 5:
        return Accuracy(title, top1, None)
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    return Accuracy(title, top1, top5)


def _look(model: nn.Module, pixels: Tensor, norm: Normalization | None, layer: str | None) -> Seen:
    chunks = pixels.split(CHUNK)
    return look(model, track(chunks, len(chunks), "reading features"), norm=norm, layer=layer)


def _pixels(split: Split, rows: Tensor | None) -> Tensor:
    """These images, or all, as they are evaluated: uint8 (N, C, H, W)."""
    chosen = torch.arange(len(split)) if rows is None else rows
    return torch.cat([split.fetch(chunk) for chunk in chosen.split(1024)])


def _by_class(classes: Sequence[str], values: Tensor) -> dict[str, float | None]:
    return {name: None if v != v else v for name, v in zip(classes, values.tolist(), strict=True)}
