"""What a user names on a command line, a model and a data set, made into values that fit each other."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pellucid.core.data.dataset import Dataset, load_data
from pellucid.core.device import choose_device
from pellucid.core.errors import InputError
from pellucid.core.network import models
from pellucid.core.network.checkpoint import load
from pellucid.core.seeds import seed_of
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings


@dataclass(frozen=True)
class Source:
    """A model, the data to look at it with, and what is known of them.

    model: in evaluation mode, on `device`
    dataset: of the channels, size and number of classes that the model was named for
    run: the run it comes from, if any
    device: "cpu", "cuda", ...
    title: what to call it in a table: its path, or its architecture and that the weights are random
    """

    model: nn.Module
    dataset: Dataset
    run: Run | None
    device: str
    title: str


def open_source(
    path: str | os.PathLike[str],
    data: str | None = None,
    *,
    model: str | None = None,
    image_size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Source:
    """Load the model at `path` and its data.

    Args:
        path: as in `checkpoint.load`; or the name of an architecture, which is built with random weights for the
            data's channels, size and classes.
        data: a name as in `data.load`; default what the run was trained on.
        model: architecture of a foreign checkpoint.
        image_size: side in pixels that images are resized to; default what the model was trained on, for an
            architecture of a zoo what that says, or else the data's own size.
        mean, std: normalisation of the input for a checkpoint that does not know its own, one number a channel.
        device: where the model is put; "auto" is a GPU where there is one.
        seed: what the weights of an architecture are drawn from.

    Raises:
        InputError: nothing there, no data named, no such device, or a normalisation given twice or not fitting.
    """
    device = choose_device(device)
    name = os.fspath(path)
    fresh = is_architecture(name)
    if fresh and model is not None:
        raise InputError(f"{name!r} is an architecture's name already: leave out --model.")
    network = None if fresh else load(path, model)
    run = Run(path) if (Path(path) / "settings.yaml").is_file() else None
    if data is None and run is None:
        raise InputError(f"{name!r} does not say what it was trained on: name data with --data.")
    settings = run.settings if run is not None and data in (None, run.settings.data) else TrainSettings()
    if image_size is None and network is None:
        image_size = min(_size_of(name)) if models.is_zoo(name) else None
    elif image_size is None and model is None:
        height, width = (getattr(network, "description", None) or {}).get("image_size") or (None, None)
        image_size = height if height == width else None
    dataset = load_data(
        data or settings.data,
        image_size=image_size,
        val_fraction=settings.val_fraction,
        memory_budget=int(settings.memory_gb * 2**30),
    )
    if network is None:
        network = build_fresh(name, len(dataset.classes), dataset.channels, dataset.image_size, seed).eval()
        vars(network).update(classes=dataset.classes)
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: give both.")
    if mean is not None and std is not None:
        if getattr(network, "normalization", None):
            raise InputError(f"{name!r} knows its own mean and std: leave out --mean and --std.")
        if len(mean) != dataset.channels or len(std) != dataset.channels:
            raise InputError(f"--mean and --std need {dataset.channels} numbers each, one a channel of {dataset.name}.")
        if not all(math.isfinite(v) for v in [*mean, *std]) or min(std) <= 0:
            raise InputError(f"--mean {mean} and --std {std} must be finite, and --std above 0.")
        network.normalization = {"mean": mean, "std": std}  # type: ignore[assignment]
    title = f"{name} (random weights)" if fresh else name
    return Source(network.to(device), dataset, run, device, title)


def is_architecture(name: str) -> bool:
    """Whether `name` is an architecture's, such as resnet18 or timm:resnet18, and no file's or folder's."""
    return models.is_zoo(name) or (models.canonical(name) in models.names() and not Path(name).exists())


def build_fresh(
    name: str, num_classes: int, in_channels: int, image_size: int | tuple[int, int] | None, seed: int
) -> nn.Module:
    """The architecture `name` with random weights drawn from `seed`; default size 32, or what its zoo says."""
    torch.manual_seed(seed_of("weights", seed))
    return models.build(name, num_classes, in_channels, image_size or _size_of(name))


def _size_of(name: str) -> tuple[int, int]:
    """The (height, width) of images that an architecture is made for."""
    if not models.is_zoo(name):
        return 32, 32
    from pellucid.core import vision

    return vision.image_size(name)
