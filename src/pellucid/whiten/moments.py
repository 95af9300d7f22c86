r"""Moments of a convolution's input patches: what the kernel sees at every place it visits.

Features are grouped in blocks of consecutive channels. A patch feature is (channel, kernel position); a block of B
channels under a kernel of K positions has F = BK features, channel-major. With C channels in g convolution groups,
each group's channels are cut into the fewest equal blocks of at most `block` channels; where they do not divide, the
last block is padded by features that are always 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Blocks:
    """How `channels` in `groups` are cut: `count` blocks a group of `size` channels each, times `positions`."""

    channels: int
    groups: int
    count: int
    size: int
    positions: int

    @classmethod
    def cut(cls, channels: int, groups: int, block: int, positions: int) -> Blocks:
        """The fewest equal blocks of at most `block` channels."""
        each = channels // groups
        count = math.ceil(each / max(1, min(block, each)))
        return cls(channels, groups, count, math.ceil(each / count), positions)

    @property
    def matrices(self) -> int:
        """Blocks in all."""
        return self.groups * self.count

    @property
    def features(self) -> int:
        """Features of a block, F."""
        return self.size * self.positions

    def fold(self, x: Tensor) -> Tensor:
        """(C, K, ...) to (matrices, F, ...), padded by zeros."""
        x = x.reshape(self.groups, self.channels // self.groups, *x.shape[1:])
        short = self.count * self.size - x.shape[1]
        if short:
            x = torch.cat([x, x.new_zeros(self.groups, short, *x.shape[2:])], 1)
        return x.reshape(self.matrices, self.features, *x.shape[3:])

    def unfold(self, x: Tensor) -> Tensor:
        """(matrices, F, ...) back to (C, K, ...), the padding left out."""
        x = x.reshape(self.groups, self.count * self.size, self.positions, *x.shape[2:])
        return x[:, : self.channels // self.groups].reshape(self.channels, self.positions, *x.shape[3:])

    def times(self, weight: Tensor, mean: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        r"""$W D$ in the shape of weight (O, C/groups, ...), and $W D \mu$ (O,).

        mean (matrices, F) and root (matrices, F, F), or one of each that all blocks share.
        """
        outer = weight.shape[0] // self.groups
        rows = weight.reshape(self.groups, outer, -1)
        length = rows.shape[-1]
        short = self.count * self.features - length
        if short:
            rows = functional.pad(rows, (0, short))
        rows = rows.reshape(self.groups, outer, self.count, self.features).transpose(1, 2)
        if root.shape[0] == 1:
            rows = rows @ root[0]
            shift = rows @ mean[0]
        else:
            rows = rows @ root.reshape(self.groups, self.count, self.features, self.features)
            shift = (rows @ mean.reshape(self.groups, self.count, self.features, 1)).squeeze(-1)
        made = rows.transpose(1, 2).reshape(self.groups, outer, -1)
        return made[..., :length].reshape(weight.shape), shift.sum(1).flatten()


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

    The mean over images and the windows are linear: on the mean image it is the mean over all images' patches, exact
    and as cheap as one pass over them.
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
