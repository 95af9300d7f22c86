"""`pellucid.assess`: what a folder of images is worth, before anything is trained on it.

Accuracy under the network that the images came from, and under others that had no part in it; Inception score; how
similar the images of a class are; against real images Fréchet distance, precision, recall, density and coverage; and
what the images leak of the training images (see `leak`). The features are those of one network, which the result names:
only numbers under the same network can be compared.
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
from pellucid.core.given import as_dataset
from pellucid.core.measure.share import Share
from pellucid.core.source import Named
from pellucid.core.terminal import track
from pellucid.distillation.features import BATCH, Features, logits_of, read_features
from pellucid.distillation.folder import ImageFolder, read
from pellucid.distillation.leak import Leak, draw_worst, leaks
from pellucid.distillation.manifolds import Alike, alike, diversity, inception_score
from pellucid.inversion.space import network_of


@dataclass(frozen=True)
class Verdict:
    """How many images one network classifies as intended.

    Attributes:
        name: of the network.
        top1: images whose most probable class is theirs.
        top5: images whose class is among the five most probable; None with five classes or fewer.
    """

    name: str
    top1: Share
    top5: Share | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: "name", the fractions "top1" and "top5", their intervals, and "n", the images."""
        return {
            "name": self.name,
            "top1": self.top1.value,
            "top5": None if self.top5 is None else self.top5.value,
            "top1_interval": list(self.top1.interval),
            "top5_interval": None if self.top5 is None else list(self.top5.interval),
            "n": self.top1.n,
        }


@dataclass(frozen=True)
class Assessment:
    """What `assess` found.

    Attributes:
        images: how many images there are.
        features: the network and layer whose features are used.
        accuracy: one verdict per network, the teacher's first.
        inception_score: of the feature network's probabilities, from 1 to the number of classes.
        diversity: by class, the mean cosine between two images; None for a class of fewer than two.
        real: how many real images the scores below compare with.
        diversity_real: the diversity of the real images.
        frechet: the Fréchet distance to the real images.
        alike: precision, recall, density and coverage.
        leaks: by features and by pixels; empty without real training images.
    """

    images: int
    features: str
    accuracy: list[Verdict]
    inception_score: float
    diversity: dict[str, float | None]
    real: int
    diversity_real: dict[str, float | None] | None
    frechet: float | None
    alike: Alike | None
    leaks: list[Leak]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {**asdict(self), "accuracy": [verdict.to_json() for verdict in self.accuracy]}


def assess(
    teacher: Named,
    folder: str | os.PathLike[str] | ImageFolder,
    verifiers: Mapping[str, Named] | None = None,
    data: Any = None,
    features: Named | None = None,
    *,
    name: str = "the teacher",
    layer: str | None = None,
    k: int = 5,
    max_images: int = 5000,
    batch_size: int = BATCH,
    picture: str | os.PathLike[str] | None = None,
) -> Assessment:
    """Judge the images in `folder`, which were made from `teacher`.

    Networks may be modules, or run folders, checkpoints, MODEL=FILE, architectures (random weights) or `Run`s. Modules
    are afterwards as they were before.

    Args:
        teacher: the network that the images came from.
        folder: class folders of images, from `synthesize` or any other tool; or what `folder.read` returned.
        verifiers: other networks of the same classes, by name.
        data: real data: a name as in `load_data` (resized to the images), a `Dataset`, (images normalised as the
            teacher expects, labels), or an iterable of such pairs. Without them nothing is compared with real images;
            without training images, as in the last two forms, there are no leak scores.
        features: the network whose features and probabilities are used; default the teacher.
        name: what to call that network in the result.
        layer: its layer whose input the features are; default the last layer with weights.
        k: number of neighbours for precision, recall, density and coverage.
        max_images: maximum number of real images used from each split, evenly spaced. Leaks are looked for in all
            training images, whatever this number.
        batch_size: images in a step.
        picture: PNG file to draw the closest pairs of a leak into.

    Raises:
        InputError: images, networks and data that do not fit each other, or too few images.
    """
    if batch_size < 1:
        raise InputError(f"A batch size of {batch_size} is out of range: give at least 1.")
    images = folder if isinstance(folder, ImageFolder) else read(folder)
    if data is None or isinstance(data, str | Dataset):
        dataset = None if data is None else as_dataset(data, image_size=images.side)
        norm = dataset.normalization if dataset is not None and dataset.mean else None
        own = network_of(teacher, norm)
    else:  # images as the teacher expects them
        own = network_of(teacher)
        dataset = as_dataset(data, facts(own))
        norm = dataset.normalization
    networks = {"teacher": own, **{title: network_of(each, norm) for title, each in (verifiers or {}).items()}}
    network = own if features is None else network_of(features, norm)
    size = (images.split.channels, *images.split.image_size)
    if dataset is not None and (dataset.channels, *dataset.image_size) != size:
        raise InputError(f"The images in {str(images.path)!r} and those of {dataset.name} differ in size or channels.")
    pixels = _pixels(images.split, None)
    verdicts = [
        _verdict(title, each, images, logits_of(each, pixels, norm, batch_size), dataset)
        for title, each in networks.items()
    ]
    reader = _Reader(network, norm, layer, batch_size)
    found = reader(pixels)
    compared: dict[str, Any] = {}
    if dataset is not None:
        compared = _compare(dataset, images, pixels, found, reader, k, max_images, picture)
    return Assessment(
        images=len(pixels),
        features=f"{name}, input of {found.layer!r} ({found.features.shape[1]} features)",
        accuracy=verdicts,
        inception_score=inception_score(found.logits.double().softmax(1)),
        diversity=_by_class(images.classes, diversity(found.features, images.split.labels, len(images.classes))),
        **{"real": 0, "diversity_real": None, "frechet": None, "alike": None, "leaks": [], **compared},
    )


