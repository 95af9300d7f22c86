"""Train a given module in place, without a run folder: the steps are those of the one training loop.

Nothing is written, resumed, validated or tested: the caller gets the weights of the last step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from pellucid.core.data.batches import Batch
from pellucid.core.data.dataset import Dataset
from pellucid.core.device import device_of, fitting
from pellucid.core.errors import InputError, Interrupted, TrainingStopped
from pellucid.core.modes import determinism, seeded
from pellucid.core.terminal import Bar, bar
from pellucid.core.train.launch import launch
from pellucid.core.train.loop import _Training
from pellucid.core.train.objective import Objective
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings
from pellucid.core.train.signals import catch_signals

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
        settings = replace(settings, batch_size=min(settings.batch_size, len(data.train)))
    settings = replace(settings, device=str(device_of(model)), devices=1, nodes=1)
    objective = objective or Objective()
    with determinism(settings.deterministic), seeded():
        training = _Inner(settings, launch(settings), data, model, objective)
        quiet = quiet or not isinstance(data, Dataset)  # how long a stream is shows at its end
        with bar(training.total, quiet=quiet) as shown, catch_signals() as received:
            for epoch in range(settings.epochs):
                training.one_epoch(epoch, shown, received)
    return model


class _Inner(_Training):
    """A run that leaves nothing but weights."""

    def __init__(
        self, settings: TrainSettings, fabric: Any, data: Dataset | Stream, model: nn.Module, objective: Objective
    ) -> None:
        self.stream = None if isinstance(data, Dataset) else data
        dataset: Any = data if isinstance(data, Dataset) else SimpleNamespace(train=range(sys.maxsize))
        super().__init__(settings, fabric, dataset, model, objective, cast(Run, None))

    def one_epoch(self, epoch: int, shown: Bar, received: list[int]) -> None:
        """Train for one epoch, and check the weights."""
        self.at.epoch, self.at.step = epoch, 0
        self.at.loss_sum, self.at.correct, self.at.seen = 0.0, 0, 0
        self._epoch(epoch, shown, received)
        if not self.at.seen:
            raise InputError(
                f"There is no image to train on in pass {epoch + 1}: give some, and data that can be read again."
            )
        self._save()
        self._stop_if_asked(received)

    def _restore(self) -> None:
        """Nothing: it begins with the weights that the model has."""

    def _save(self) -> None:
        """Nothing but the check that goes before saving."""
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            self._stop("A weight became infinite or NaN")

    def _batches(self, epoch: int) -> Iterator[Batch]:
        if self.stream is None:
            for batch in super()._batches(epoch):
                yield replace(batch, images=fitting(self.model, batch.images))
            return
        for step, (images, labels) in enumerate(self.stream()):
            images = fitting(self.model, images)
            n = len(labels)
            yield Batch(images, labels.long().to(images.device), torch.arange(n, device=images.device), step, 0, n)

    def _stop(self, what: str) -> NoReturn:
        raise TrainingStopped(
            f"{what} at step {self.at.total_steps}, epoch {self.at.epoch + 1}, at learning rate "
            f"{self.settings.peak_lr:.3g}; nothing was saved. Try a lower learning rate."
        )

    def _stop_if_asked(self, received: list[int]) -> None:
        if received:
            raise Interrupted(received[0], f"Stopped at step {self.at.total_steps}; nothing was saved.")
