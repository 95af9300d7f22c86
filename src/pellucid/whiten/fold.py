"""The plain torch layers that whitening layers are, exactly, in evaluation."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError

if TYPE_CHECKING:
    from pellucid.whiten.base import Whitening
    from pellucid.whiten.channels import ChannelDeconv, ChannelHead
    from pellucid.whiten.convolution import FastDeconv1d, FastDeconv2d, FastDeconv3d
    from pellucid.whiten.linear import FastDeconvLinear
    from pellucid.whiten.transposed import FastDeconvTranspose2d


def _fresh(layer: Whitening) -> bool:
    """Whether the layer has seen no input yet, so that it is its plain twin and no root need be computed."""
    updates = layer.whiten.updates
    return updates.device.type == "meta" or not int(updates)


def convolution(layer: FastDeconv1d | FastDeconv2d | FastDeconv3d) -> nn.Module:
    r"""A convolution with the same arguments, weight $W D$ and bias $b - W D \mu$.

    The mean is of padded patches, so the bias is right at the border too.
    """
    kind = next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, kind))
    return _plain(kind, layer, *_folded(layer))


def linear(layer: FastDeconvLinear) -> nn.Module:
    """A linear layer."""
    return _plain(nn.Linear, layer, *_folded(layer))


def _folded(layer: FastDeconv1d | FastDeconv2d | FastDeconv3d | FastDeconvLinear) -> tuple[Tensor, Tensor]:
    if not _fresh(layer):
        return layer.folded()
    return layer.weight, layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias


def transposed(layer: FastDeconvTranspose2d) -> nn.Module:
    """A depthwise 1x1 convolution, which subtracts the mean, then a transposed convolution.

    The two do not fold into one: at the border of the output not all kernel positions add up, so no single bias per
    channel can stand for the mean.
    """
    channels = layer.in_channels
    mean, weight = (layer.weight.new_zeros(channels), layer.weight) if _fresh(layer) else layer.folded()
    centre = _holding(
        nn.Conv2d(channels, channels, 1, groups=channels, device="meta"),
        layer.weight,
        torch.ones(channels, 1, 1, 1, device=mean.device),
        -mean,
    )
    return nn.Sequential(OrderedDict(centre=centre, conv=_plain(nn.ConvTranspose2d, layer, weight, layer.bias)))


def channels(layer: ChannelDeconv, axes: int | None) -> nn.Module:
    """A linear layer for input (N, C), a 1x1 convolution for maps; `axes` is the number of axes of the input.

    Raises:
        InputError: `axes` is unknown, or there is no such layer.
    """
    kinds = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    if axes not in kinds:
        raise InputError("What a ChannelDeconv folds to depends on its input: give an example that runs through it.")
    weight, bias = layer.folded()
    arguments = (layer.num_channels, layer.num_channels, *([1] if axes > 2 else []))
    weight = weight.reshape(*weight.shape, *[1] * (axes - 2))
    return _holding(kinds[axes](*arguments, device="meta"), layer.whiten.root, weight, bias)


def channel_head(layer: ChannelHead) -> nn.Module:
    """One linear layer."""
    whiten, linear = layer.whiten, layer.linear
    bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
    if _fresh(whiten):
        return _plain(nn.Linear, linear, linear.weight, bias)
    root, shift = whiten.folded()
    weight = linear.weight.to(root.dtype)
    return _plain(nn.Linear, linear, weight @ root, bias.to(root.dtype) + weight @ shift)


def _plain(kind: type[nn.Module], layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A `kind` with the constructor arguments of `layer` and these weights."""
    names = inspect.signature(kind.__init__).parameters.keys() - {"self", "bias", "device", "dtype"}
    arguments: dict[str, Any] = {name: getattr(layer, name) for name in names}
    # Built without memory: its own random weights would be thrown away, and advance the random state.
    made = kind(**arguments, bias=bias is not None, device="meta")
    assert isinstance(layer.weight, Tensor)
    return _holding(made, layer.weight, weight, bias)


def _holding(made: nn.Module, like: Tensor, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """`made`, given its own copies of these parameters, in the type of `like`."""
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            # Contiguous: a product of transposed matrices is laid out otherwise, and would go to other, slower kernels.
            own = value.detach().to(like.dtype).clone(memory_format=torch.contiguous_format)
            setattr(made, name, nn.Parameter(own, requires_grad=like.requires_grad))
    return made
