"""Data in any form, as the data set that commands and functions with three splits take."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from pellucid.core.data.dataset import Dataset, load_data
from pellucid.core.data.splits import MemorySplit
from pellucid.core.errors import InputError
from pellucid.core.facts import ModelFacts, declare
from pellucid.core.measure.pairs import open_data
from pellucid.core.train.settings import TrainSettings


def as_dataset(
    data: Any,
    known: ModelFacts | None = None,
    *,
    image_size: int | None = None,
    settings: TrainSettings | None = None,
    large_side: int | None = None,
) -> Dataset:
    """Turn data in any form into a `Dataset`.

    Args:
        data: a name as in `load_data`; a `Dataset`; (images (N, C, H, W) already normalised, labels (N,)); or an
            iterable of such pairs. With the last two, all images become test images, in 8 bits per channel, to
            which nothing is fitted.
        known: facts of the network that will see them: its image size, its classes, and how images were normalised.
        image_size: side to resize the images of a named data set to; default the network's own.
        settings: of a training run, whose held-out fraction and memory budget apply to a named data set.
        large_side: as in `load_data`.

    Raises:
        InputError: data in another form, or images whose normalisation is not known.
    """
    known, settings = known or ModelFacts(), settings or TrainSettings()
    if isinstance(data, str):
        return load_data(
            data,
            image_size=image_size if image_size is not None else known.side,
            val_fraction=settings.val_fraction,
            memory_budget=int(settings.memory_gb * 2**30),
            large_side=large_side,
        )
    if isinstance(data, Dataset):
        return data
    pairs = list(open_data(declare(nn.Identity(), classes=known.classes), data))
    if not pairs:
        raise InputError("There are no images in these data: give at least one.")
    images, labels = (torch.cat(parts).cpu() for parts in zip(*pairs, strict=True))
    norm = known.normalization
    if norm is None:
        raise InputError(
            "It is not known how these images were normalised: say so with "
            "pellucid.declare(model, normalization={'mean': [...], 'std': [...]})."
        )
    pixels = (255 * norm.undo(images.float())).round().clamp(0, 255).byte()
    count = (known.description or {}).get("num_classes") or int(labels.max()) + 1
    split = MemorySplit(pixels, labels.long())
    none = split.take(torch.arange(0))
    return Dataset(
        name="the images given",
        classes=known.classes or tuple(map(str, range(count))),
        channels=split.channels,
        image_size=split.image_size,
        train=none,
        val=none,
        test=split,
        mean=norm.mean,
        std=norm.std,
        flip=False,
        fingerprint=hashlib.sha256(pixels.numpy().tobytes() + labels.numpy().tobytes()).hexdigest(),
    )
