"""Fit a network with a decomposed head to labels or to another network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.classfilters.head import head_of
from pellucid.classfilters.logistic import fit_features, objective
from pellucid.classfilters.responses import responses
from pellucid.core.errors import InputError
from pellucid.core.measure.pairs import named, open_data


def fit(
    model: nn.Module,
    data: Any,
    how: str = "head",
    *,
    teacher: nn.Module | None = None,
    solver: str = "lbfgs",
    steps: int | None = None,
    lr: float | None = None,
    decay: float = 0.0,
    split: str = "train",
    batch_size: int | None = None,
    workers: int = 0,
    seed: int = 0,
) -> nn.Module:
    """Fit a model with a decomposed head, in place, to labels or to another model.

    Args:
        model: with a `DecomposedHead`, as from `ClassFilters.apply`; left in evaluation mode.
        data: as of `decompose`.
        how: "head" computes what enters the head once and fits its weights (seconds; `fit_features`); "network" trains
            all parameters as published: Adam without decay or schedule, batch norm in training mode, with flips and
            shifts of 4 pixels where the data set may be mirrored (Badola et al. 2021).
        teacher: the full model; its probabilities take the place of labels. Default: labels.
        solver: of "head": "lbfgs" or "adamw".
        steps: iterations of L-BFGS (100) or passes over the images (AdamW 100, network 1).
        lr: learning rate; default 1e-2 for AdamW, 1e-4 for "network".
        decay: as of `fit_features`, of "head" only.
        split: part of a named data set.
        batch_size: images in a step; default 256 for "head", 128 for "network".
        workers: processes that decode streamed images.
        seed: of the order and augmentation of "network".

    Returns:
        `model`.

    Raises:
        InputError: no decomposed head, no such fit, or data that do not fit.
    """
    if how not in ("head", "network"):
        raise InputError(f"There is no fit {how!r}: choose head or network.")
    if (steps is not None and steps < 1) or (lr is not None and not (math.isfinite(lr) and lr > 0)):
        raise InputError(f"steps={steps} and lr={lr} must be at least 1 and above 0.")
    head = head_of(model)
    if how == "network":
        _train(model, data, teacher, steps or 1, lr or 1e-4, split, batch_size or 128, workers, seed)
        return model.eval()
    pairs = open_data(model, data, split, batch_size=batch_size or 256, workers=workers)
    soft: list[Tensor] = []

    def stream() -> Any:
        for images, labels in pairs:
            if teacher is not None:
                soft.append(_probabilities(teacher, images).cpu())
            yield images, labels

    features, labels, _ = responses(model, stream())
    targets = torch.cat(soft) if soft else labels
    fit_features(head, features, targets, solver=solver, steps=steps or 100, lr=lr or 1e-2, decay=decay)
    return model.eval()


@torch.no_grad()
def _probabilities(teacher: nn.Module, images: Tensor) -> Tensor:
    teacher.eval()
    sample = next(teacher.parameters())
    return teacher(images.to(sample.device, sample.dtype)).softmax(1)


def _train(
    model: nn.Module,
    data: Any,
    teacher: nn.Module | None,
    passes: int,
    lr: float,
    split: str,
    batch_size: int,
    workers: int,
    seed: int,
) -> None:
    """A plain loop: all parameters, Adam, cross-entropy."""
    from pellucid.core.data.augment import Augment
    from pellucid.core.data.batches import batches
    from pellucid.core.data.dataset import Dataset
    from pellucid.core.measure.fits import check_fits, normalization

    data = named(model, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    device = next(model.parameters()).device
    for epoch in range(passes):
        if isinstance(data, Dataset):
            check_fits(model, data)
            norm = normalization(model, data)
            augment = Augment(flip=data.flip, crop=4 if data.flip and min(data.image_size) >= 32 else 0)
            stream: Any = (
                (batch.images, batch.labels)
                for batch in batches(
                    getattr(data, split), batch_size, mean=norm.mean, std=norm.std, device=device, shuffle=True,
                    augment=augment, seed=seed, epoch=epoch, workers=workers,
                )
            )  # fmt: skip
        else:
            stream = open_data(model, data, split, batch_size=batch_size, workers=workers)
        model.train()
        for images, labels in stream:
            images = images.to(device)
            targets = labels.long().to(device) if teacher is None else _probabilities(teacher, images).to(device)
            optimizer.zero_grad()
            objective(model(images), targets).backward()
            optimizer.step()
    model.eval()
