"""huyvnphan/PyTorch_CIFAR10 (MIT): torchvision's networks with other stems, trained on CIFAR-10 at 32x32 pixels.

The tensors have the names and mostly the shapes of torchvision's networks, but a stem of stride 1 is followed by
torchvision's max-pool in ResNet and DenseNet, and MobileNetV2 halves the map three times, not five: under torchvision's
names such a file would load and compute something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pellucid.core.facts import Normalization
from pellucid.core.network.models import densenet, resnet, vgg
from pellucid.core.network.models.init import initialise
from pellucid.core.network.published.googlenet import GoogLeNet
from pellucid.core.network.published.inception import InceptionV3
from pellucid.core.network.published.mobilenet import MobileNetV2
from pellucid.core.network.published.reading import arguments, described, image_side

PREFIX = "huyvnphan"
_DENSE = {
    "densenet121": ((6, 12, 24, 16), 32),
    "densenet161": ((6, 12, 36, 24), 48),
    "densenet169": ((6, 12, 32, 32), 32),
}
# name -> the first and the last weight in a file
_ENDS = {
    **{f"resnet{depth}": ("conv1", "fc") for depth in (18, 34, 50)},
    **{f"vgg{depth}": ("features.0", "classifier.6") for depth in (11, 13, 16, 19)},
    **dict.fromkeys(_DENSE, ("features.conv0", "classifier")),
    "mobilenet_v2": ("features.0.0", "classifier.1"),
    "googlenet": ("conv1.conv", "fc"),
    "inception_v3": ("Conv2d_1a_3x3.conv", "fc"),
}
_POOLED = 7 * 7  # the positions of the larger pool that early versions of the VGG networks had


class Huyvnphan:
    """The networks of PyTorch_CIFAR10. The VGG networks are those with batch norm: `vgg11_bn` is `vgg11` here."""

    def names(self) -> tuple[str, ...]:
        return tuple(_ENDS)

    def build(
        self, name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], args: Mapping[str, Any]
    ) -> nn.Module:
        arguments(PREFIX, args, {})
        image_side(PREFIX, name, image_size, 8)
        if name.startswith("resnet"):
            model = resnet.build(name, "small", num_classes, in_channels, image_size)
            assert isinstance(model, resnet.ResNet)
            model.maxpool = nn.MaxPool2d(3, 2, padding=1)
            return model
        if name.startswith("vgg"):
            return vgg.network(name, in_channels, min(image_size), num_classes, batch_norm=True, pooled=1)
        if name in _DENSE:
            depths, growth = _DENSE[name]
            smallest = -(-min(image_size) // 2)  # after the stem's pool
            dense = densenet.DenseNet(depths, num_classes, in_channels, smallest, large_stem=False, growth=growth)
            dense.features.pool0 = nn.MaxPool2d(3, 2, padding=1)
            return initialise(dense)
        if name == "mobilenet_v2":
            return MobileNetV2((1, 1, 1, 2, 2, 1, 2, 1), num_classes, in_channels)
        return (GoogLeNet if name == "googlenet" else InceptionV3)(num_classes, in_channels)

    def image_size(self, name: str) -> tuple[int, int]:
        return 32, 32

    def normalization(self, name: str) -> Normalization | None:
        """The standard deviations are CIFAR-10's own; some versions of the project name smaller ones."""
        return Normalization((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))

    def read(self, name: str, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Tensor]:
        """Early VGG files average to 7x7. At 32x32 pixels the map is one pixel, so the 49 columns are added up."""
        arguments(PREFIX, args, {})
        found, first = dict(state), "classifier.0.weight"
        if name.startswith("vgg") and first in found and found[first].shape[-1] == 512 * _POOLED:
            found[first] = found[first].reshape(-1, 512, _POOLED).sum(-1)
        return found

    def describe(self, name: str, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Any]:
        arguments(PREFIX, args, {})
        stem, head = _ENDS[name]
        return described(f"{PREFIX}:{name}", state, f"{stem}.weight", f"{head}.weight", self.image_size(name))


PROJECT = Huyvnphan()
