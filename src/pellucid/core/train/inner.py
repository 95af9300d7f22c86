"""Train a given module in place, without a run folder: the steps are those of the one training loop.

Nothing is written, resumed, validated or tested: the caller gets the weights of the last step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from pellucid.core.data.batches import Batch
from pellucid.core.data.dataset import Dataset
from pellucid.core.data.splits import for_fitting
from pellucid.core.device import device_of, fitting
from pellucid.core.errors import InputError, Interrupted, TrainingStopped
from pellucid.core.modes import determinism, seeded
from pellucid.core.seeds import seed_of
from pellucid.core.terminal import Bar, bar
from pellucid.core.train.launch import launch
from pellucid.core.train.objective import Objective
from pellucid.core.train.reporting import Meter
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings
from pellucid.core.train.signals import catch_signals
from pellucid.core.train.state import Parts, Training
from pellucid.core.train.step import mixed, steps_left, update

Stream = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def train_in_place(
    model: nn.Module,
    data: Dataset | Stream,
    settings: TrainSettings,
    objective: Objective | None = None,
    *,
    quiet: bool = True,
) -> nn.Module:
    """Train `model` itself for `settings.epochs` epochs, on its own device.

    Args:
        model: any network images -> logits; left in training mode, its weights are those after the last step.
        data: a data set, of whose training images every epoch sees whole batches in an order of its own, augmented as
            `settings` say; or a function that begins a pass over (images already normalised, labels), which are taken
            as they come.
        settings: optimizer, learning rate, augmentation, precision, epochs, batch size, seed. What names data, network,
            objective or devices is not read.
        objective: what is minimised; default cross-entropy with the labels.
        quiet: no progress bar.

    Raises:
        InputError: no image, or no parameter to train.
        TrainingStopped: a loss or weight became infinite or NaN.
        Interrupted: Ctrl-C or SIGTERM; the weights are those of the last step.
    """
    if isinstance(data, Dataset):
        if not len(data.train):
            raise InputError("There is no image to train on: give at least one.")
        for_fitting(data.train, "A network is trained")
        settings = replace(settings, batch_size=min(settings.batch_size, len(data.train)))
    settings = replace(settings, device=str(device_of(model)), devices=1, nodes=1)
    objective = objective or Objective()
    with determinism(settings.deterministic), seeded():
        fabric = launch(device=settings.device, precision=settings.precision)
        dataset: Any = data if isinstance(data, Dataset) else SimpleNamespace(train=range(sys.maxsize))
        training = Training(Parts(settings, fabric, None, dataset, model, objective, cast(Run, None)))
        training.connect()
        quiet = quiet or not isinstance(data, Dataset)  # how long a stream is shows at its end
        with bar(training.total, quiet=quiet) as shown, catch_signals() as received:
            for epoch in range(settings.epochs):
                _epoch(training, data, epoch, shown, received)
    return model


def _epoch(training: Training, data: Dataset | Stream, epoch: int, shown: Bar, received: list[int]) -> None:
    """Train for one epoch, and check the weights."""
    at, objective, fabric = training.at, training.parts.objective, training.parts.fabric
    at.epoch, at.step = epoch, 0
    at.loss_sum, at.correct, at.seen = 0.0, 0, 0
    meter = Meter(training)
    training.forward.train()
    objective.begin_epoch(epoch)
    for batch in _batches(training, data, epoch):
        torch.manual_seed(seed_of("step", training.parts.settings.seed, epoch, batch.step, 0))
        images, targets = mixed(training, epoch, batch)
        loss, logits = objective(training.forward, batch, images, targets)
        fabric.backward(loss)
        update(training)
        if meter.add(batch.step, loss, logits, batch.labels):
            meter.read(shown)
            if not math.isfinite(at.loss_sum):
                raise _diverged(training, "The loss")
            if received:
                raise Interrupted(received[0], f"Stopped at step {at.total_steps}; nothing was saved.")
    if not at.seen:
        raise InputError(
            f"There is no image to train on in pass {epoch + 1}: give some, and data that can be read again."
        )
    if not all(bool(torch.isfinite(p).all()) for p in training.parts.model.parameters()):
        raise _diverged(training, "A weight")


def _batches(training: Training, data: Dataset | Stream, epoch: int) -> Iterator[Batch]:
    model = training.parts.model
    if isinstance(data, Dataset):
        for batch in steps_left(training, epoch):
            yield replace(batch, images=fitting(model, batch.images))
        return
    for step, (images, labels) in enumerate(data()):
        images = fitting(model, images)
        n = len(labels)
        yield Batch(images, labels.long().to(images.device), torch.arange(n, device=images.device), step, 0, n)


def _diverged(training: Training, what: str) -> TrainingStopped:
    at = training.at
    return TrainingStopped(
        f"{what} became infinite or NaN at step {at.total_steps}, epoch {at.epoch + 1}, at learning rate "
        f"{training.parts.settings.peak_lr:.3g}; nothing was saved. Try a lower learning rate."
    )
