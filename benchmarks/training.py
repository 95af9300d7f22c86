"""A plain training loop, the same for every variant of a study."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid.core.data.augment import Augment
from pellucid.core.data.batches import batches, steps_per_epoch
from pellucid.core.data.dataset import Dataset
from pellucid.core.train.optimize import learning_rate


def fit(
    model: nn.Module,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    seed: int,
    warmup: float = 0.0,
    learn: bool = True,
    after_epoch: Callable[[], object] = lambda: None,
) -> float:
    """Train in place by SGD with momentum 0.9, a learning rate falling from 0.1 as a cosine, crop, and flip if allowed.

    Args:
        data: trained on is its training split, in an order that depends on `seed` and the epoch alone
        warmup: fraction of the steps in which the learning rate rises
        learn: False changes no parameter: only batch norm's statistics follow the images
        after_epoch: called after every epoch; not timed

    Returns:
        processor time of the epochs in seconds
    """
    settings = pellucid.TrainSettings(lr=0.1, warmup=warmup, epochs=epochs, batch_size=batch_size)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=weight_decay)
    total, step, seconds = epochs * steps_per_epoch(len(data.train), batch_size, drop_last=True), 0, 0.0
    norm = {"mean": data.mean, "std": data.std}
    augment = Augment(crop=data.image_size[0] // 8, flip=data.flip)
    for epoch in range(epochs):
        model.train()
        began = time.process_time()
        for batch in batches(
            data.train, batch_size, **norm, shuffle=True, augment=augment, seed=seed, epoch=epoch, drop_last=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, total)
            loss = F.cross_entropy(model(batch.images), batch.labels)
            if learn:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            step += 1
        seconds += time.process_time() - began
        after_epoch()
    return seconds
