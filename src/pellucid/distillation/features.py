"""What a classifier makes of images: their logits, and the features that its last layer reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.data.augment import normalize
from pellucid.core.errors import InputError, first_line
from pellucid.core.facts import Normalization, facts
from pellucid.core.modes import evaluating
from pellucid.core.network.tap import tap

CHUNK = 256  # images in a step


@dataclass(frozen=True)
class Seen:
    """Of N images: logits (N, K) and features (N, D), float32 on the CPU; and the layer that reads these."""

    logits: Tensor
    features: Tensor
    layer: str


@torch.no_grad()
def look(
    model: nn.Module,
    chunks: Iterable[Tensor],
    *,
    norm: Normalization | None = None,
    layer: str | None = None,
) -> Seen:
    """Pass images through `model` in evaluation mode.

    Args:
        model: any network, images (B, C, H, W) -> logits (B, K); its mode is left as it was.
        chunks: batches of uint8 images (B, C, H, W).
        norm: how its input is normalised, where the model does not say.
        layer: dotted name of the layer whose input is meant; default the last one with weights that runs. Maps
            (B, D, H, W) are averaged over their positions.

    Raises:
        InputError: no image, images or a layer that do not fit the model, or an answer that is not (B, K).
    """
    logits, features = [], []
    with evaluating(model):
        for chunk in chunks:
            images = normalized(model, chunk, norm)
            layer = layer or last_layer(model, images[:1])
            with tap(model, [layer]) as taps:
                answer = run(model, images)
            found = taps[layer].input
            if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(images):
                raise InputError(f"Layer {layer!r} did not run on these images, or takes no features: name another.")
            logits.append(answer.float().cpu())
            features.append((found.flatten(2).mean(2) if found.ndim > 2 else found).float().cpu())
    if not logits:
        raise InputError("There are no images to look at.")
    assert layer is not None
    return Seen(torch.cat(logits), torch.cat(features), layer)


@torch.no_grad()
def answers(model: nn.Module, pixels: Tensor, norm: Normalization | None = None) -> Tensor:
    """Logits (N, K) of uint8 images (N, C, H, W), float32 on the CPU."""
    with evaluating(model):
        return torch.cat([run(model, normalized(model, chunk, norm)).float().cpu() for chunk in pixels.split(CHUNK)])


def normalized(model: nn.Module, pixels: Tensor, norm: Normalization | None = None) -> Tensor:
    """uint8 images (B, C, H, W) as the model takes them: by its own normalisation, else by `norm`, on its device."""
    norm = facts(model).normalization or norm
    if norm is None:
        raise InputError("The model does not know how its input is normalised: give its mean and std.")
    if pixels.shape[1] != norm.channels:
        raise InputError(f"The images have {pixels.shape[1]} channels, but the model takes {norm.channels}.")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return normalize(pixels.to(device), norm.mean, norm.std)


def last_layer(model: nn.Module, images: Tensor) -> str:
    """The name of the last layer with weights that runs on `images` (B, C, H, W), normalised."""
    ran: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if name and (isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or _holds_weights(module)):
            handles.append(module.register_forward_hook(lambda *_, name=name: ran.append(name)))
    try:
        run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise InputError(f"This {type(model).__name__} has no layer with weights to read features at: name another.")
    return ran[-1]


def _holds_weights(module: nn.Module) -> bool:
    return any(p.ndim > 1 for p in module.parameters(recurse=False))


def run(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, K); InputError where the images do not fit or the answer is none."""
    try:
        answer: Any = model(images)
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise InputError(f"The model cannot take images of {shape} ({first_line(error)}).") from None
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        raise InputError(f"The model answers {type(answer).__name__}: it must give logits (images, classes).")
    return answer
