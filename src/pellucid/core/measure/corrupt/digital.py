"""Digital: contrast, elastic transform, pixelate, JPEG, saturate (Hendrycks and Dietterich 2019, section 3)."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from pellucid.core.measure.corrupt.kind import Kind
from pellucid.core.measure.corrupt.resample import gaussian_weights, inside, sample

# The published elastic transform scales its strengths by 244, not by the 224 pixels of its images.
SCALE = 244 / 224


def contrast(x: Tensor, factor: float, draw: Tensor) -> Tensor:
    """Each channel pulled towards its mean over the image."""
    # The mean is summed image by image: a sum over a batch may take another order.
    mean = torch.stack([image.mean((1, 2), keepdim=True) for image in x])
    return mean + factor * (x - mean)


def saturate(x: Tensor, level: tuple[float, float], draw: Tensor) -> Tensor:
    """Saturation times one number plus another, in hue, saturation, value; grey images are unchanged.

    A grey pixel has hue 0 and so turns red where saturation is added, as published.
    """
    if x.shape[1] != 3:
        return x
    times, plus = level
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    gap = value - least
    saturation = gap / value.clamp(min=1e-12)
    away = (value - x) / gap.clamp(min=1e-12)  # 0 in the largest channel, 1 in the least
    away = torch.where(gap > 0, away, x.new_tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1))
    return value * (1 - away * (times * saturation + plus).clamp(0, 1))


def pixelate(x: Tensor, factor: float, draw: Tensor) -> Tensor:
    """Shrunk to int(factor * side) cells, each the mean of the pixels whose centres it covers, and enlarged again."""
    for axis in (-2, -1):
        n = x.shape[axis]
        cells = max(1, int(n * factor))
        width = n / cells
        centres = (np.arange(cells) + 0.5) * width
        offsets = (np.arange(n) + 0.5 - centres[:, None]) / width
        member = (offsets > -0.5) & (offsets <= 0.5)  # (cells, n)
        member = member[((np.arange(n) + 0.5) * cells / n).astype(int)]  # of the cell that each pixel shows
        counts = member.sum(1)
        order = np.argsort(~member, axis=1, kind="stable")[:, : counts.max()]
        weights = (np.arange(counts.max()) < counts[:, None]) / counts[:, None]
        shape = [1, 1, n, 1] if axis == -2 else [1, 1, 1, n]
        total = torch.zeros_like(x)
        for place, weight in zip(order.T.copy(), weights.T, strict=True):
            chosen = x.index_select(axis, torch.from_numpy(place).to(x.device))
            total += torch.from_numpy(weight).to(x).view(shape) * chosen
        x = total
    return x


def jpeg(x: Tensor, quality: float, draw: Tensor) -> Tensor:
    """Each image through the JPEG codec, in 8 bits; channel by channel if neither grey nor RGB."""
    from PIL import Image

    pixels = (255 * x).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    if x.shape[1] not in (1, 3):
        pixels = pixels.reshape(-1, 1, *x.shape[-2:])
    decoded = np.empty_like(pixels)
    for image, out in zip(pixels, decoded, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
            buffer, "JPEG", quality=int(quality)
        )
        read = np.asarray(Image.open(buffer))
        out[...] = read if len(image) == 1 else read.transpose(2, 0, 1)
    return torch.from_numpy(decoded).to(x).view_as(x) / 255


def warp(x: Tensor, level: tuple[float, float, float], rng: torch.Generator) -> Tensor:
    """(4, H, W): rows and columns at which an affine map reads, and those of a smooth displacement after it.

    The affine map moves three corners of a square by up to `jitter`; the displacement is noise in [-1, 1] under a
    Gaussian of `sigma`, times `alpha`; all three are fractions of the shorter side.
    """
    height, width = x.shape[-2:]
    alpha, sigma, jitter = (min(height, width) * fraction for fraction in level)
    centre, third = torch.tensor([height // 2, width // 2], dtype=torch.float64), min(height, width) // 3
    corners = centre + third * torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.float64)
    moved = corners + jitter * (2 * torch.rand(3, 2, generator=rng, dtype=torch.float64) - 1)
    one = torch.ones(3, 1, dtype=torch.float64)
    back = torch.linalg.lstsq(torch.cat([moved, one], 1), corners).solution  # (3, 2): [row, column, 1] -> source
    rows = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float64).expand(height, width)
    source = rows[..., None] * back[0] + columns[..., None] * back[1] + back[2]
    noise = 2 * torch.rand(2, height, width, generator=rng, dtype=torch.float64) - 1
    shift = alpha * (_smoother(height, sigma) @ noise @ _smoother(width, sigma).T)
    return torch.stack([source[..., 0], source[..., 1], rows + shift[0], columns + shift[1]]).float()


def _smoother(n: int, sigma: float) -> Tensor:
    """(n, n): the Gaussian filter along n pixels, cut off at three standard deviations, as a matrix."""
    weights = torch.tensor(gaussian_weights(sigma, 3.0), dtype=torch.float64)
    reach = len(weights) // 2
    places = inside(torch.arange(n)[:, None] + torch.arange(-reach, reach + 1), n, "reflect")
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, places, weights.expand(n, -1))


def elastic(x: Tensor, level: tuple[float, float, float], maps: Tensor) -> Tensor:
    turned = sample(x, maps[:, 0], maps[:, 1], "mirror")
    return sample(turned, maps[:, 2], maps[:, 3], "reflect")


KINDS = {
    "contrast": Kind(
        "digital", (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15), "share that is left", contrast
    ),
    "elastic_transform": Kind(
        "digital",
        tuple(
            tuple(SCALE * share for share in shares)
            for shares in (
                (2, 0.7, 0.1),
                (2, 0.08, 0.2),
                (0.05, 0.01, 0.02),
                (0.07, 0.01, 0.02),
                (0.12, 0.01, 0.02),
            )
        ),
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        "",
        elastic,
        warp,
    ),
    "pixelate": Kind(
        "digital", (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65), "share of the side", pixelate
    ),
    "jpeg_compression": Kind("digital", (25, 18, 15, 10, 7), (80, 65, 58, 50, 40), "quality", jpeg),
    "saturate": Kind(
        "digital",
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        "",
        saturate,
        extra=True,
    ),
}
