"""allenai/hidden-networks (Apache-2.0): subnetworks of random weights (Ramanujan et al. 2020).

Every convolution holds random weights and scores; a network computes with the fraction `keep` of the weights that have
the largest |scores|. That fraction is not in the files. Their linear layers are 1x1 convolutions, and become linear
layers here; batch norm has no scale and shift.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization
from pellucid.core.network.models import conv, resnet
from pellucid.core.network.published.reading import IMAGENET, arguments, described, image_side, renamed
from pellucid.edgepopup.layers import Layer, masks
from pellucid.edgepopup.mask import check_keep, kept
from pellucid.edgepopup.parametrization import fans
from pellucid.edgepopup.subnet import subnet

PREFIX = "hidden-networks"
_DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# name -> depth, whether the stem is ImageNet's, width of the 3x3 convolutions
_RESNETS = {
    **{f"cResNet{depth}": (depth, False, 1) for depth in _DEPTHS},
    **{f"resnet{depth}": (depth, True, 1) for depth in _DEPTHS},
    "wide_resnet50_2": (50, True, 2),
    "wide_resnet101_2": (101, True, 2),
}
_ARGS = {"keep": "the fraction of weights kept, such as keep=0.3"}
_RENAMES = [(r"\.shortcut\.", ".downsample."), (r"^convs\.", "features."), (r"^linear\.", "classifier.")]
_WEIGHT, _SCORES, _SEED = (f"parametrizations.weight.{part}" for part in ("original", "0.scores", "0._extra_state"))


class HiddenNetworks:
    """The networks of hidden-networks, which are masked as by `pellucid.subnet(model, keep, init="given")`."""

    def names(self) -> tuple[str, ...]:
        return (*_RESNETS, *conv.FORMS)

    def build(
        self, name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], args: Mapping[str, Any]
    ) -> nn.Module:
        """The weights are drawn as published: a constant with random signs, sqrt(2 / fan_in)."""
        keep = _keep(name, args)
        image_side(PREFIX, name, image_size, 32 if name in _RESNETS and _RESNETS[name][1] else 4)
        model = _plain(name, num_classes, in_channels, image_size)
        for layer in model.modules():
            if isinstance(layer, Layer):
                layer.bias = None
                with torch.no_grad():
                    layer.weight.normal_().sign_().mul_(math.sqrt(2 / fans(layer)[0]))
        subnet(model, keep, init="given")
        for _, _, mask in masks(model):
            n = mask.scores.numel()
            if kept(keep, n) != _kept(keep, n):
                mask.options = replace(mask.options, keep=_kept(keep, n) / n)
        return model

    def image_size(self, name: str) -> tuple[int, int]:
        return (224, 224) if name in _RESNETS and _RESNETS[name][1] else (32, 32)

    def normalization(self, name: str) -> Normalization | None:
        if self.image_size(name) == (224, 224):
            return IMAGENET
        return Normalization((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))

    def describe(self, name: str, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Any]:
        state = renamed(state, [*_RENAMES, (rf"\.{re.escape(_WEIGHT)}$", ".weight")])
        stem, head = ("conv1", "fc") if name in _RESNETS else ("features.0", "classifier.4")
        found = described(f"{PREFIX}:{name}", state, f"{stem}.weight", f"{head}.weight", self.image_size(name))
        if name not in _RESNETS and "classifier.0.weight" in state:
            found["image_size"] = list(conv.image_size(name, state["classifier.0.weight"].shape[1]))
        return found

    def read(self, name: str, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weights and scores become those of masked layers, and 1x1 convolutions in place of linear layers linear.

        Raises:
            InputError: weights without scores, or scores that are a mask of another fraction than `keep`.
        """
        keep = _keep(name, args)
        if any(key.endswith(f".{_SCORES}") for key in state):
            return dict(state)
        if not any(key.endswith(".scores") for key in state):
            raise InputError(
                f"These weights have no scores, so they hold no subnetwork of {PREFIX}: a dense network of that "
                "project is loaded under the name of its architecture."
            )
        named = renamed(state, _RENAMES)
        found: dict[str, Tensor] = {}
        for key, value in named.items():
            layer, _, part = key.rpartition(".")
            if f"{layer}.scores" in named and part in ("weight", "scores"):
                if part == "scores":
                    _check_fixed(layer, value, keep)
                    found[f"{layer}.{_SEED}"] = torch.tensor(0)  # these weights come from no seed of ours
                linear = layer == "fc" or layer.startswith("classifier.")
                found[f"{layer}.{_WEIGHT if part == 'weight' else _SCORES}"] = value.flatten(1) if linear else value
            else:
                found[key] = value
        return found


def _keep(name: str, args: Mapping[str, Any]) -> float:
    keep = arguments(PREFIX, args, _ARGS).get("keep")
    if keep is None:
        raise InputError(
            f"The files of {PREFIX} do not say which fraction of the weights {name} keeps: give it, as in "
            "--model-args keep=0.3."
        )
    return float(check_keep(keep))


def _kept(keep: float, n: int) -> int:
    """How many of n weights are kept there. A product in floating point is cut, so 0.8 of 5120 are 4097."""
    return n - int((1 - keep) * n)


def _check_fixed(layer: str, scores: Tensor, keep: float) -> None:
    """Refuse a mask of zeros and ones, as networks with fixed masks store it, that keeps another number of weights."""
    ones = int((scores == 1).sum())
    if scores.numel() and bool(((scores == 0) | (scores == 1)).all()) and ones != _kept(keep, scores.numel()):
        raise InputError(
            f"The scores of layer {layer!r} are a mask that keeps {ones} of {scores.numel()} weights, which is not "
            f"keep={keep:g}."
        )


def _plain(name: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """The network before masks."""
    if name not in _RESNETS:
        return conv.build(name, "small", num_classes, in_channels, image_size)
    depth, large, wide = _RESNETS[name]
    block = cast("type[resnet.BasicBlock]", resnet.BasicBlock if depth == 18 else resnet.Bottleneck)
    return resnet.ResNet(block, _DEPTHS[depth], 64, num_classes, in_channels, large_stem=large, wide=wide)


PROJECT = HiddenNetworks()
