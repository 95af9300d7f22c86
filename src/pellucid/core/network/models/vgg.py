"""VGG: Simonyan & Zisserman 2015, "Very Deep Convolutional Networks", configurations A, B, D and E."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.core.network.models.init import initialise

FORMS: dict[str, tuple[str, ...]] = {
    "vgg11": ("small", "imagenet"),
    "vgg11_bn": ("imagenet",),
    "vgg13": ("small",),
    "vgg16": ("small",),
    "vgg19": ("small",),
}
_WIDTHS = (64, 128, 256, 512, 512)
_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg11_bn": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """`features`, a pool to a fixed size, `classifier`; parameters are named as in torchvision."""

    def __init__(self, features: nn.Module, avgpool: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = avgpool
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def convolutions(name: str, in_channels: int, smallest: int, batch_norm: bool) -> nn.Sequential:
    """The convolutions; a pool that would shrink the side `smallest` of the map below 1 is an identity.

    It is not left out, so that the layers' names do not depend on the image size.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for width, depth in zip(_WIDTHS, _DEPTHS[name], strict=True):
        for _ in range(depth):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2) if smallest > 1 else nn.Identity())
        smallest = max(smallest // 2, 1)
    return nn.Sequential(*layers)


def network(
    name: str, in_channels: int, smallest: int, num_classes: int, *, batch_norm: bool, pooled: int
) -> nn.Module:
    """`convolutions`, an average to `pooled` pixels a side, and three linear layers with dropout, initialised."""
    classifier = nn.Sequential(
        nn.Linear(512 * pooled**2, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, num_classes),
    )
    features = convolutions(name, in_channels, smallest, batch_norm)
    return initialise(VGG(features, nn.AdaptiveAvgPool2d(pooled), classifier))


def build(name: str, form: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """The network called `name` (a key of `FORMS`) in `form`.

    Small form: batch norm after every convolution, global average pool, one linear layer. ImageNet form:
    torchvision's, with batch norm only in `vgg11_bn`, a 7x7 adaptive pool and three linear layers with dropout.
    """
    smallest = min(image_size)
    if form == "imagenet":
        return network(name, in_channels, smallest, num_classes, batch_norm=name.endswith("_bn"), pooled=7)
    features = convolutions(name, in_channels, smallest, batch_norm=True)
    return initialise(VGG(features, nn.AdaptiveAvgPool2d(1), nn.Linear(512, num_classes)))
