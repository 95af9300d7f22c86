"""GoogLeNet for small images: Szegedy et al. 2015, "Going Deeper with Convolutions", with batch norm.

One 3x3 convolution to 192 channels takes the place of the stem, 3x3 convolutions that of the 5x5 ones, and the two
max-pools that remain are padded. There are no auxiliary heads. Parameters are named as in torchvision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.core.network.models.init import initialise

_STEM = 192
# of each block: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after the pool. "pool" is a max-pool of stride 2.
_BLOCKS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "maxpool3": (),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "maxpool4": (),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}


class NormedConv(nn.Module):
    """A convolution without bias, batch norm with epsilon 1e-3, ReLU; padded by half the kernel unless told."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        border = tuple(side // 2 for side in sides) if padding is None else (padding, padding)
        self.conv = nn.Conv2d(in_channels, out_channels, sides, stride, border, bias=False)  # type: ignore[arg-type]
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four branches over the same map, side by side: 1x1; 1x1 then 3x3, twice; max-pool then 1x1."""

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = widths
        self.branch1 = NormedConv(in_channels, one, 1)
        self.branch2 = nn.Sequential(NormedConv(in_channels, reduce3, 1), NormedConv(reduce3, three, 3))
        self.branch3 = nn.Sequential(NormedConv(in_channels, reduce5, 1), NormedConv(reduce5, five, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), NormedConv(in_channels, pooled, 1))
        self.channels = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class GoogLeNet(nn.Module):
    """`conv1`, nine inception blocks with two pools between, global average, `fc`."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = NormedConv(in_channels, _STEM, 3)
        channels = _STEM
        for name, widths in _BLOCKS.items():
            if not widths:
                self.add_module(name, nn.MaxPool2d(3, 2, padding=1))
                continue
            block = Inception(channels, widths)
            self.add_module(name, block)
            channels = block.channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name in _BLOCKS:
            x = getattr(self, name)(x)
        return self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
