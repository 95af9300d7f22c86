"""The optimizer with its parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from pellucid.core.errors import InputError
from pellucid.core.train.settings import TrainSettings


def learning_rate(settings: TrainSettings, step: int, total: int) -> float:
    """The learning rate of `step` (from 0) of `total` steps.

    Over the fraction `warmup` of the steps it rises linearly to the peak. Then, with t from 0 to 1 over the rest:
    cosine, (1 + cos pi t) / 2 (Loshchilov and Hutter 2017, equation 5); one-cycle, 1 - t (Smith and Topin 2017);
    multistep, gamma to the power of the number of milestones (fractions of all steps) passed; constant, 1.
    """
    rise = round(settings.warmup * total)
    if step < rise:
        return settings.peak_lr * (step + 1) / rise
    t = (step - rise) / max(1, total - rise)
    factor = {
        "cosine": (1 + math.cos(math.pi * t)) / 2,
        "one-cycle": 1 - t,
        "multistep": settings.gamma ** sum(step >= round(m * total) for m in settings.milestones),
        "constant": 1.0,
    }[settings.schedule]
    return settings.peak_lr * factor


# What each optimizer keeps of a parameter after its first step, as checkpoints store it.
STATE_NAMES = {"sgd": {"momentum_buffer"}, **{key: {"step", "exp_avg", "exp_avg_sq"} for key in ("adam", "adamw")}}


def make_optimizer(settings: TrainSettings, model: nn.Module, extra: nn.Module | None = None) -> torch.optim.Optimizer:
    """The optimizer of `model` and of `extra`, which is trained along with it.

    Weight decay applies to neither vectors and scalars (biases, normalisation), unless `decay_all` is set, nor `extra`.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError("The model has no parameter to train.")
    vectors = [p for p in trained if p.ndim <= 1 and not settings.decay_all]
    others = [] if extra is None else [p for p in extra.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1 or settings.decay_all], "weight_decay": settings.weight_decay},
        {"params": [*vectors, *others], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.peak_lr, momentum=settings.momentum, nesterov=settings.nesterov)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=settings.peak_lr)
