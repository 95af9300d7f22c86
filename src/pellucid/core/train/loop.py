"""One training loop on Lightning Fabric, resumable to the bit.

Every random draw is a function of (seed, epoch, step, rank), and so is the order of the images; the learning rate is a
function of the step. Read `train` from top to bottom; each of its steps is a file of this folder.
"""

from __future__ import annotations

import math
import os
import signal
import time
from typing import Any

import torch

from pellucid.core.data.dataset import Dataset
from pellucid.core.facts import facts
from pellucid.core.modes import determinism, seeded
from pellucid.core.network.checkpoint import load
from pellucid.core.seeds import seed_of
from pellucid.core.terminal import bar
from pellucid.core.train import frameworks
from pellucid.core.train.reporting import Meter, open_events, report
from pellucid.core.train.resume import restore, save_state
from pellucid.core.train.scoring import close_epoch, finish
from pellucid.core.train.settings import TrainSettings
from pellucid.core.train.setup import Trained, opened, settings_of
from pellucid.core.train.signals import catch_signals
from pellucid.core.train.state import Training
from pellucid.core.train.step import mixed, steps_left, update
from pellucid.core.train.stopping import agree, diverged, stop_if_asked


def train(
    settings: TrainSettings | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    quiet: bool = False,
    data: str | Dataset | None = None,
    **overrides: Any,
) -> Trained:
    """Train a network and keep everything in a run folder.

    A folder that was begun with the same settings is continued; a finished one is only read. With several devices, call
    this function from a script: the script is started again for each of them. torch's random state and its settings of
    determinism are afterwards what they were before.

    Args:
        settings: see `TrainSettings`; default `TrainSettings()`.
        out: the run folder; default `runs/` and a name made from the settings.
        quiet: print nothing.
        data: a data set's name in place of `settings.data`; or a `Dataset`, which is used as it is and recorded by its
            name and fingerprint. To continue such a run, pass the same object again.
        overrides: fields of `TrainSettings` that take the place of those in `settings`.

    Returns:
        The run, its final numbers, and the model with the weights of the best epoch.

    Raises:
        InputError: bad settings or data, or a folder that is in use, holds something else or has other settings.
        TrainingStopped: a loss or weight became infinite or NaN, or memory or disk is full.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.

    Example:
        >>> trained = train(model="resnet20", data="digits", epochs=1)  # doctest: +SKIP
        >>> trained.result["test"]["n"]  # doctest: +SKIP
        450
    """
    settings, given = settings_of(settings, data, overrides)
    if settings.framework != "torch":
        return frameworks.train(settings, out, quiet=quiet, data=given)
    with determinism(settings.deterministic), seeded(), opened(settings, out, given) as parts:
        fabric, objective = parts.fabric, parts.objective
        if parts.run.result() is None:
            training = Training(parts)
            restore(training)
            training.connect()
            at = training.at
            if parts.leads:
                parts.run.forget_from(at.epoch)
            with (
                bar(training.total, at.total_steps, quiet=quiet or not parts.leads) as shown,
                open_events(training) as events,
                catch_signals() as received,
            ):
                for epoch in range(at.epoch, settings.epochs):
                    meter = Meter(training)
                    training.forward.train()
                    objective.begin_epoch(epoch)
                    for batch in steps_left(training, epoch):
                        torch.manual_seed(seed_of("step", settings.seed, epoch, batch.step, fabric.global_rank))
                        images, targets = mixed(training, epoch, batch)
                        loss, logits = objective(training.forward, batch, images, targets)
                        fabric.backward(loss)
                        update(training)
                        if meter.add(batch.step, loss, logits, batch.labels):
                            meter.read(shown)
                            _save_or_stop(training, meter, received)
                    meter.book()
                    report(training, close_epoch(training, epoch), shown, events)
                    at.epoch, at.step = epoch + 1, 0
                    at.loss_sum, at.correct, at.seen = 0.0, 0, 0
                    save_state(training)
                    stop_if_asked(training, received)
            finish(training)
        fabric.barrier()
        result = parts.run.result()
        assert result is not None
        return Trained(parts.run, result, load(parts.run.best, facts(parts.model).code))


def _save_or_stop(training: Training, meter: Meter, received: list[int]) -> None:
    """At a step where the sums were read: stop on divergence or a signal, and save if it is time to.

    Raises:
        TrainingStopped: the loss is infinite or NaN.
        Interrupted: a signal was received, by any process.
    """
    at = training.at
    bad, stop, due = agree(training, not math.isfinite(at.loss_sum), bool(received), meter.is_due())
    if bad:
        raise diverged(training, "The loss")
    if (due or stop) and at.step < training.per_epoch:
        meter.book()
        save_state(training)
        meter.saved = time.monotonic()
    if stop:
        stop_if_asked(training, received or [signal.SIGINT])
