"""The pieces of one training step: its batch, its mixed images, and the update of the weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from pellucid.core.data.batches import Batch, batches
from pellucid.core.data.mix import mix
from pellucid.core.train.optimize import learning_rate
from pellucid.core.train.setup import make_augment
from pellucid.core.train.state import Training


def steps_left(training: Training, epoch: int) -> Iterator[Batch]:
    """This process's batches of the steps that are left of `epoch`."""
    settings, fabric, dataset = training.parts.settings, training.parts.fabric, training.parts.dataset
    stream = batches(
        dataset.train,
        settings.batch_size,
        mean=dataset.mean,
        std=dataset.std,
        device=fabric.device,
        shuffle=True,
        augment=make_augment(settings, dataset),
        seed=settings.seed,
        epoch=epoch,
        start=training.at.step,
        rank=fabric.global_rank,
        world=fabric.world_size,
        drop_last=True,
        workers=settings.workers,
        channels_last=settings.channels_last,
    )
    return itertools.islice(stream, training.per_epoch - training.at.step)


def mixed(training: Training, epoch: int, batch: Batch) -> tuple[Tensor, Tensor]:
    """Images, and labels (B,) or after mixing targets (B, K)."""
    settings = training.parts.settings
    if not (settings.mixup or settings.cutmix):
        return batch.images, batch.labels
    return mix(
        batch.images,
        batch.labels,
        len(training.parts.dataset.classes),
        mixup=settings.mixup,
        cutmix=settings.cutmix,
        seed=settings.seed,
        epoch=epoch,
        step=batch.step,
        total=batch.total,
        first=batch.first,
    )


def update(training: Training) -> None:
    """Move the weights by the gradients that are there, and the moving average after them."""
    settings, fabric = training.parts.settings, training.parts.fabric
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(settings, training.at.total_steps, training.total)
    if fabric.world_size > 1:  # Fabric averages the network's own gradients only
        for parameter in training.extra.parameters():
            if parameter.grad is not None:
                parameter.grad = fabric.all_reduce(parameter.grad, reduce_op="mean")
    if settings.clip:
        fabric.clip_gradients(
            training.forward, training.step_optimizer, max_norm=settings.clip, error_if_nonfinite=False
        )
    training.step_optimizer.step()
    training.step_optimizer.zero_grad()
    with torch.no_grad():
        training.parts.objective.after_step()
    if training.ema is not None:
        training.ema.update_parameters(training.parts.model)
        for averaged, now in zip(training.ema.module.buffers(), training.parts.model.buffers(), strict=True):
            if not averaged.is_floating_point():  # a count, which has no average
                averaged.copy_(now)
