"""Whitening a trained network without changing its function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pellucid.core.device import device_of, double, has_double
from pellucid.core.errors import InputError
from pellucid.core.modes import evaluating, on_device
from pellucid.core.network.tap import module_at
from pellucid.whiten.base import Whitening
from pellucid.whiten.channels import ChannelHead
from pellucid.whiten.convolution import FastDeconv1d, FastDeconv2d, FastDeconv3d
from pellucid.whiten.linear import FastDeconvLinear
from pellucid.whiten.transposed import FastDeconvTranspose2d


def calibrate(plain: nn.Module, whitened: nn.Module, images: Iterable[Tensor]) -> None:
    """Set statistics and weights of `whitened` so that in evaluation it computes what `plain` does.

    One pass of `images` through `plain` gives the whitening layers their statistics. Then $W D^{-1}$ replaces W and
    $b + W \\mu$ replaces b, which undoes the whitening; the ridge in D makes it invertible.

    Args:
        plain: the network before the swap, with no batch norm among the layers that were replaced.
        whitened: the same network after the swap, with layers of the same names.
        images: batches, normalised.

    Raises:
        InputError: a transposed convolution, whose mean no bias can undo at the border, or masked weights.
    """
    pairs = dict(_whitening(whitened))
    for name, layer in pairs.items():
        if isinstance(layer, FastDeconvTranspose2d):
            raise InputError(
                f"The transposed convolution {name!r} cannot keep its function at the border: convert without images."
            )
        inner = layer.linear if isinstance(layer, ChannelHead) else layer
        if parametrize.is_parametrized(inner):
            raise InputError(
                f"The weights of {name!r} are masked, not free to keep its function: convert without images."
            )
    with torch.no_grad():
        with evaluating(plain), _fed(plain, pairs):
            for batch in images:
                plain(batch)
        for name, layer in pairs.items():
            with on_device(layer, None if has_double(device_of(layer)) else "cpu"):
                _undo(layer, module_at(plain, name))


def _whitening(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inside = "\0"
    for name, module in model.named_modules():
        if isinstance(module, Whitening | ChannelHead) and not name.startswith(inside):
            yield name, module
            inside = f"{name}."


@contextlib.contextmanager
def _fed(plain: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """While the block runs, `layers` train on the input of the layers of the same names in `plain`."""

    def feed(layer: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            layer(inputs[0])  # in training mode a layer takes the batch in

        return hook

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            inner = cast(nn.Module, layer.whiten) if isinstance(layer, ChannelHead) else layer
            stack.enter_context(evaluating(inner))  # gives the mode back
            inner.train()
            stack.enter_context(module_at(plain, name).register_forward_pre_hook(feed(inner)))
        yield


def _undo(layer: nn.Module, plain: nn.Module) -> None:
    """Give `layer` weights with which it computes what `plain` does; worked out in float64."""
    weight, bias = double(cast(Tensor, plain.weight)), cast(Tensor | None, plain.bias)
    if isinstance(layer, ChannelHead):
        root, shift = (part.double() for part in layer.whiten.folded())
        held = layer.linear
        weight = torch.linalg.solve(root, weight, left=False)
        shift = weight @ shift
    else:
        assert isinstance(layer, FastDeconv1d | FastDeconv2d | FastDeconv3d | FastDeconvLinear)
        held = cast(nn.Linear, layer)
        mean, root = (part.double() for part in layer.whiten.at_eval())
        # Whitening by the inverse of the root is the inverse of whitening, whatever the order of the features.
        held.weight = nn.Parameter(weight)
        held.bias = nn.Parameter(weight.new_zeros(weight.shape[0]))
        weight, _ = layer.folded(torch.zeros_like(mean), torch.linalg.inv(root))
        held.weight = nn.Parameter(weight.detach())
        _, shift = layer.folded(mean, root)
    bias = torch.zeros_like(shift) if bias is None else double(bias)
    like = cast(Tensor, plain.weight)
    held.weight = nn.Parameter(weight.detach().to(like.dtype), like.requires_grad)
    held.bias = nn.Parameter((bias - shift).detach().to(like.dtype), like.requires_grad)
