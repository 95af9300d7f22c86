"""MobileNetV2: Sandler et al. 2018, "Inverted Residuals and Linear Bottlenecks", table 2, with chosen strides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.core.network.models.init import initialise

# expansion, channels, blocks of each group
_GROUPS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
_STEM, _LAST = 32, 1280


def _normed(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, depthwise 3x3, 1x1 without activation; a sum where the shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.adds = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *([_normed(in_channels, wide, 1)] if expansion > 1 else []),
            _normed(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """`features`, global average, `classifier`; parameters are named as in torchvision.

    `strides` are those of the stem and of the first block of each of the seven groups; (2, 1, 2, 2, 2, 1, 2, 1) are
    the paper's.
    """

    def __init__(self, strides: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_normed(in_channels, _STEM, 3, strides[0])]
        channels = _STEM
        for (expansion, width, depth), first in zip(_GROUPS, strides[1:], strict=True):
            for i in range(depth):
                layers.append(InvertedResidual(channels, width, 1 if i else first, expansion))
                channels = width
        layers.append(_normed(channels, _LAST, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(_LAST, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
