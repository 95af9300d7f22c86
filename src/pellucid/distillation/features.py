"""A classifier's logits for images, and the features that its last layer reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.data.augment import normalize
from pellucid.core.device import device_of, fitting
from pellucid.core.errors import InputError, first_line
from pellucid.core.facts import Normalization, facts
from pellucid.core.modes import evaluating
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.network.plain import CONVOLUTIONS
from pellucid.core.network.tap import tap

BATCH = 256  # images in a step, where nothing else is said


@dataclass(frozen=True)
class Features:
    """Logits (N, K) and features (N, D) of N images, float32 on the CPU, and the name of the layer that reads them."""

    logits: Tensor
    features: Tensor
    layer: str


@torch.no_grad()
def read_features(
    model: nn.Module,
    chunks: Iterable[Tensor],
    *,
    norm: Normalization | None = None,
    layer: str | None = None,
) -> Features:
    """Pass images through `model` in evaluation mode, and keep its logits and the input of one layer.

    Args:
        model: any network, images (B, C, H, W) -> logits (B, K). The mode of every submodule is as before afterwards.
        chunks: batches of uint8 images (B, C, H, W).
        norm: how its input is normalised, where its facts do not say.
        layer: dotted name of the layer whose input the features are; default the last layer with weights that runs.
            Feature maps (B, D, H, W) are averaged over their positions.

    Raises:
        InputError: no image, images or a layer that do not fit the model, or an output that is not (B, K).
    """
    logits, features = [], []
    with evaluating(model):
        for chunk in chunks:
            images = normalized(model, chunk, norm)
            layer = layer or last_layer(model, images[:1])
            with tap(model, [layer]) as taps:
                output = logits_from(model, images)
            found = taps[layer].input
            if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(images):
                raise InputError(
                    f"Layer {layer!r} did not run on these images, or its input is not (B, D): name another."
                )
            logits.append(output.float().cpu())
            features.append((found.flatten(2).mean(2) if found.ndim > 2 else found).float().cpu())
    if not logits:
        raise InputError("There are no images to read features from: give at least one.")
    assert layer is not None
    return Features(torch.cat(logits), torch.cat(features), layer)


@torch.no_grad()
def logits_of(model: nn.Module, pixels: Tensor, norm: Normalization | None = None, batch_size: int = BATCH) -> Tensor:
    """Logits (N, K), float32 on the CPU, of uint8 images (N, C, H, W); `norm` as in `normalized`."""
    with evaluating(model):
        chunks = pixels.split(batch_size)
        return torch.cat([logits_from(model, normalized(model, chunk, norm)).float().cpu() for chunk in chunks])


def normalized(model: nn.Module, pixels: Tensor, norm: Normalization | None = None) -> Tensor:
    """uint8 images (B, C, H, W) as the model takes them, on its device.

    Args:
        model: its facts say how its input is normalised.
        pixels: the images.
        norm: how it is normalised, where the facts do not say.

    Raises:
        InputError: the normalisation is not known, or the images have other channels.
    """
    norm = facts(model).normalization or norm
    if norm is None:
        raise InputError("The model does not know how its input is normalised: give its mean and std.")
    if pixels.shape[1] != norm.channels:
        raise InputError(f"The images have {pixels.shape[1]} channels, but the model takes {norm.channels}.")
    return normalize(pixels.to(device_of(model)), norm.mean, norm.std)


def last_layer(model: nn.Module, images: Tensor) -> str:
    """The dotted name of the last layer with weights that runs on normalised images (B, C, H, W)."""
    needs_layers(model, "Reading features")
    ran: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if name and (isinstance(module, nn.Linear | CONVOLUTIONS) or _holds_weights(module)):
            handles.append(module.register_forward_hook(lambda *_, name=name: ran.append(name)))
    try:
        logits_from(model, images)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise InputError(f"This {type(model).__name__} has no layer with weights to read features at: name another.")
    return ran[-1]


def _holds_weights(module: nn.Module) -> bool:
    return any(p.ndim > 1 for p in module.parameters(recurse=False))


def logits_from(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, K) of normalised images; InputError where the images do not fit or the output is anything else."""
    try:
        output: Any = model(fitting(model, images))
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise InputError(f"The model cannot take images of {shape} ({first_line(error)}).") from None
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise InputError(
            f"The model returns {type(output).__name__}: it must return logits (images, classes); wrap it with "
            "pellucid.wrap(model, logits=...)."
        )
    return output
