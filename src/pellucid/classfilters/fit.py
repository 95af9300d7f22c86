"""Fit a decomposed head, or the whole network around it, to labels or to another model's probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.classfilters.head import DecomposedHead, head_of
from pellucid.classfilters.logistic import fit_features
from pellucid.classfilters.responses import check_labels, responses
from pellucid.core.data.batches import Batch
from pellucid.core.data.dataset import Dataset
from pellucid.core.data.splits import for_fitting
from pellucid.core.device import fitting
from pellucid.core.errors import InputError
from pellucid.core.measure.fits import check_fits, normalization
from pellucid.core.measure.pairs import named, open_data
from pellucid.core.modes import evaluating
from pellucid.core.train.inner import train_in_place
from pellucid.core.train.objective import Objective
from pellucid.core.train.settings import TrainSettings

# As published (Badola et al. 2021): Adam at a constant learning rate, without weight decay.
PUBLISHED = TrainSettings(
    optimizer="adam", lr=1e-4, weight_decay=0.0, schedule="constant", warmup=0.0, epochs=1, batch_size=128, crop=0
)
FITTED = "A head is fitted"  # to what `for_fitting` accepts
CROP, CROPPED = 4, 32  # pixels of padding before a random crop, and the image side from which on there is one


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
        data: as in `decompose`.
        how: "head" computes the inputs of the head once and fits its weights (seconds; `fit_features`). "network"
            trains all parameters with the settings of the paper (Badola et al. 2021): Adam at a constant learning rate,
            no weight decay, batch norm in training mode. Images of a named data set that may be mirrored are flipped
            and, from 32 pixels on, shifted by up to 4; its last incomplete batch is left out. Other data are taken as
            they come.
        teacher: the full model, whose probabilities take the place of the labels. Default: labels.
        solver: for "head": "lbfgs" or "adamw".
        steps: iterations of L-BFGS (default 100) or passes over the images (AdamW 100, "network" 1).
        lr: learning rate; default 1e-2 for AdamW, 1e-4 for "network".
        decay: as in `fit_features`, for "head" only.
        split: part of a named data set or `Dataset`: "train" or "val", never the test split.
        batch_size: images per step; default 256 for "head", 128 for "network".
        workers: processes that decode streamed images.
        seed: of the order and the augmentation in "network".

    Returns:
        `model`.

    Raises:
        InputError: no decomposed head, an unknown fit, a number out of range, or data that do not fit.
        TrainingStopped: the loss of "network" became infinite or NaN.
    """
    if how not in ("head", "network"):
        raise InputError(f"There is no fit {how!r}: choose head or network.")
    if (steps is not None and steps < 1) or (lr is not None and not (math.isfinite(lr) and lr > 0)):
        raise InputError(f"steps={steps} and lr={lr} are out of range: steps must be at least 1 and lr above 0.")
    head = head_of(model)
    if how == "head":
        fit_heads(
            model, [head], data, teacher=teacher, solver=solver, steps=steps or 100, lr=lr or 1e-2, decay=decay,
            split=split, batch_size=batch_size or 256, workers=workers,
        )  # fmt: skip
        return model.eval()
    settings = replace(
        PUBLISHED,
        epochs=steps or PUBLISHED.epochs,
        lr=lr or PUBLISHED.lr,
        batch_size=batch_size or PUBLISHED.batch_size,
        workers=workers,
        seed=seed,
    )
    objective = Objective() if teacher is None else TeacherProbabilities(teacher)
    data = named(model, data)
    if isinstance(data, Dataset):
        check_fits(model, data)
        norm = normalization(model, data)
        crop = CROP if data.flip and min(data.image_size) >= CROPPED else 0
        data = replace(data, train=for_fitting(data.part(split), FITTED), mean=norm.mean, std=norm.std)
        train_in_place(model, data, replace(settings, crop=crop), objective)
    else:
        train_in_place(model, _checked(model, data, settings.batch_size, head.out_features), settings, objective)
    return model.eval()


def fit_heads(
    model: nn.Module,
    heads: Iterable[DecomposedHead],
    data: Any,
    *,
    teacher: nn.Module | None = None,
    solver: str = "lbfgs",
    steps: int = 100,
    lr: float = 1e-2,
    decay: float = 0.0,
    split: str = "train",
    batch_size: int = 256,
    workers: int = 0,
) -> None:
    """Fit several heads, in place, to what enters the last layer of one network: a single pass over the images.

    Args:
        model: the network; it stays as it is, and needs none of the heads in it.
        heads: with as many inputs and outputs as its last layer.
        data, split, batch_size, workers: as in `decompose`.
        teacher, solver, steps, lr, decay: as in `fit`.

    Raises:
        InputError: heads or data that do not fit, an unknown solver, or a number out of range.
    """
    soft: list[Tensor] = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in open_data(model, data, split, fitting=FITTED, batch_size=batch_size, workers=workers):
            if teacher is not None:
                soft.append(_probabilities(teacher, images).cpu())
            yield images, labels

    features, labels, _ = responses(model, stream())
    targets = torch.cat(soft) if soft else labels
    for head in heads:
        fit_features(head, features, targets, solver=solver, steps=steps, lr=lr, decay=decay)


class TeacherProbabilities(Objective):
    """Cross-entropy with the probabilities of a teacher, which sees the same images, in place of labels."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    def __call__(
        self, forward: Callable[[Tensor], Tensor], batch: Batch, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of one step, and the logits; see `Objective`."""
        logits = forward(images).float()
        return self.cross_entropy(logits, _probabilities(self.teacher, images).to(logits)), logits


@torch.no_grad()
def _probabilities(teacher: nn.Module, images: Tensor) -> Tensor:
    """(B, K) of a teacher in evaluation mode."""
    with evaluating(teacher):
        return teacher(fitting(teacher, images)).softmax(1)


def _checked(
    model: nn.Module, data: Any, batch_size: int, classes: int
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """A function that begins a pass over `data`, whose labels are checked."""
    pairs = open_data(model, data, fitting=FITTED, batch_size=batch_size)
    return lambda: ((images, check_labels(labels, len(images), classes)) for images, labels in pairs)
