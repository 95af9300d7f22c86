"""What a network predicts for images in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.core.device import fitting
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.modes import evaluating


@torch.no_grad()
def predicted_classes(model: nn.Module, images: Tensor, like: nn.Module | None = None) -> Tensor:
    """The class (B,) that `model` predicts for each of the images (B, C, H, W) in [0, 1].

    Args:
        model: images are normalised as its facts say, or else as those of `like` do.
        images: float, in [0, 1].
        like: another network.

    Raises:
        InputError: neither network says how its input is normalised.
    """
    own = facts(model).normalization or (None if like is None else facts(like).normalization)
    if own is None:
        raise InputError("The network does not say how its input is normalised: give mean and std of each channel.")
    with evaluating(model):
        return torch.cat([model(fitting(model, own.apply(part))).argmax(1).cpu() for part in images.split(256)])
