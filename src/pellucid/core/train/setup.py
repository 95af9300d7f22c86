"""The data, augmentation and network of a training run, as its settings say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pellucid.core.data.augment import Augment
from pellucid.core.data.dataset import Dataset, load_data
from pellucid.core.errors import InputError
from pellucid.core.network import models
from pellucid.core.seeds import seed_of
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings


def make_augment(settings: TrainSettings, dataset: Dataset) -> Augment:
    """The augmentation of the training images: what is not set follows from image size and data."""
    small = min(dataset.image_size)
    return Augment(
        crop=settings.crop if settings.crop is not None else small // 8,
        flip=settings.flip if settings.flip is not None else dataset.flip,
        cutout=settings.cutout,
        policy=settings.policy,
    )


@dataclass(frozen=True)
class Trained:
    """What `train` returns: the folder, its final numbers (as in result.json), and the best epoch's model."""

    run: Run
    result: dict[str, Any]
    model: nn.Module


def read_data(settings: TrainSettings) -> Dataset:
    """The data that `settings` name."""
    return load_data(
        settings.data,
        image_size=settings.image_size,
        val_fraction=settings.val_fraction,
        download=settings.download,
        memory_budget=int(settings.memory_gb * 2**30),
    )


def new_model(settings: TrainSettings, dataset: Dataset) -> nn.Module:
    """The network that `settings` name, for the data's images and classes, with weights drawn from the seed."""
    torch.manual_seed(seed_of("weights", settings.seed))
    return models.build(
        settings.model,
        num_classes=len(dataset.classes),
        in_channels=dataset.channels,
        image_size=dataset.image_size,
        layers=settings.layers,
        form=settings.form,
        **settings.options,
    )


def placed(model: nn.Module, settings: TrainSettings, device: torch.device) -> nn.Module:
    """The network as it trains, on its device."""
    if settings.sync_batchnorm:
        if device.type == "cpu":
            raise InputError("--sync-batchnorm works on GPUs only: leave it out on the CPU.")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device)
