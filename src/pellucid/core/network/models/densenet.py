"""DenseNet-BC: Huang et al. 2017, "Densely Connected Convolutional Networks" (growth 32, compression 0.5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.core.network.models.init import initialise

FORMS: dict[str, tuple[str, ...]] = {"densenet121": ("small", "imagenet")}
_GROWTH = 32
_DEPTHS = {"densenet121": (6, 12, 24, 16)}


class DenseLayer(nn.Module):
    """Two convolutions after batch norm each, 1x1 to 4 g channels and 3x3 to g, which are appended to the input.

    g is `growth`.
    """

    def __init__(self, in_channels: int, growth: int = _GROWTH) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu1(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu2(self.norm2(y)))], dim=1)


class DenseNet(nn.Module):
    """`features` (stem, dense blocks with transitions between, last norm), global average, `classifier`.

    Parameters are named as in torchvision. `smallest` is the smaller side of the map after the stem: a
    transition's pool that would leave less than one pixel is an identity.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        num_classes: int,
        in_channels: int,
        smallest: int,
        *,
        large_stem: bool,
        growth: int = _GROWTH,
    ) -> None:
        super().__init__()
        channels = 2 * growth
        self.features = nn.Sequential()
        kernel, stride = (7, 2) if large_stem else (3, 1)
        self.features.add_module(
            "conv0", nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
        )
        self.features.add_module("norm0", nn.BatchNorm2d(channels))
        self.features.add_module("relu0", nn.ReLU())
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, padding=1) if large_stem else nn.Identity())
        for i, depth in enumerate(depths, 1):
            block = nn.Sequential()
            for j in range(1, depth + 1):
                block.add_module(f"denselayer{j}", DenseLayer(channels, growth))
                channels += growth
            self.features.add_module(f"denseblock{i}", block)
            if i < len(depths):
                transition = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(channels))
                transition.add_module("relu", nn.ReLU())
                transition.add_module("conv", nn.Conv2d(channels, channels // 2, 1, bias=False))
                transition.add_module("pool", nn.AvgPool2d(2) if smallest > 1 else nn.Identity())
                self.features.add_module(f"transition{i}", transition)
                channels, smallest = channels // 2, max(smallest // 2, 1)
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.relu(self.features(x))), 1))


def build(name: str, form: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """The network called `name` (a key of `FORMS`); the ImageNet form's stem divides the side by 4."""
    large = form == "imagenet"
    smallest = -(-min(image_size) // 4) if large else min(image_size)
    return initialise(DenseNet(_DEPTHS[name], num_classes, in_channels, smallest, large_stem=large))
