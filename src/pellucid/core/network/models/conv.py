"""Conv-2, -4, -6 and -8: Frankle & Carbin 2019, "The Lottery Ticket Hypothesis"; Ramanujan et al. 2020 (Conv-8)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError

FORMS: dict[str, tuple[str, ...]] = {f"conv{depth}": ("small",) for depth in (2, 4, 6, 8)}
_WIDTHS = (64, 128, 256, 512)


class Conv(nn.Module):
    """Pairs of 3x3 convolutions, each pair followed by a max-pool, then linear layers of 256, 256, `num_classes`.

    No normalisation. The weights start Gaussian Glorot (Glorot & Bengio 2010), as in Frankle & Carbin 2019.
    The first linear layer is sized for `image_size` (H, W). A pool that would leave less than one pixel is an identity.
    """

    def __init__(self, pairs: int, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, (height, width) = in_channels, image_size
        for planes in _WIDTHS[:pairs]:
            layers += [nn.Conv2d(channels, planes, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(planes, planes, 3, padding=1), nn.ReLU()]
            channels = planes
            if min(height, width) > 1:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            else:
                layers.append(nn.Identity())
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * height * width, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


def build(name: str, form: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """The network called `name` (a key of `FORMS`), for images of exactly `image_size`."""
    return Conv(int(name[-1]) // 2, num_classes, in_channels, image_size)


def image_size(name: str, features: int) -> tuple[int, int]:
    """The smallest square image size for which the first linear layer of `name` has `features` inputs.

    Several sizes do, since a pool drops an odd row.
    """
    pairs = int(name[-1]) // 2
    side = math.isqrt(features // _WIDTHS[pairs - 1])
    if side < 1 or side * side * _WIDTHS[pairs - 1] != features:
        raise InputError(f"The first linear layer of a {name} for square images cannot have {features} inputs.")
    return (max(side * 2**pairs, 4),) * 2
