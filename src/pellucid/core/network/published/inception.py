"""Inception-v3 for small images: Szegedy et al. 2016, "Rethinking the Inception Architecture", figures 5 to 7 and 10.

One padded 3x3 convolution to 192 channels takes the place of the stem. There is no auxiliary head. Parameters are named
as in torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pellucid.core.network.models.init import initialise
from pellucid.core.network.published.googlenet import NormedConv

_STEM = 192
_WIDE, _TALL = (1, 7), (7, 1)
Path = Sequence[str | tuple[str, ...]]


class Mixed(nn.Module):
    """Branches over the same map, side by side.

    paths: of each branch the names of its layers in turn; a tuple of names stands for layers that read the same map,
        side by side. "pool" is the layer of that name in `layers`.
    """

    def __init__(self, layers: Mapping[str, nn.Module], paths: Sequence[Path]) -> None:
        super().__init__()
        self.paths = paths
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(x, path) for path in self.paths], dim=1)

    def _branch(self, x: Tensor, path: Path) -> Tensor:
        for step in path:
            x = getattr(self, step)(x) if isinstance(step, str) else torch.cat([getattr(self, n)(x) for n in step], 1)
        return x


def _chain(prefix: str, channels: int, *steps: tuple[int, int | tuple[int, int]]) -> dict[str, nn.Module]:
    """`prefix`_1, _2, ...: convolutions of stride 1, each (width, kernel)."""
    layers: dict[str, nn.Module] = {}
    for i, (width, kernel) in enumerate(steps, 1):
        layers[f"{prefix}_{i}"] = NormedConv(channels, width, kernel)
        channels = width
    return layers


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 1, padding=1)


def _a(channels: int, pooled: int) -> Mixed:
    layers = {
        "branch1x1": NormedConv(channels, 64, 1),
        **_chain("branch5x5", channels, (48, 1), (64, 5)),
        **_chain("branch3x3dbl", channels, (64, 1), (96, 3), (96, 3)),
        "pool": _average(),
        "branch_pool": NormedConv(channels, pooled, 1),
    }
    doubled = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
    return Mixed(layers, [["branch1x1"], ["branch5x5_1", "branch5x5_2"], doubled, ["pool", "branch_pool"]])


def _b(channels: int) -> Mixed:
    layers = {
        "branch3x3": NormedConv(channels, 384, 3, 2, 0),
        **_chain("branch3x3dbl", channels, (64, 1), (96, 3)),
        "branch3x3dbl_3": NormedConv(96, 96, 3, 2, 0),
        "pool": nn.MaxPool2d(3, 2),
    }
    return Mixed(layers, [["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], ["pool"]])


def _c(channels: int, width: int) -> Mixed:
    layers = {
        "branch1x1": NormedConv(channels, 192, 1),
        **_chain("branch7x7", channels, (width, 1), (width, _WIDE), (192, _TALL)),
        **_chain("branch7x7dbl", channels, (width, 1), (width, _TALL), (width, _WIDE), (width, _TALL), (192, _WIDE)),
        "pool": _average(),
        "branch_pool": NormedConv(channels, 192, 1),
    }
    once, twice = ([f"{name}_{i}" for i in range(1, n)] for name, n in (("branch7x7", 4), ("branch7x7dbl", 6)))
    return Mixed(layers, [["branch1x1"], once, twice, ["pool", "branch_pool"]])


def _d(channels: int) -> Mixed:
    layers = {
        "branch3x3_1": NormedConv(channels, 192, 1),
        "branch3x3_2": NormedConv(192, 320, 3, 2, 0),
        **_chain("branch7x7x3", channels, (192, 1), (192, _WIDE), (192, _TALL)),
        "branch7x7x3_4": NormedConv(192, 192, 3, 2, 0),
        "pool": nn.MaxPool2d(3, 2),
    }
    return Mixed(layers, [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{i}" for i in range(1, 5)], ["pool"]])


def _e(channels: int) -> Mixed:
    layers: dict[str, nn.Module] = {
        "branch1x1": NormedConv(channels, 320, 1),
        "branch3x3_1": NormedConv(channels, 384, 1),
        **_chain("branch3x3dbl", channels, (448, 1), (384, 3)),
        "pool": _average(),
        "branch_pool": NormedConv(channels, 192, 1),
    }
    for split in ("branch3x3_2", "branch3x3dbl_3"):
        layers |= {f"{split}a": NormedConv(384, 384, (1, 3)), f"{split}b": NormedConv(384, 384, (3, 1))}
    once: Path = ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")]
    twice: Path = ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")]
    return Mixed(layers, [["branch1x1"], once, twice, ["pool", "branch_pool"]])


class InceptionV3(nn.Module):
    """`Conv2d_1a_3x3`, eleven mixed blocks `Mixed_5b` to `Mixed_7c`, global average, `fc`; at least 7 pixels a side."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = NormedConv(in_channels, _STEM, 3)
        mixed = {
            "5b": _a(_STEM, 32), "5c": _a(256, 64), "5d": _a(288, 64),
            "6a": _b(288), "6b": _c(768, 128), "6c": _c(768, 160), "6d": _c(768, 160), "6e": _c(768, 192),
            "7a": _d(768), "7b": _e(1280), "7c": _e(2048),
        }  # fmt: skip
        self.order = [f"Mixed_{name}" for name in mixed]
        for name, block in mixed.items():
            self.add_module(f"Mixed_{name}", block)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2048, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_1a_3x3(x)
        for name in self.order:
            x = getattr(self, name)(x)
        return self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
