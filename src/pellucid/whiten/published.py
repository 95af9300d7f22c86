"""yechengxi/deconvolution: VGG and ResNet on whitened input (Ye et al., ICLR 2020).

Every convolution whitens its input, without batch norm, and a linear layer too. Files hold, of each layer, a running
mean and a running average of roots, which evaluation uses: nothing is lost there. The covariance that the roots were
made of is not stored; `whiten.recover` works out which one has such a root.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError, shown
from pellucid.core.facts import Normalization
from pellucid.core.network.models import resnet, vgg
from pellucid.core.network.models.init import initialise
from pellucid.core.network.published.reading import CIFAR10, IMAGENET, arguments, described, image_side, renamed
from pellucid.core.network.swap import swap
from pellucid.whiten.blocks import divisor
from pellucid.whiten.options import DEFAULTS, PUBLISHED
from pellucid.whiten.recover import recovered
from pellucid.whiten.rule import Deconv, Head

PREFIX = "deconvolution"
_LARGE = "d"  # the end of the names of ImageNet's networks
_VGGS = ("vgg11", "vgg13", "vgg16", "vgg19", "vgg11d", "vgg16d")
_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_RESNETS = {f"resnet{depth}{form}": (depth, bool(form)) for form in ("", _LARGE) for depth in _DEPTHS}
_ARGS = {
    "block": "channels whitened together, by default 64",
    "block_fc": "features of a linear layer whitened together, 0 for none, by default 512 or for ImageNet 64",
}
_SAMPLING = 3  # every how many positions the moments are taken from
_STEPS = DEFAULTS["n_iter"]  # Newton steps
_FIRST = 15  # those of the first layer, of all networks but the small ResNets
_RENAMES = [
    (r"^features\.module\.", "features."),  # where the convolutions of VGG ran on several devices
    (r"\.shortcut\.", ".downsample."),
    (r"^linear\.", "fc."),
]


class Deconvolution:
    """The networks of deconvolution, with the layers of `--layers deconv` in their published arithmetic."""

    def names(self) -> tuple[str, ...]:
        return (*_VGGS, *_RESNETS)

    def build(
        self, name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], args: Mapping[str, Any]
    ) -> nn.Module:
        block, block_fc = _blocks(name, args)
        large = name.endswith(_LARGE)
        image_side(PREFIX, name, image_size, 32 if large else 8)
        model = _plain(name, num_classes, in_channels, image_size)
        kept = {key: norm for key, norm in model.named_modules() if large and key.endswith("downsample.1")}
        head: Head = "plain" if not block_fc else "all-linear" if name in _VGGS else "linear"
        first = _FIRST if _first(name) else _STEPS
        options: dict[str, Any] = {**DEFAULTS, **PUBLISHED}
        swap(model, Deconv(options, block, block_fc, head, None, first, False, _SAMPLING, "pooled"))
        swap(model, lambda whole: kept)  # ImageNet's ResNets normalise what their shortcuts project
        return model

    def image_size(self, name: str) -> tuple[int, int]:
        return (224, 224) if name.endswith(_LARGE) else (32, 32)

    def normalization(self, name: str) -> Normalization | None:
        """For CIFAR-10, and for ImageNet where the name ends in "d"; CIFAR-100 was normalised otherwise."""
        return IMAGENET if name.endswith(_LARGE) else CIFAR10

    def describe(self, name: str, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Any]:
        state, stem, head = renamed(state, _RENAMES), "conv1.weight", "fc.weight"
        if name in _VGGS:
            stem, head = "features.0.weight", f"classifier{'.6' if name.endswith(_LARGE) else ''}.weight"
        return described(f"{PREFIX}:{name}", state, stem, head, self.image_size(name))

    def read(self, name: str, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Tensor]:
        """Running mean and root become those of the whitening layers, and their covariance is worked out.

        Raises:
            InputError: roots of another size than `args` say, or none.
        """
        block, block_fc = _blocks(name, args)
        if any(".whiten." in key for key in state):
            return dict(state)
        named = renamed(state, _RENAMES)
        whitened = {key.removesuffix(".running_deconv") for key in named if key.endswith(".running_deconv")}
        if not whitened:
            raise InputError(
                f"These weights have no running_deconv, so they are no whitening network of {PREFIX}: one with batch "
                "norm is loaded under the name of its architecture."
            )
        if block_fc and not whitened & {"classifier", "classifier.6", "fc"}:
            raise InputError(f"The last layer of this {name} is not whitened: give --model-args block_fc=0.")
        found: dict[str, Tensor] = {}
        for key, value in named.items():
            layer, _, part = key.rpartition(".")
            root, weight = (named.get(f"{layer}.{other}") for other in ("running_deconv", "weight"))
            if root is None or weight is None or part not in ("running_mean", "running_deconv"):
                found[key] = value
            elif part == "running_mean":
                found[f"{layer}.whiten.running_mean"] = value.reshape(1, -1)
            else:
                _check_block(layer, weight, root, block, block_fc)
                steps = _FIRST if layer == _first(name) else _STEPS
                found[f"{layer}.whiten.root"] = root.unsqueeze(0)
                found[f"{layer}.whiten.running_cov"] = _covariance(layer, root, steps).unsqueeze(0)
                # The number of steps is not stored; after 0 a layer would be taken for one that has seen nothing.
                found |= {f"{layer}.whiten.{counter}": torch.tensor(1) for counter in ("steps", "updates")}
        return found


def _blocks(name: str, args: Mapping[str, Any]) -> tuple[int, int]:
    """`block` and `block_fc`."""
    default = {"block": 64, "block_fc": 64 if name.endswith(_LARGE) else 512}
    chosen = {**default, **arguments(PREFIX, args, _ARGS)}
    for key, least in (("block", 1), ("block_fc", 0)):
        value = chosen[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{key}={shown(value, 40)} must be a whole number of at least {least}.")
    return chosen["block"], chosen["block_fc"]


def _first(name: str) -> str:
    """The layer whose root takes more steps; "" where none does."""
    return "features.0" if name in _VGGS else "conv1" if name.endswith(_LARGE) else ""


def _plain(name: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """The network before whitening."""
    if name in _RESNETS:
        depth, large = _RESNETS[name]
        block = cast("type[resnet.BasicBlock]", resnet.BasicBlock if depth < 50 else resnet.Bottleneck)
        return initialise(resnet.ResNet(block, _DEPTHS[depth], 64, num_classes, in_channels, large_stem=large))
    if name.endswith(_LARGE):
        own = name.removesuffix(_LARGE)
        return vgg.network(own, in_channels, min(image_size), num_classes, batch_norm=False, pooled=7)
    features = vgg.convolutions(name, in_channels, min(image_size), batch_norm=False)
    return initialise(vgg.VGG(features, nn.AdaptiveAvgPool2d(1), nn.Linear(512, num_classes)))


def _check_block(layer: str, weight: Tensor, root: Tensor, block: int, block_fc: int) -> None:
    """Refuse a root of another size than the blocks of these sizes give."""
    positions = math.prod(weight.shape[2:])
    name, asked = ("block", block) if weight.ndim > 2 else ("block_fc", block_fc)
    size = positions * divisor(weight.shape[1], asked) if asked else 0
    if root.shape != (size, size):
        there = root.shape[-1] // positions
        raise InputError(
            f"Layer {layer!r} whitens {there} features of its input together, not {size // positions}: give "
            f"--model-args {name}={there}."
        )


def _covariance(layer: str, root: Tensor, steps: int) -> Tensor:
    try:
        return recovered(root, steps, DEFAULTS["eps"]).to(torch.promote_types(root.dtype, torch.float32))
    except InputError as error:
        raise InputError(f"Of layer {layer!r} {error}") from None


PROJECT = Deconvolution()
