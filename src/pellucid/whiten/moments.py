r"""What the statistics of a whitening layer are taken of: patches, single pixels, or rows that are already there.

Each says of a batch x how many values its mean is of, that mean, and the sample for the covariance, so that a training
step computes only what it needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pellucid.whiten.blocks import Blocks


class Sample(Protocol):
    """Mean and sample of a batch x, for G blocks of F features."""

    def count(self, x: Tensor) -> int:
        """Number of values that the mean is taken of: the batch's weight among several processes."""
        ...

    def mean(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Mean (G, F) of the whole batch."""
        ...

    def rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The sample (G, F, n) that the covariance is taken of."""
        ...


@dataclass(frozen=True)
class Patches:
    """The patches that a kernel sees: the mean of all, the covariance of every `sampling`-th along each axis.

    border: zeros added before and after each axis, as `functional.pad` takes them. Padding is part of a patch, for the
    mean as for the covariance.
    """

    blocks: Blocks
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    border: tuple[int, ...]
    sampling: int

    def count(self, x: Tensor) -> int:
        return x.shape[0] * math.prod(self._places(x))

    def mean(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        image = self._padded(x.mean(0, keepdim=True, dtype=dtype))
        return self.blocks.fold(patch_mean(image, self.kernel, self.stride, self.dilation))

    def rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        sampled = zip(self.stride, self._places(x), strict=True)
        stride = tuple(s * thinned(self.sampling, n) for s, n in sampled)
        return patch_rows(self._padded(x), self.blocks, self.kernel, stride, self.dilation).to(dtype)

    def _padded(self, x: Tensor) -> Tensor:
        return functional.pad(x, self.border) if any(self.border) else x

    def _places(self, x: Tensor) -> list[int]:
        """Patches along each axis."""
        ends = zip(self.border[-2::-2], self.border[::-2], strict=True)
        sizes = [n + before + after for n, (before, after) in zip(x.shape[2:], ends, strict=True)]
        geometry = zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        return [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in geometry]


@dataclass(frozen=True)
class Pixels:
    """The pixels of x (N, C, *size): the mean of all, the covariance of every `sampling`-th along each axis."""

    blocks: Blocks
    sampling: int = 1

    def count(self, x: Tensor) -> int:
        return x.numel() // x.shape[1]

    def mean(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return self.blocks.fold(x.mean((0, *range(2, x.dim())), dtype=dtype).unsqueeze(1))

    def rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        for axis in range(2, x.dim()):
            x = x[(slice(None),) * axis + (slice(None, None, thinned(self.sampling, x.shape[axis])),)]
        return self.blocks.fold(x.transpose(0, 1).reshape(x.shape[1], 1, -1)).to(dtype)


class Rows:
    """Rows x (G, F, n) that are themselves the sample, as the published arithmetic makes them."""

    def count(self, x: Tensor) -> int:
        return x.shape[-1]

    def mean(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.mean(-1)

    def rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x


def thinned(stride: int, places: int) -> int:
    """The sampling stride along an axis: reduced on small maps, whose covariance would otherwise be singular."""
    return max(1, min(stride, places // 8))


def windows(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """All windows of padded x (N, C, *size): a view (N, C, *positions, *kernel); no position if x is too small."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(size < span for size, span in zip(x.shape[2:], spans, strict=True)):
        return x.new_zeros(*x.shape[:2], *([0] * len(kernel)), *kernel)
    for axis, (span, s, d) in enumerate(zip(spans, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, span, s)[..., ::d]
    return x


def patch_mean(image: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Mean of every patch feature over all positions of a padded image (1, C, *size): (C, K).

    Averaging and cutting windows are linear, so of the mean image this is the mean over all images' patches: exact, and
    as cheap as one pass over them.
    """
    seen = windows(image, kernel, stride, dilation)  # (1, C, *positions, *kernel)
    over = (0, *range(2, 2 + len(kernel)))
    return seen.mean(over).reshape(image.shape[1], -1)


def patch_rows(
    x: Tensor,
    blocks: Blocks,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Patches of padded x at every `stride`-th position, (matrices, F, n)."""
    seen = windows(x, kernel, stride, dilation)
    dims = len(kernel)
    order = (1, *range(2 + dims, 2 + 2 * dims), 0, *range(2, 2 + dims))
    return blocks.fold(seen.permute(order).reshape(x.shape[1], blocks.positions, -1))
