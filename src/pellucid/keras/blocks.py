r"""The input patches of a convolution, with their features in blocks of consecutive channels.

A patch feature is (channel, kernel position), channel-major. With C channels in g convolution groups, the channels of
each group are split into the fewest equal blocks of at most `block` channels; with a kernel of K positions, a block of
B channels has F = BK features. Where blocks do not divide the channels, the last one is padded with zero features.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from keras import ops


@dataclass(frozen=True)
class Blocks:
    """How `channels` in `groups` are split: `count` blocks of `size` channels per group, times `positions`."""

    channels: int
    groups: int
    count: int
    size: int
    positions: int

    @classmethod
    def cut(cls, channels: int, groups: int, block: int, positions: int) -> Blocks:
        """Split into the fewest equal blocks of at most `block` channels."""
        each = channels // groups
        count = math.ceil(each / max(1, min(block, each)))
        return cls(channels, groups, count, math.ceil(each / count), positions)

    @property
    def matrices(self) -> int:
        """The total number of blocks."""
        return self.groups * self.count

    @property
    def features(self) -> int:
        """The number of features per block, F."""
        return self.size * self.positions

    def fold(self, x: Any) -> Any:
        """(C, K, n) to (matrices, F, n), padded with zeros."""
        each = self.channels // self.groups
        x = ops.reshape(x, (self.groups, each, self.positions, -1))
        x = _lengthened(x, self.count * self.size - each, axis=1)
        return ops.reshape(x, (self.matrices, self.features, -1))

    def unfold(self, x: Any) -> Any:
        """(matrices, F, n) back to (C, K, n), without the padding."""
        x = ops.reshape(x, (self.groups, self.count * self.size, self.positions, -1))
        return ops.reshape(x[:, : self.channels // self.groups], (self.channels, self.positions, -1))

    def times(self, weight: Any, mean: Any, root: Any) -> tuple[Any, Any]:
        r"""$W D$ and $W D \mu$ (O,) for weight (O, C K / groups), mean (matrices, F) and root (matrices, F, F)."""
        outer, length = weight.shape[0] // self.groups, weight.shape[1]
        rows = ops.reshape(weight, (self.groups, outer, length))
        rows = _lengthened(rows, self.count * self.features - length, axis=2)
        rows = ops.swapaxes(ops.reshape(rows, (self.groups, outer, self.count, self.features)), 1, 2)
        rows = rows @ ops.reshape(root, (self.groups, self.count, self.features, self.features))
        shift = ops.sum(rows @ ops.reshape(mean, (self.groups, self.count, self.features, 1)), axis=(1, 3))
        made = ops.reshape(ops.swapaxes(rows, 1, 2), (self.groups, outer, -1))[..., :length]
        return ops.reshape(made, weight.shape), ops.reshape(shift, (-1,))


def columns(
    x: Any, channels: int, kernel: tuple[int, ...], strides: Any, dilation: tuple[int, ...], channels_last: bool
) -> Any:
    """The patches of padded x (N, *size, C) or (N, C, *size) at every stride: (C, K, n), image by image."""
    first, rank = (1 if channels_last else 2), len(kernel)
    seen = []
    for offset in itertools.product(*map(range, kernel)):
        index = [slice(None)] * (rank + 2)
        for axis, (o, k, s, d) in enumerate(zip(offset, kernel, strides, dilation, strict=True), first):
            # Counted from the end, so that the size may be unknown.
            index[axis] = slice(o * d, (o + 1 - k) * d or None, s if isinstance(s, int) else None)
        part = x[tuple(index)]
        for axis, s in enumerate(strides, first):
            if not isinstance(s, int):  # a slice by a tensor would lose the number of axes
                part = ops.take(part, ops.arange(0, ops.shape(part)[axis], s), axis)
        seen.append(part)
    if channels_last:
        stacked, order = ops.stack(seen, -1), (rank + 1, rank + 2, *range(rank + 1))
    else:
        stacked, order = ops.stack(seen, 2), (1, 2, 0, *range(3, rank + 3))
    return ops.reshape(ops.transpose(stacked, order), (channels, len(seen), -1))


def _lengthened(x: Any, by: int, axis: int) -> Any:
    """`x` with `by` zeros appended along `axis`."""
    return ops.pad(x, [(0, by if at == axis else 0) for at in range(len(x.shape))]) if by else x
