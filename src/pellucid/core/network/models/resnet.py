"""Residual networks: He et al. 2016, "Deep Residual Learning", and wide ones (Zagoruyko & Komodakis 2016).

Parameters are named as in torchvision, in both forms. Every activation is a module and none works in place, so
that a tap on any layer sees what that layer computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.core.network.models.init import initialise

FORMS: dict[str, tuple[str, ...]] = {
    "resnet18": ("small", "imagenet"),
    "resnet34": ("small", "imagenet"),
    "resnet50": ("small", "imagenet"),
    "wide_resnet50_2": ("imagenet",),
    **{f"resnet{depth}": ("small",) for depth in (8, 20, 32, 44, 56, 110)},
}
_DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "wide_resnet50_2": (3, 4, 6, 3),
    **{f"resnet{6 * n + 2}": (n, n, n) for n in (1, 3, 5, 7, 9, 18)},
}


class PadShortcut(nn.Module):
    """Option A of He et al. 2016, section 4.2: every second pixel, new channels zero; no parameters.

    (B, C, H, W) -> (B, out_channels, ceil(H / 2), ceil(W / 2)), with the C channels in the middle.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `width` channels out."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: nn.Module, wide: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as in torchvision) and 1x1 convolutions and a shortcut; 4 x `width` channels out.

    `wide` multiplies the channels of the 3x3 convolution only.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: nn.Module, wide: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, wide * width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide * width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(wide * width, wide * width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide * width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(wide * width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + self.downsample(x))


class ResNet(nn.Module):
    """Stem, stages `layer1`, `layer2`, ... of `depths` blocks each, global average, `fc`.

    The first stage has `base` channels (times the block's expansion); each further one halves the map and
    doubles the channels. `large_stem` is the ImageNet form's 7x7 convolution of stride 2 with a max-pool;
    else the stem is one 3x3 convolution. `padded` chooses option-A shortcuts over 1x1 projections.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, ...],
        base: int,
        num_classes: int,
        in_channels: int,
        *,
        large_stem: bool,
        padded: bool = False,
        wide: int = 1,
    ) -> None:
        super().__init__()
        kernel, stride = (7, 2) if large_stem else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, base, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large_stem else nn.Identity()
        self.stages = [f"layer{i + 1}" for i in range(len(depths))]
        channels = base
        for i, (stage, depth) in enumerate(zip(self.stages, depths, strict=True)):
            blocks = []
            for j in range(depth):
                width, stride = base * 2**i, 2 if i and not j else 1
                shortcut = _shortcut(channels, block.expansion * width, stride, padded)
                blocks.append(block(channels, width, stride, shortcut, wide))
                channels = block.expansion * width
            self.add_module(stage, nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _shortcut(in_channels: int, out_channels: int, stride: int, padded: bool) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if padded:
        return PadShortcut(in_channels, out_channels)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def build(name: str, form: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """The network called `name` (a key of `FORMS`) in `form`, for images of any size."""
    depths = _DEPTHS[name]
    thin = len(depths) == 3  # the CIFAR networks of He et al. 2016, section 4.2: widths 16, 32, 64
    model = ResNet(
        Bottleneck if "50" in name else BasicBlock,
        depths,
        16 if thin else 64,
        num_classes,
        in_channels,
        large_stem=form == "imagenet",
        padded=thin,
        wide=2 if name.startswith("wide") else 1,
    )
    return initialise(model)
