"""Training in another framework than torch: what it is given, and what it returns.

A framework is a function from a `Job` to the logits (N, K) of the test images at the best epoch. It sees numpy arrays
and functions only; data, augmentation, schedule, run folder and final evaluation are those of `core.train.loop`. This
file names no framework.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pellucid.core.data.batches import batches, steps_per_epoch
from pellucid.core.data.copies import Copies, copies, copies_in
from pellucid.core.data.dataset import Dataset
from pellucid.core.data.mix import mix
from pellucid.core.data.splits import for_fitting
from pellucid.core.errors import InputError, TrainingStopped, near
from pellucid.core.facts import declare
from pellucid.core.measure.evaluate import Score
from pellucid.core.modes import seeded
from pellucid.core.network.checkpoint import load, save
from pellucid.core.registry import Registry
from pellucid.core.seeds import seed_of
from pellucid.core.terminal import bar, percent
from pellucid.core.train.environment import describe_data
from pellucid.core.train.optimize import learning_rate
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings
from pellucid.core.train.setup import Trained, make_augment, new_model, read_data

# Settings that only the torch loop supports.
_TORCH_ONLY = ("init", "ema", "channels_last", "devices", "strategy", "nodes", "sync_batchnorm", "objective", "device")


@dataclass(frozen=True)
class Job:
    """What there is to train. Images are float32 (B, H, W, C), normalised; targets are fractions of the classes (B, K).

    Attributes:
        settings: those of the run, by name.
        folder: the run folder.
        num_classes: K.
        image_shape: (H, W, C).
        seed: seed of the initial weights.
        steps_per_epoch: batches per epoch.
        rates: the learning rate of every step.
        batches: from an epoch's number to its augmented batches (images, targets).
        val, test: all images of these splits.
        twin: the torch network, whose state dict is to receive the weights of the best epoch.
        close_epoch: to be called after each epoch with its number, mean loss, accuracy and the logits of `val`; returns
            whether this is the best epoch so far.
    """

    settings: dict[str, Any]
    folder: Path
    num_classes: int
    image_shape: tuple[int, int, int]
    seed: int
    steps_per_epoch: int
    rates: list[float]
    batches: Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]
    val: np.ndarray
    test: np.ndarray
    twin: Any
    close_epoch: Callable[[int, float, float, np.ndarray], bool]


# Functions from a `Job` to the logits of the test images.
FRAMEWORKS: Registry[Callable[[Job], np.ndarray]] = Registry("framework", own="FRAMEWORKS")


def train(
    settings: TrainSettings,
    out: str | os.PathLike[str] | None = None,
    *,
    quiet: bool = False,
    data: Dataset | None = None,
) -> Trained:
    """Train as `core.train.loop.train` does, with the framework that the settings name.

    Raises:
        InputError: no such framework, a setting that it does not support, or what `core.train.loop.train` raises.
        TrainingStopped: the loss became infinite or NaN.
    """
    if settings.framework not in FRAMEWORKS.names():
        hint = near(settings.framework, ["torch", *FRAMEWORKS.names()])
        raise InputError(f"There is no framework {settings.framework!r}: {hint}")
    for name in _TORCH_ONLY:
        if getattr(settings, name) != getattr(TrainSettings(), name):
            raise InputError(f"--{name.replace('_', '-')} is not for --framework {settings.framework}: leave it out.")
    if settings.backend is not None:
        # Such frameworks read their backend from the environment when they are imported.
        os.environ[f"{settings.framework.upper()}_BACKEND"] = settings.backend
    try:
        run_job = FRAMEWORKS[settings.framework]
    except ImportError as error:
        raise InputError(
            f"--framework {settings.framework} needs a package that is not here ({error.name or error}): install "
            f"pellucid[{settings.framework}] and what the backend needs."
        ) from None
    dataset = read_data(settings) if data is None else data
    for_fitting(dataset.train, "A network is trained")
    for_fitting(dataset.val, "The best epoch is chosen")
    with seeded():
        model = new_model(settings, dataset)
    run = Run.start(out if out is not None else os.path.join("runs", settings.name()), settings)
    try:
        run.write_environment(dataset)
        if run.result() is None:
            per_epoch = steps_per_epoch(len(dataset.train), settings.batch_size, drop_last=True)
            with bar(settings.epochs, len(run.metrics()), quiet=quiet) as shown:
                job = _job(settings, dataset, model, run, min(per_epoch, settings.limit_batches or per_epoch), shown)
                try:
                    logits = run_job(job)
                except InputError:
                    raise
                except ValueError as error:
                    raise InputError(str(error)) from error
            _finish(run, dataset, model, logits)
        result = run.result()
        assert result is not None
        return Trained(run, result, load(run.best))
    finally:
        run.release()


def _job(settings: TrainSettings, dataset: Dataset, model: torch.nn.Module, run: Run, steps: int, shown: Any) -> Job:
    total = steps * settings.epochs
    stream = partial(batches, mean=dataset.mean, std=dataset.std, workers=settings.workers)
    augment, classes = make_augment(settings, dataset), len(dataset.classes)

    def epoch_of(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        made = stream(
            dataset.train,
            settings.batch_size,
            shuffle=True,
            augment=augment,
            seed=settings.seed,
            epoch=epoch,
            drop_last=True,
        )
        for batch, _ in zip(made, range(steps), strict=False):
            images, targets = batch.images, F.one_hot(batch.labels, classes).float()
            if settings.mixup or settings.cutmix:
                images, targets = mix(
                    images, batch.labels, classes, mixup=settings.mixup, cutmix=settings.cutmix, seed=settings.seed,
                    epoch=epoch, step=batch.step, total=batch.total, first=batch.first,
                )  # fmt: skip
            yield _last(images), targets.numpy()

    def all_of(split: Any) -> np.ndarray:
        return np.concatenate([_last(batch.images) for batch in stream(split, 512)])

    def close(epoch: int, loss: float, accuracy: float, logits: np.ndarray) -> bool:
        score = _score(dataset, "val", logits)
        if not np.isfinite([loss, score.loss]).all():
            raise TrainingStopped(
                f"The loss became {loss} in epoch {epoch + 1}; the last good checkpoint is kept in {str(run.path)!r}. "
                "Try a lower --lr or --clip 1."
            )
        run.forget_from(epoch)  # rows of epochs that were not saved when the run was stopped
        rows = run.metrics()
        row = {
            "epoch": epoch,
            "step": (epoch + 1) * steps,
            "lr": learning_rate(settings, (epoch + 1) * steps - 1, total),
            "train_loss": loss,
            "train_accuracy": accuracy,
            "val_loss": score.loss,
            "val_accuracy": score.top1,
        }
        run.log(row)
        shown.update(epoch + 1, f"val {percent(score.top1)}")
        shown.line(f"epoch {epoch + 1}/{settings.epochs}: loss {loss:.4f}, validation {percent(score.top1)}")
        return all(_rank(row) > _rank(old) for old in rows)

    return Job(
        settings=dataclasses.asdict(settings),
        folder=run.path,
        num_classes=classes,
        image_shape=(*dataset.image_size, dataset.channels),
        seed=seed_of("weights", settings.seed) % 2**31,
        steps_per_epoch=steps,
        rates=[learning_rate(settings, step, total) for step in range(total)],
        batches=epoch_of,
        val=all_of(dataset.val),
        test=all_of(dataset.test),
        twin=model,
        close_epoch=close,
    )


def _finish(run: Run, dataset: Dataset, model: torch.nn.Module, logits: np.ndarray) -> None:
    """Write the numbers on the test set, and the best epoch's weights as a torch network."""
    best = max(run.metrics(), key=_rank)
    kept = {name: best[name] for name in ("epoch", "val_accuracy", "val_loss")}
    declare(model, classes=dataset.classes, normalization=dataset.normalization)
    save(model, run.best, trained={**kept, "data": run.settings.data})
    run.finish(
        {
            "test": _score(dataset, "test", logits, copies(dataset.test, dataset.train)).to_json(),
            "copies": copies_in(dataset),
            "best": kept,
            "steps": run.metrics()[-1]["step"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "data": describe_data(dataset),
        }
    )


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    return row["val_accuracy"], -row["val_loss"]


def _score(dataset: Dataset, split: str, logits: np.ndarray, apart: Copies | None = None) -> Any:
    score = Score(dataset.classes, copies=apart)
    score.add(torch.from_numpy(logits.astype(np.float32)), getattr(dataset, split).labels, torch.arange(len(logits)))
    return score.result()


def _last(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).contiguous().numpy()
