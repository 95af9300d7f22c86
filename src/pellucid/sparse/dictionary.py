r"""A convolutional dictionary: its synthesis D*, its analysis D, and the largest eigenvalue of $D D^*$.

$D^* z$ is a transposed convolution with K atoms, $D x$ the convolution that is its adjoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Dictionary:
    """K atoms (K, C, *kernel) at every `stride`-th place; the other fields are as for a convolution, as tuples."""

    atoms: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def analyse(self, x: Tensor, atoms: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """D x + shift: (B, C, *size) to (B, K, *places); `atoms` replaces the dictionary's own."""
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        weight = self.atoms if atoms is None else atoms
        return convolve(x, weight, shift, self.stride, self.padding, self.dilation)

    def synthesise(self, z: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
        """D* z: (B, K, *places) to (B, C, *size); by default, the smallest size that has these places."""
        rank = len(self.stride)
        least = self.size(tuple(z.shape[2:]))
        more = tuple(n - m for n, m in zip(size or least, least, strict=True))
        kernel = self.atoms.shape[2:]
        border = tuple(d * (k - 1) - p for k, d, p in zip(kernel, self.dilation, self.padding, strict=True))
        # Mirroring the atoms costs more than it gains for few places. An exported program has no choice of its own.
        large = torch.compiler.is_exporting() or z.numel() >= 512 * z.shape[1]
        if large and set(self.stride) == {1} and min(border) >= 0 and not any(more):
            convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
            mirrored = self.atoms.transpose(0, 1).flip(tuple(range(2, 2 + rank)))
            return convolve(z, mirrored, None, 1, border, self.dilation)
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        return transposed(z, self.atoms, None, self.stride, self.padding, more, 1, self.dilation)

    def size(self, places: tuple[int, ...]) -> tuple[int, ...]:
        """The size of the smallest image that has this many places."""
        kernel = self.atoms.shape[2:]
        geometry = zip(places, self.stride, self.padding, self.dilation, kernel, strict=True)
        return tuple((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, s, p, d, k in geometry)

    def norm(self, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        r"""The largest eigenvalue of $D D^*$, approached from below, and its eigenvector, a code of norm 1, after this
        many steps of power iteration from `start` (1, K, *places), on codes of that size.

        The eigenvalue grows with the size, towards that of an image without borders.
        """
        v = start / start.norm().clamp_min(torch.finfo(start.dtype).tiny)
        size = torch.ones((), dtype=v.dtype, device=v.device)
        for _ in range(steps):
            v = self.analyse(self.synthesise(v))
            size = v.norm()
            v = v / size.clamp_min(torch.finfo(v.dtype).tiny)
        return size, v

    def bound(self) -> Tensor:
        r"""An upper bound of the largest eigenvalue of $D D^*$ for images of any size: Schur's test,
        $\lVert D \rVert^2 \le \lVert D \rVert_1 \lVert D \rVert_\infty$.

        The row of an entry of the code holds the atom's absolute values; the column of a pixel holds those of all atoms
        at the taps that meet it.
        """
        absolute = self.atoms.abs()
        columns = absolute.sum(0)  # (C, *kernel)
        for axis, (stride, dilation) in enumerate(zip(self.stride, self.dilation, strict=True), 1):
            # A tap k meets the pixels congruent to d k modulo the stride.
            period = stride // math.gcd(stride, dilation)
            short = -columns.shape[axis] % period
            pad = [0, 0] * (columns.dim() - 1 - axis) + [0, short]
            columns = F.pad(columns, pad).unflatten(axis, (-1, period)).sum(axis)
        return absolute.flatten(1).sum(1).amax() * columns.amax()
