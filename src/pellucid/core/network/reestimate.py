"""Re-estimate batch-norm statistics from unlabelled images (Li et al. 2016; Nado et al. 2020; Schneider et al. 2020).

This is the control for every claim of robustness: it uses no labels and knows no corruption, it only sees many images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.device import double, fitting
from pellucid.core.errors import InputError
from pellucid.core.facts import unwrapped
from pellucid.core.modes import evaluating
from pellucid.core.network.statistics import BATCH_NORMS, Moments


@contextlib.contextmanager
def reestimated(model: nn.Module, batches: Tensor | Sequence[Tensor]) -> Iterator[list[str]]:
    """While the block runs, every batch-norm layer normalises with the mean and variance of its input on `batches`.

    The statistics are exactly those of all batches pooled, as if they were one batch (a layer's are computed after
    those of all layers before it are set), with the population variance, as in a training step. One batch costs one
    pass, several cost as many passes as there are layers. The block receives the layers' names in the order in which
    they run. Afterwards every buffer and the mode of every submodule are what they were before.

    Args:
        model: any network; in evaluation mode while the block runs.
        batches: images as the model expects them, normalised and on its device; one tensor or several.

    Raises:
        InputError: no batch-norm layer with running statistics ran, or no image was given.
    """
    model = unwrapped(model)
    groups = [group for group in ([batches] if isinstance(batches, Tensor) else batches) if len(group)]
    if not groups:
        raise InputError("Batch norm cannot be re-estimated without images: give at least one.")
    norms = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, BATCH_NORMS) and layer.running_mean is not None
    }
    kept = {name: {key: value.clone() for key, value in layer.named_buffers()} for name, layer in norms.items()}
    with evaluating(model):
        try:
            with torch.no_grad():
                order = _set_in_one_pass(model, norms, groups[0])
                if len(groups) > 1:
                    for name in order:
                        _set(norms[name], _pooled(model, norms[name], groups))
            if not order:
                raise InputError(
                    "The model has no batch norm with running statistics: there is nothing to re-estimate."
                )
            yield order
        finally:
            for name, buffers in kept.items():
                for key, value in buffers.items():
                    norms[name].get_buffer(key).copy_(value)


def _set_in_one_pass(model: nn.Module, norms: dict[str, Any], images: Tensor) -> list[str]:
    """Set each layer's statistics from its input just before it runs; the names in the order of running."""
    order: list[str] = []

    def hook(name: str) -> Any:
        def before(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            _set(layer, _moments(inputs[0]))
            order.append(name)

        return before

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in norms.items()]
    try:
        model(fitting(model, images))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


class _Seen(Exception):
    """Ends a pass at the layer of interest."""


def _pooled(model: nn.Module, layer: nn.Module, groups: Sequence[Tensor]) -> Moments:
    """The moments of one layer's input over all batches."""
    found: list[Moments] = []

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(_moments(inputs[0]))
        raise _Seen

    handle = layer.register_forward_pre_hook(before)
    try:
        for group in groups:
            with contextlib.suppress(_Seen):
                model(group)
    finally:
        handle.remove()
    total = found[0]
    for moments in found[1:]:
        total = total.merge(moments)
    return total


def _moments(x: Tensor) -> Moments:
    values = double(x.detach().transpose(0, 1).flatten(1))
    return Moments(values.mean(1), values.var(1, correction=0), count=values.shape[1])


def _set(layer: Any, moments: Moments) -> None:
    layer.running_mean.copy_(moments.mean)
    layer.running_var.copy_(moments.var)
