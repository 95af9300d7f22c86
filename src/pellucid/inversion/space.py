"""The images that a network takes: their shape and normalisation, and the network itself by whatever it is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.core.device import choose_device, device_of
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization, facts, unwrapped
from pellucid.core.source import Named, open_network


@dataclass(frozen=True)
class Space:
    """The images that a network takes.

    Attributes:
        shape: (C, H, W) of an image.
        mean, std: (C, 1, 1) each: the network sees (x - mean) / std of pixels x in [0, 1].
    """

    shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor

    def normalized(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1], as the network takes them."""
        return (images - self.mean) / self.std

    def pixels(self, x: Tensor) -> Tensor:
        """Normalised images back in [0, 1], not clipped."""
        return x * self.std + self.mean

    def clamped(self, x: Tensor) -> Tensor:
        """Normalised images with their pixels clipped to [0, 1]."""
        return torch.minimum(torch.maximum(x, -self.mean / self.std), (1 - self.mean) / self.std)


def space_of(
    model: nn.Module,
    shape: Sequence[int] | None = None,
    normalization: Normalization | Mapping[str, Sequence[float]] | None = None,
    device: str | None = None,
) -> Space:
    """The images that `model` takes, on its device or on `device`.

    Args:
        model: a network; what is not given is read from its facts.
        shape: (C, H, W) of an image.
        normalization: {"mean", "std"} of pixels in [0, 1], one number per channel.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: shape or normalisation is neither given nor known, or the two do not fit each other.
    """
    known = facts(model)
    if shape is None:
        if known.in_channels is None or known.image_size is None:
            raise InputError("The network does not say which image shape it takes: give shape=(C, H, W).")
        shape = (known.in_channels, *known.image_size)
    if len(shape) != 3 or not all(isinstance(n, int) and n >= 1 for n in shape):
        raise InputError(f"shape={tuple(shape)} is not the shape of an image: give (C, H, W).")
    own = Normalization.of(normalization) or known.normalization
    if own is None:
        raise InputError("The network does not say how its input is normalised: give mean and std of each channel.")
    if own.channels != shape[0]:
        raise InputError(f"mean and std must be {shape[0]} numbers each, one per channel, not {own.channels}.")
    where = device_of(model) if device is None else torch.device(choose_device(device))
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=where).view(-1, 1, 1) for values in (own.mean, own.std)
    )
    return Space((int(shape[0]), int(shape[1]), int(shape[2])), mean, std)


def network_of(
    named: Named,
    normalization: Normalization | Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
) -> nn.Module:
    """The network that `named` stands for; a module is returned as it is, and nothing about it is changed.

    Args:
        named: a module, a run folder, a checkpoint, MODEL=FILE, an architecture (random weights), or a `Run`.
        normalization: of its input, where a named network does not know it.
        seed: what random weights are drawn from.

    Raises:
        InputError: no such network, or its normalisation is not known.
    """
    if isinstance(named, nn.Module):
        return unwrapped(named)
    return open_network(named, fallback=Normalization.of(normalization), seed=seed, normalized=True).model