@dataclass
class _Reader:
    """Reads the features of images with one network, at one layer."""

    model: nn.Module
    norm: Normalization | None
    layer: str | None
    batch_size: int

    def __call__(self, pixels: Tensor) -> Features:
        """Of uint8 images (N, C, H, W)."""
        chunks = pixels.split(self.batch_size)
        tracked = track(chunks, len(chunks), "reading features")
        found = read_features(self.model, tracked, norm=self.norm, layer=self.layer)
        self.layer = found.layer  # the same one for all images that follow
        return found

    def features(self, pixels: Tensor) -> Tensor:
        """(B, D) of a few images, without a progress bar."""
        return read_features(self.model, pixels.split(self.batch_size), norm=self.norm, layer=self.layer).features


def _compare(
    data: Dataset,
    images: ImageFolder,
    pixels: Tensor,
    found: Features,
    reader: _Reader,
    k: int,
    max_images: int,
    picture: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """The scores that compare with real images: training images, or test images where there are no others."""
    reference = data.train if len(data.train) else data.test
    rows = _spread(len(reference), max_images)
    real = reader(_pixels(reference, rows))
    compared = {
        "real": len(rows),
        "diversity_real": _by_class(data.classes, diversity(real.features, reference.labels[rows], len(data.classes))),
        "frechet": frechet(real.features, found.features),
        "alike": alike(real.features, found.features, k),
    }
    if reference is not data.train:
        return compared
    # A network may have been trained with fewer images held out than here, or none.
    training = [data.train, data.val]
    test = _pixels(data.test, _spread(len(data.test), max_images))
    found_leaks = leaks(images, pixels, test, training, reader.features)
    if picture is not None:
        draw_worst(Path(picture), found_leaks, images, pixels, training)
    return {**compared, "leaks": found_leaks}


def _spread(count: int, limit: int) -> Tensor:
    """At most `limit` places among `count`, evenly spaced: splits are often sorted by class."""
    return torch.arange(count)[:: max(1, -(-count // limit))]


def frechet(real: Tensor, generated: Tensor) -> float:
    """The Fréchet distance of the Gaussians of two sets of features (N, D) (Heusel et al. 2017), by torchmetrics."""
    vision.repair()
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(nn.Module):
        """Passes features through in place of images."""

        num_features = real.shape[1]

        def forward(self, features: Tensor) -> Tensor:
            return features

    metric = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return float(metric.compute())


def _verdict(title: str, network: nn.Module, images: ImageFolder, logits: Tensor, data: Dataset | None) -> Verdict:
    names = facts(network).classes or (data.classes if data is not None else images.classes)
    if logits.shape[1] != len(names) or not set(images.classes) <= set(names):
        raise InputError(
            f"The network {title!r} has {logits.shape[1]} classes, which are not those of the images "
            f"({', '.join(images.classes[:5])}{', ...' if len(images.classes) > 5 else ''})."
        )
    place = torch.tensor([names.index(name) for name in images.classes])
    labels = place[images.split.labels]
    top1 = Share.of(logits.argmax(1) == labels)
    top5 = None if logits.shape[1] <= 5 else Share.of((logits.topk(5).indices == labels[:, None]).any(1))
    return Verdict(title, top1, top5)


def _pixels(split: Split, rows: Tensor | None) -> Tensor:
    """These images of a split, or all, without augmentation: uint8 (N, C, H, W)."""
    chosen = torch.arange(len(split)) if rows is None else rows
    return torch.cat([split.fetch(chunk) for chunk in chosen.split(1024)])


def _by_class(classes: Sequence[str], values: Tensor) -> dict[str, float | None]:
    return {name: None if v != v else v for name, v in zip(classes, values.tolist(), strict=True)}
