"""The way back from a layer's output to images, for layers whose output cannot be decoded: an idea that knows one
registers it. This file names none."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.swap import load_ideas

# (model, images (N, C, H, W) in [0, 1], dotted name of a layer) -> images of the same shape, on the CPU
Way = Callable[[nn.Module, Tensor, str], Tensor]

_WAYS: list[Way] = []


def register(way: Way) -> None:
    """Make `way` what `reconstruct` does; the last registration holds."""
    _WAYS.append(way)


def reconstruct(model: nn.Module, images: Tensor, layer: str) -> Tensor:
    """Images (N, C, H, W) in [0, 1] on which the output of `layer` is what it is on `images`.

    Raises:
        InputError: no way is installed, or it cannot take this network or layer.
    """
    load_ideas()
    if not _WAYS:
        raise InputError("Nothing here leads from a layer back to images: install pellucid whole.")
    return _WAYS[-1](model, images, layer)
