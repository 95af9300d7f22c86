"""Convolutions of any rank on whitened patches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from typing_extensions import Unpack

from pellucid.whiten import fold as folds
from pellucid.whiten.base import Blocking, Options, Whitening, check, divisor, in_range, thinned
from pellucid.whiten.moments import Blocks, patch_mean, patch_rows, windows


class _FastDeconv(Whitening, _ConvNd):
    """A convolution of any rank; a subclass names its plain twin as second base."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        block: int = 16,
        sampling_stride: int = 3,
        blocks: Blocking = "separate",
        **options: Unpack[Options],
    ) -> None:
        plain: Any = super()  # the twin's, which _ConvNd does not know
        plain.__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        check(block, sampling_stride, blocks)
        positions = math.prod(self.kernel_size)
        self.published = blocks == "pooled"  # sampling and grouping as published
        self.pooled = self.published and groups == 1
        if self.pooled:
            size = divisor(in_channels, block)
            self.blocks = Blocks(in_channels, 1, in_channels // size, size, positions)
        else:  # published: one block a convolution group
            self.blocks = Blocks.cut(in_channels, groups, in_channels if self.published else block, positions)
        self._remember(1 if self.pooled else self.blocks.matrices, self.blocks.features, options)
        self.sampling_stride = sampling_stride
        border = self._reversed_padding_repeated_twice
        # Zeros are left to the convolution, which needs no padded copy, where both ends get as many.
        self._ahead = self.padding_mode != "zeros" or border[::2] != border[1::2]

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *size), or one image (C, *size), to (N, O, *size')."""
        if x.dim() == 1 + len(self.kernel_size):
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if self._ahead:
            x = self._pad(x)
        mean, root = self._step(x) if self.training and x.numel() else self.whiten.at_eval()
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        padding = 0 if self._ahead else tuple(self._reversed_padding_repeated_twice[::-2])

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)

        return in_range(product, x, *self.folded(mean, root), self.whiten)

    def folded(self, mean: Tensor | None = None, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """$W' = W D$ and $b' = b - W' \\mu$ of the plain convolution that this layer is; by default in evaluation."""
        if mean is None or root is None:
            mean, root = self.whiten.at_eval()
        with torch.autocast(self.weight.device.type, enabled=False):
            w = self.weight.to(root.dtype)
            if self.pooled:
                rows = w.reshape(self.out_channels, self.blocks.features, self.blocks.count).mT @ root[0]  # (O, G, F)
                weight, shift = rows.mT.reshape(w.shape), (rows @ mean[0]).sum(1)
            else:
                weight, shift = self.blocks.times(w, mean, root)
            return weight, -shift if self.bias is None else self.bias.to(root.dtype) - shift

    def folded_module(self) -> nn.Module:
        """The plain convolution that this is in evaluation: `whiten.fold`."""
        return folds.convolution(self)  # type: ignore[arg-type]

    def _pad(self, x: Tensor) -> Tensor:
        """x with the layer's padding added, in any padding mode."""
        if not any(self._reversed_padding_repeated_twice):
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, self._reversed_padding_repeated_twice, mode=mode)

    def _step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kernel, strides, dilation = self.kernel_size, self.stride, self.dilation
        kind = self.whiten.root.dtype
        with torch.autocast(x.device.type, enabled=False):
            if self.published:
                rows = self._published_rows(x.to(kind), kernel, strides, dilation)
                return self.whiten.step(rows, lambda: rows.mean(-1), lambda rows: rows, rows.shape[-1])
            # Padding is part of the patches, of those of the mean as of those of the covariance.
            border = (lambda image: image) if self._ahead else self._pad
            size = border(x[:1, :1]).shape[2:]
            spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
            places = [(n - span) // s + 1 for n, span, s in zip(size, spans, strides, strict=True)]
            sampled = tuple(s * thinned(self.sampling_stride, n) for s, n in zip(strides, places, strict=True))

            def mean() -> Tensor:
                image = border(x.mean(0, keepdim=True, dtype=kind))
                return self.blocks.fold(patch_mean(image, kernel, strides, dilation))

            def rows_of(x: Tensor) -> Tensor:
                return patch_rows(border(x), self.blocks, kernel, sampled, dilation).to(kind)

            return self.whiten.step(x, mean, rows_of, x.shape[0] * math.prod(places))

    def _published_rows(
        self, x: Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], dilation: tuple[int, ...]
    ) -> Tensor:
        """Published sampling and grouping, (G, F, n); pooled, column j = cK + p is feature j // G of block j mod G."""
        step = tuple(s * self.sampling_stride for s in strides)
        if math.prod(kernel) == 1:
            # Of a 1x1 convolution's pixels every s^2-th in the raster of all images; padding is not seen.
            columns = x.movedim(1, -1).reshape(-1, x.shape[1])[:: math.prod(step)].T.unsqueeze(1)
        else:
            seen = windows(x if self._ahead else self._pad(x), kernel, step, dilation)
            dims = len(kernel)
            order = (1, *range(2 + dims, 2 + 2 * dims), 0, *range(2, 2 + dims))
            columns = seen.permute(order).reshape(x.shape[1], self.blocks.positions, -1)
        if not self.pooled:
            return self.blocks.fold(columns)
        return columns.reshape(1, self.blocks.features, -1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, block={self.blocks.size}"


class FastDeconv1d(_FastDeconv, nn.Conv1d):
    """`torch.nn.Conv1d` on whitened windows of a signal (N, C, L); arguments as in `FastDeconv2d`."""


class FastDeconv2d(_FastDeconv, nn.Conv2d):
    """`torch.nn.Conv2d` on whitened patches (Ye et al., ICLR 2020, algorithm 1).

    Arguments are those of `torch.nn.Conv2d`, then by keyword:

        block: most channels that are whitened together, default 16. Channels are cut into the fewest equal blocks; a
            convolution group is never crossed.
        sampling_stride: the covariance is taken at every so many strides, as far as eight positions remain along an
            axis; default 3. The mean is always of all positions.
        blocks: "separate" (default) gives each block of consecutive channels its own mean and covariance; "pooled" is
            the published pooling of all blocks into one matrix, in its interleaved order of features and with its
            sampling.
        options: see `Options`.

    Before the first training step evaluation is the plain convolution.

    Raises InputError for values out of range.
    """


class FastDeconv3d(_FastDeconv, nn.Conv3d):
    """`torch.nn.Conv3d` on whitened patches of a volume (N, C, D, H, W); arguments as in `FastDeconv2d`."""
