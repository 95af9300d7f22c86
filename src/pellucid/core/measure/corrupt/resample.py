"""Filters and resampling whose result for an image is the same, to the last bit, in any batch.

Everything is a sum of shifted or gathered copies in a fixed order; a library's convolution would choose its algorithm,
and with it its rounding, by batch size. Borders have scipy's names: `nearest` (a a | a b c | c c), `reflect`
(b a | a b c | c b) and `mirror` (c b | a b c | b a).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Border = Literal["nearest", "reflect", "mirror"]


def inside(places: Tensor, n: int, border: Border) -> Tensor:
    """Coordinates on a line of `n` pixels, with those beyond its ends mapped back to [0, n - 1]."""
    if border == "mirror" and n > 1:
        folded = torch.remainder(places, 2 * (n - 1))
        return torch.minimum(folded, 2 * (n - 1) - folded)
    if border == "reflect":
        half = 0.5 if places.is_floating_point() else 0
        folded = torch.remainder(places + half, 2 * n)
        turned = 2 * n - folded - (0 if half else 1)
        return (torch.minimum(folded, turned) - half).clamp(0, n - 1)
    return places.clamp(0, n - 1)


def gaussian_weights(sigma: float, truncate: float) -> list[float]:
    """exp(-k^2 / 2 sigma^2) for |k| <= truncate * sigma (rounded), normalised to sum 1."""
    radius = int(truncate * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) if k else 1.0 for k in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


def along(x: Tensor, weights: Sequence[float], axis: int, border: Border) -> Tensor:
    """Correlate x with an odd number of weights along `axis`."""
    n, radius = x.shape[axis], len(weights) // 2
    places = inside(torch.arange(-radius, n + radius, device=x.device), n, border)
    padded = x.index_select(axis, places)
    total = torch.zeros_like(x)
    for k, weight in enumerate(weights):
        total += weight * padded.narrow(axis, k, n)
    return total


def gaussian(x: Tensor, sigma: float, *, truncate: float = 4.0, border: Border = "nearest") -> Tensor:
    """Gaussian filter of standard deviation `sigma` pixels over the last two axes."""
    weights = gaussian_weights(sigma, truncate)
    return along(along(x, weights, -2, border), weights, -1, border) if len(weights) > 1 else x


def correlate(x: Tensor, kernel: Sequence[Sequence[float]], border: Border) -> Tensor:
    """Correlate the last two axes of x with a kernel of odd sides."""
    height, width = x.shape[-2:]
    down, right = len(kernel) // 2, len(kernel[0]) // 2
    rows = inside(torch.arange(-down, height + down, device=x.device), height, border)
    columns = inside(torch.arange(-right, width + right, device=x.device), width, border)
    padded = x.index_select(-2, rows).index_select(-1, columns)
    total = torch.zeros_like(x)
    for i, line in enumerate(kernel):
        for j, weight in enumerate(line):
            if weight:
                total += weight * padded[..., i : i + height, j : j + width]
    return total


def pick(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x (B, C, H, W) at the pixels (rows, columns), two integer tensors that broadcast to (B, H, W)."""
    places = (rows * x.shape[-1] + columns).expand(len(x), *x.shape[-2:]).reshape(len(x), 1, -1)
    return x.flatten(2).gather(2, places.expand(-1, x.shape[1], -1)).view_as(x)


def sample(x: Tensor, rows: Tensor, columns: Tensor, border: Border) -> Tensor:
    """x (B, C, H, W), bilinearly interpolated at the real coordinates (rows, columns), each (B, H, W)."""
    height, width = x.shape[-2:]
    rows, columns = inside(rows, height, border), inside(columns, width, border)
    top, left = rows.floor().long(), columns.floor().long()
    below, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = (rows - top)[:, None].to(x.dtype), (columns - left)[:, None].to(x.dtype)
    upper = pick(x, top, left) * (1 - across) + pick(x, top, right) * across
    lower = pick(x, below, left) * (1 - across) + pick(x, below, right) * across
    return upper * (1 - down) + lower * down


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The centre of x (B, C, H, W), enlarged `factor` times to the size of x, bilinearly with aligned corners."""
    height, width = x.shape[-2:]
    cut = [math.ceil(n / factor) for n in (height, width)]
    top, left = (height - cut[0]) // 2, (width - cut[1]) // 2
    grown = (max(height, round(cut[0] * factor)), max(width, round(cut[1] * factor)))
    middle = x[..., top : top + cut[0], left : left + cut[1]]
    large = F.interpolate(middle, grown, mode="bilinear", align_corners=True)
    top, left = (grown[0] - height) // 2, (grown[1] - width) // 2
    return large[..., top : top + height, left : left + width]


def luma(x: Tensor) -> Tensor:
    """(B, 1, H, W): the brightness of RGB images (ITU-R BT.601), the mean over the channels of others."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def painted(colour: tuple[float, float, float], x: Tensor) -> Tensor:
    """An RGB colour in [0, 1] as (C, 1, 1) for images like x: its brightness where x is not RGB."""
    shades = x.new_tensor(colour).view(1, 3, 1, 1)
    return (shades if x.shape[1] == 3 else luma(shades))[0]
