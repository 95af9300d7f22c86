"""The parts of a training run, made ready as its settings say: data, augmentation, network, objective, folder."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pellucid.core.data.augment import Augment
from pellucid.core.data.dataset import GIVEN, Dataset, load_data
from pellucid.core.data.splits import for_fitting
from pellucid.core.errors import InputError, shown
from pellucid.core.facts import declare, facts
from pellucid.core.network import models
from pellucid.core.network.checkpoint import load
from pellucid.core.seeds import seed_of
from pellucid.core.train.launch import gradient_scaler, launch
from pellucid.core.train.objective import objective as objective_named
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings
from pellucid.core.train.state import Parts
from pellucid.core.train.stopping import explained


@dataclass(frozen=True)
class Trained:
    """What `train` returns: the run folder, its final numbers (as in result.json), and the best epoch's model."""

    run: Run
    result: dict[str, Any]
    model: nn.Module


def settings_of(
    settings: TrainSettings | None, data: str | Dataset | None, overrides: Mapping[str, Any]
) -> tuple[TrainSettings, Dataset | None]:
    """The settings that the arguments of `train` amount to, and the data set if it was given as an object.

    Raises:
        InputError: an argument that is no setting, a value out of range, or data of another type.
    """
    settings = settings or TrainSettings()
    names = [field.name for field in dataclasses.fields(settings)]
    for name in overrides:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "pellucid train --help lists the settings."
            raise InputError(f"There is no training setting {name!r}: {hint}")
    if isinstance(data, Dataset):
        named = f"{GIVEN}:{data.name}@{data.fingerprint[:8]}"  # tells data sets apart in settings and folder names
        return dataclasses.replace(settings, **overrides, data=named), data
    if not isinstance(data, str | None):
        raise InputError(f"Training data of type {type(data).__name__} cannot be used: give a name or a Dataset.")
    chosen = overrides if data is None else {**overrides, "data": data}
    return dataclasses.replace(settings, **chosen), None


@contextlib.contextmanager
def opened(settings: TrainSettings, out: str | os.PathLike[str] | None, given: Dataset | None) -> Iterator[Parts]:
    """Everything that training starts from; the run folder is locked while the block runs.

    Raises:
        InputError: bad settings or data, or a folder that is in use or holds something else.
        TrainingStopped: too little memory or disk, here or in the block.
    """
    path = out if out is not None else os.path.join("runs", settings.name())
    scaler = gradient_scaler(settings.precision, settings.device)
    fabric = launch(
        device=settings.device,
        devices=settings.devices,
        nodes=settings.nodes,
        strategy=settings.strategy,
        precision=settings.precision,
        scaler=scaler,
    )
    objective = objective_named(settings.objective, **settings.objective_options)
    objective.label_smoothing = settings.label_smoothing
    if objective.taps and settings.compile:
        raise InputError(f"--objective {settings.objective} looks into the network as it runs: leave out --compile.")
    with fabric.rank_zero_first():  # one process downloads and unpacks; the others find it done
        dataset = objective.data(read_data(settings) if given is None else given, settings.seed)
    for_fitting(dataset.train, "A network is trained")
    for_fitting(dataset.val, "The best epoch is chosen")
    run = None
    with explained(settings, path, fabric.device):
        try:
            model = new_model(settings, dataset)
            if settings.init is not None:
                load(settings.init, model).train()
            declare(model, classes=dataset.classes, normalization=dataset.normalization)  # not those of --init
            model = placed(model, settings, fabric.device)
            torch.manual_seed(seed_of("objective", settings.seed))
            objective.prepare(model, dataset, fabric.device)
            problem = None
            if fabric.global_rank == 0:
                try:
                    run = Run.start(path, settings)
                    run.write_environment(dataset, (facts(model).description or {}).get("code"))
                except InputError as error:
                    problem = str(error)
            problem = fabric.broadcast(problem)  # or the other processes would wait for the first for ever
            if problem:
                raise InputError(problem)
            yield Parts(settings, fabric, scaler, dataset, model, objective, run or Run(path))
        finally:
            if run is not None:
                run.release()


def read_data(settings: TrainSettings) -> Dataset:
    """The data that `settings` name."""
    return load_data(
        settings.data,
        image_size=settings.image_size,
        val_fraction=settings.val_fraction,
        download=settings.download,
        memory_budget=int(settings.memory_gb * 2**30),
    )


def make_augment(settings: TrainSettings, dataset: Dataset) -> Augment:
    """The augmentation of the training images; what is not set follows from image size and data."""
    small = min(dataset.image_size)
    return Augment(
        crop=settings.crop if settings.crop is not None else small // 8,
        flip=settings.flip if settings.flip is not None else dataset.flip,
        cutout=settings.cutout,
        policy=settings.policy,
    )


def new_model(settings: TrainSettings, dataset: Dataset) -> nn.Module:
    """The network that `settings` name, for the data's images and classes, with weights drawn from the seed."""
    torch.manual_seed(seed_of("weights", settings.seed))
    model = models.build(
        settings.model,
        num_classes=len(dataset.classes),
        in_channels=dataset.channels,
        image_size=dataset.image_size,
        layers=settings.layers,
        form=settings.form,
        args=settings.model_args,
        **settings.options,
    )
    count = (facts(model).description or {}).get("num_classes")
    if count is not None and count != len(dataset.classes):
        raise InputError(
            f"{shown(settings.model, 200)} returns {count} logits per image, but {dataset.name} has "
            f"{len(dataset.classes)} classes: let its factory take num_classes, or give --model-args."
        )
    return model


def placed(model: nn.Module, settings: TrainSettings, device: torch.device) -> nn.Module:
    """The network as it trains, on its device."""
    if settings.sync_batchnorm:
        if device.type == "cpu":
            raise InputError("--sync-batchnorm works on GPUs only: leave it out on the CPU.")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device)
