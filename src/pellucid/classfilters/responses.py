"""Responses of a layer's filters to images, batch by batch: inputs of the last layer, or outputs of an inner one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.classfilters.last_layer import Head, find_head, matrix
from pellucid.core.data.dataset import Dataset
from pellucid.core.device import double, fitting
from pellucid.core.errors import InputError
from pellucid.core.facts import unwrapped
from pellucid.core.measure.fits import check_logits
from pellucid.core.measure.pairs import open_data
from pellucid.core.modes import evaluating
from pellucid.core.network.plain import BATCH_NORMS, CONVOLUTIONS
from pellucid.core.network.tap import module_at

_CHANNELS_FIRST = (CONVOLUTIONS, BATCH_NORMS, nn.GroupNorm)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)


def requested_head(model: nn.Module, images: Tensor, layer: str | None) -> Head | None:
    """The last layer if `layer` is None or names it; None if it names an inner layer."""
    if layer is None:
        return find_head(model, images)
    if matrix(module_at(model, layer)) is None:
        return None
    try:
        last = find_head(model, images)
    except InputError:
        return None  # an inner layer needs no last one
    return last if last.name == layer else None


def batch_responses(
    model: nn.Module, images: Tensor, name: str, head: Head | None, labels: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Responses (B, C), gradient times activation (B, C) if there are `labels`, and logits (B, K) of a batch.

    The layer `name` is read at its input if it is the last one (`head`), else at its output.
    """
    module = module_at(model, name)
    seen: list[Tensor] = []

    def keep(value: Any) -> Tensor:
        if not isinstance(value, Tensor) or value.ndim < 2:
            raise InputError(f"Layer {name!r} returns no tensor of channels: choose another.")
        if seen:
            raise InputError(f"Layer {name!r} runs more than once per pass, so its filters have no single response.")
        if labels is None:
            seen.append(pooled(module, value.detach(), head))
            return value
        # A new leaf: the backward pass ends here; the clone may be overwritten in place by what follows.
        seen.append(value.detach().clone().requires_grad_())
        return seen[0].clone()

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (keep(inputs[0]), *inputs[1:])

    def after(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        return keep(output)

    handle = module.register_forward_pre_hook(before) if head is not None else module.register_forward_hook(after)
    try:
        with evaluating(model), torch.set_grad_enabled(labels is not None):
            logits = model(images)
            check_logits(logits, len(images))
            if not seen:
                raise InputError(f"Layer {name!r} did not run on these images, so it has no responses.")
            if labels is None:
                return seen[0], None, logits
            own = check_labels(labels, len(images), logits.shape[1]).to(logits.device)
            picked = logits.gather(1, own[:, None]).sum()
            (slope,) = torch.autograd.grad(picked, seen[0])
    finally:
        handle.remove()
    value = seen[0].detach()
    size = value[0].numel()
    means = pooled(module, value, head)
    # A sum over positions, hence the mean times their number.
    products = double(pooled(module, value * slope, head)) * (size // means.shape[1])
    return means, products, logits.detach()


def pooled(module: nn.Module, value: Tensor, head: Head | None = None) -> Tensor:
    """(B, C): the mean over all positions."""
    if value.ndim == 2:
        return value
    if head is not None:
        return value.flatten(2).mean(2) if head.spatial else value.flatten(1, -2).mean(1)
    last = isinstance(module, _CHANNELS_LAST) or (value.ndim == 3 and not isinstance(module, _CHANNELS_FIRST))
    return value.flatten(1, -2).mean(1) if last else value.flatten(2).mean(2)


def check_labels(labels: Tensor, images: int, classes: int) -> Tensor:
    """`labels` as int64.

    Raises:
        InputError: they are not one whole number from 0 to `classes` - 1 per image.
    """
    if labels.ndim != 1 or len(labels) != images or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"Labels of shape {list(labels.shape)} and type {str(labels.dtype).removeprefix('torch.')} do not fit "
            f"{images} images: give one whole number per image."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"Label {low if low < 0 else high} is out of range: the network has the classes 0 to {classes - 1}."
        )
    return labels.long()


# --- whole responses, for what needs more than sums ---


def head_inputs(
    model: nn.Module, images: Tensor, labels: Tensor, head: Head | None = None
) -> tuple[Tensor, Tensor, Head, Tensor]:
    """Inputs of the last linear layer (B, C), logits (B, K), that layer (found if not given), and checked labels."""
    images = fitting(model, images)
    head = head or find_head(model, images)
    inputs, _, logits = batch_responses(model, images, head.name, head, None)
    return inputs, logits, head, check_labels(labels, len(images), logits.shape[1]).to(logits.device)


def responses(model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Head]:
    """Inputs of the last linear layer for all images: (N, C) on the CPU, labels (N,), and that layer.

    Memory grows with the number of images (4 N C bytes in float32): for fits of the head and for curves over a test
    set.

    Raises:
        InputError: no images, or a head or labels that `evidence.measure` would refuse.
    """
    model = unwrapped(model)
    rows, kept = [], []
    head: Head | None = None
    for images, labels in pairs:
        inputs, _, head, labels = head_inputs(model, images, labels, head)
        rows.append(inputs.cpu())
        kept.append(labels.cpu())
    if head is None:
        raise InputError("There are no images: give at least one.")
    return torch.cat(rows), torch.cat(kept), head


def probe(model: nn.Module, dataset: Dataset, layer: str | None = None) -> tuple[str, Tensor, Head | None]:
    """Responses of a layer to a few training images, in evaluation mode.

    Returns:
        Its name, its responses (B, C), and the last layer if that is what was asked for; its inputs are then read.

    Raises:
        InputError: as in `evidence.measure`.
    """
    images, _ = next(iter(open_data(model, dataset, fitting="Filters are chosen", batch_size=8)))
    images = fitting(model, images)
    head = requested_head(model, images, layer)
    name = head.name if head is not None else str(layer)
    return name, batch_responses(model, images, name, head, None)[0], head
