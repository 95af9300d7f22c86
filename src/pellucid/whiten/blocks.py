r"""Blocks of features: which of a layer's channels are whitened together.

A patch feature is (channel, kernel position); a block of B channels under a kernel of K positions has F = BK features,
channel-major. With C channels in g convolution groups, each group's channels are cut into the fewest equal blocks of at
most `block` channels; where they do not divide evenly, the last block is padded with features that are always 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, cat
from torch.nn import functional


@dataclass(frozen=True)
class Blocks:
    """`channels` in `groups`, cut into `count` blocks of `size` channels per group, under `positions` of a kernel."""

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
        """Number of blocks, over all groups."""
        return self.groups * self.count

    @property
    def features(self) -> int:
        """Features per block, F."""
        return self.size * self.positions

    def fold(self, x: Tensor) -> Tensor:
        """(C, K, ...) to (matrices, F, ...), padded with zeros."""
        x = x.reshape(self.groups, self.channels // self.groups, *x.shape[1:])
        short = self.count * self.size - x.shape[1]
        if short:
            x = cat([x, x.new_zeros(self.groups, short, *x.shape[2:])], 1)
        return x.reshape(self.matrices, self.features, *x.shape[3:])

    def unfold(self, x: Tensor) -> Tensor:
        """(matrices, F, ...) back to (C, K, ...), without the padding."""
        x = x.reshape(self.groups, self.count * self.size, self.positions, *x.shape[2:])
        return x[:, : self.channels // self.groups].reshape(self.channels, self.positions, *x.shape[3:])

    def times(self, weight: Tensor, mean: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        r"""$W D$ in the shape of weight (O, C/groups, ...), and $W D \mu$ (O,).

        mean is (matrices, F) and root (matrices, F, F), or one of each that all blocks share.
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


def divisor(channels: int, block: int) -> int:
    """The published block size: where `block` does not divide the channels, their greatest common divisor."""
    size = min(block, channels)
    return size if channels % size == 0 else math.gcd(size, channels)
