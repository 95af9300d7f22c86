"""Delay-Xili/SDNet (MIT): residual networks with sparse coding layers (Dai et al., NeurIPS 2022).

In SDNet-18 and -34 the first convolution is a sparse code; in the "all" networks every 3x3 convolution is, and their
ImageNet form has a third code in place of the max-pool. Files hold the dictionaries and the step sizes that they were
last used with; what else a layer is set to is in no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError, shown
from pellucid.core.facts import Normalization
from pellucid.core.network.models import resnet
from pellucid.core.network.models.init import initialise
from pellucid.core.network.published.reading import CIFAR10, IMAGENET, arguments, described, image_side, renamed
from pellucid.core.network.swap import swap
from pellucid.core.registry import made
from pellucid.sparse.fista import STEP
from pellucid.sparse.rule import csc, csc_all

PREFIX = "sdnet"
_DEPTHS = {"sdnet18": (2, 2, 2, 2), "sdnet34": (3, 4, 6, 3)}
_CODES = ("", "_all", "_all_no_shortcut")  # which convolutions are sparse codes, and whether there are shortcuts
_LARGE = "_imagenet"
_ARGS = {
    "lam": "weight of the absolute values of the code, by default 0.1",
    "mu": "weight of half the squares of the code, by default 0",
    "n_steps": "number of steps towards the code, by default 2",
}
_RENAMES = [
    (r"^layer0\.0\.", "conv1."),
    (r"^layer0\.1\.", "bn1."),
    (r"^layer0\.2\.", "maxpool."),
    (r"^(layer\d+)\.layers\.", r"\1."),
    (r"\.shortcut\.", ".downsample."),
    (r"^linear\.", "fc."),
    (r"\.dn\.weight$", ".weight"),
]


class SDNet:
    """The networks of SDNet, with the layers of `--layers csc` and `csc-all` in their published arithmetic."""

    def names(self) -> tuple[str, ...]:
        return tuple(f"{depth}{codes}{form}" for form in ("", _LARGE) for codes in _CODES for depth in _DEPTHS)

    def build(
        self, name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], args: Mapping[str, Any]
    ) -> nn.Module:
        options = arguments(PREFIX, args, _ARGS)
        large = name.endswith(_LARGE)
        image_side(PREFIX, name, image_size, 32 if large else 8)
        depths = _DEPTHS[name.partition("_")[0]]
        model = resnet.ResNet(resnet.BasicBlock, depths, 64, num_classes, in_channels, large_stem=large)
        codes = name.removesuffix(_LARGE).partition("_")[2]
        if codes and large:
            model.set_submodule("maxpool", nn.Conv2d(64, 64, 3, 2, padding=1, bias=False))
        initialise(model)
        options = {**options, "published": True}
        if codes:
            options["shortcuts"] = codes == "all"
        swap(model, made(f"{PREFIX}:{name}", csc_all if codes else csc, options))
        return model

    def image_size(self, name: str) -> tuple[int, int]:
        return (224, 224) if name.endswith(_LARGE) else (32, 32)

    def normalization(self, name: str) -> Normalization | None:
        """CIFAR-10's is also used for CIFAR-100."""
        return IMAGENET if name.endswith(_LARGE) else CIFAR10

    def describe(self, name: str, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Any]:
        state = renamed(state, _RENAMES)
        found = described(f"{PREFIX}:{name}", state, "conv1.weight", "fc.weight", self.image_size(name))
        large = state["conv1.weight"].shape[-1] == 7
        if large != name.endswith(_LARGE):
            other = f"{name}{_LARGE}" if large else name.removesuffix(_LARGE)
            raise InputError(f"These weights are not a {PREFIX}:{name}, but a {PREFIX}:{other}.")
        return found

    def read(self, name: str, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Tensor]:
        """A step size t is stored here as the largest eigenvalue of the dictionary that it is made from, 0.9 / t.

        Raises:
            InputError: a step size that no network can have.
        """
        found = {}
        for key, value in renamed(state, _RENAMES).items():
            if key.endswith(".dn.step_size"):
                found[f"{key.removesuffix('dn.step_size')}norm"] = STEP["published"] / _step(key, value)
            elif not key.endswith(".running_c_loss"):  # of early versions, which nothing reads
                found[key] = value
        return found


def _step(key: str, value: Tensor) -> Tensor:
    if value.numel() != 1 or not math.isfinite(float(value)) or not float(value) > 0:
        raise InputError(f"The step size {key!r} is {shown(value.tolist(), 40)}, which no trained network has.")
    return value.reshape(()).to(torch.promote_types(value.dtype, torch.float32))


PROJECT = SDNet()
