"""Convolutions of any rank on whitened patches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from pellucid.core.network.plain import border
from pellucid.whiten import fold as folds
from pellucid.whiten.base import Whitening
from pellucid.whiten.blocks import Blocks, divisor
from pellucid.whiten.moments import Patches, Rows, windows
from pellucid.whiten.options import Blocking, Options, check_blocks, explicit
from pellucid.whiten.precision import in_range


class _FastDeconv(Whitening):
    """A convolution of any rank; a subclass names its plain twin as second base."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    weight: Tensor
    bias: Tensor | None

    @explicit()
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
        plain: Any = super()  # the twin's, which a class of any rank does not know
        plain.__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        check_blocks(block, sampling_stride, blocks)
        positions = math.prod(self.kernel_size)
        self.published = blocks == "pooled"  # sampling and grouping as published
        self.pooled = self.published and groups == 1
        if self.pooled:
            size = divisor(in_channels, block)
            self.blocks = Blocks(in_channels, 1, in_channels // size, size, positions)
        else:  # published: one block per convolution group
            self.blocks = Blocks.cut(in_channels, groups, in_channels if self.published else block, positions)
        self._remember(1 if self.pooled else self.blocks.matrices, self.blocks.features, options)
        self.sampling_stride = sampling_stride
        ends = border(self.padding, self.kernel_size, self.dilation)
        # Equal zeros at both ends are left to the convolution, which needs no padded copy.
        padded_first = padding_mode != "zeros" or ends[::2] != ends[1::2]
        self._pad_mode = "constant" if padding_mode == "zeros" else padding_mode
        self._pad_first = ends if padded_first and any(ends) else ()
        self._zeros = (0,) * len(ends) if padded_first else ends  # left to the convolution

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, *size), or one image (C, *size), to (N, O, *size')."""
        if x.dim() == 1 + len(self.kernel_size):
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if self._pad_first:
            x = F.pad(x, self._pad_first, self._pad_mode)
        if not self.training or not x.numel():
            mean, root = self.whiten.at_eval()
        elif self.published:
            mean, root = self.whiten.step(self._published_rows(x.to(self.whiten.root.dtype)), Rows())
        else:
            seen = (self.kernel_size, self.stride, self.dilation, self._zeros, self.sampling_stride)
            mean, root = self.whiten.step(x, Patches(self.blocks, *seen))
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return convolve(x, weight, bias, self.stride, self._zeros[::-2], self.dilation, self.groups)

        return in_range(product, x, *self.folded(mean, root), self.whiten)

    def folded(self, mean: Tensor | None = None, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """$W' = W D$ and $b' = b - W' \\mu$ of the plain convolution that this layer is.

        mean, root: $\\mu$ (G, F) and D (G, F, F); by default those of evaluation.
        """
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
        """The plain convolution that this layer is in evaluation, for `pellucid.fold`."""
        return folds.convolution(self)  # type: ignore[arg-type]

    def _published_rows(self, x: Tensor) -> Tensor:
        """Published sampling and grouping, (G, F, n); pooled, column j = cK + p is feature j // G of block j mod G."""
        step = tuple(s * self.sampling_stride for s in self.stride)
        if self.blocks.positions == 1:
            # For a 1x1 convolution every s^2-th pixel in the raster of all images; padding is not seen.
            columns = x.movedim(1, -1).reshape(-1, x.shape[1])[:: math.prod(step)].T.unsqueeze(1)
        else:
            x = F.pad(x, self._zeros) if any(self._zeros) else x
            dims = len(self.kernel_size)
            order = (1, *range(2 + dims, 2 + 2 * dims), 0, *range(2, 2 + dims))
            seen = windows(x, self.kernel_size, step, self.dilation)
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

    The arguments are those of `torch.nn.Conv2d`, followed by these, by keyword:

        block: maximum number of channels whitened together, default 16. Channels are cut into the fewest equal blocks;
            a block never crosses convolution groups.
        sampling_stride: take the covariance from every `sampling_stride`-th position along each axis, or from more
            where fewer than eight would remain; default 3. The mean is always over all positions.
        blocks: "separate" (default) gives each block of consecutive channels its own mean and covariance; "pooled"
            pools all blocks into one matrix, with the paper's interleaved order of features and its sampling.
        n_iter: number of Newton steps, or the strength of the equivalent ridge; default 5.
        eps: added to the diagonal of the covariance; default 1e-5.
        relative_eps: measure `eps` in units of the mean variance; default False.
        momentum: weight of a new batch in the running mean and covariance; default 0.1.
        debias: correct the running values for their start; default True.
        method: how the root is computed: "auto" (default: eigh on a CPU, newton-warm elsewhere), "newton",
            "newton-warm", "polynomial", "eigh" or "cholesky". `pellucid.whiten.isqrt` says what each preserves of the
            response of Newton steps.
        refresh: recompute covariance and root every `refresh` steps (every step for the first 50); default 16.
        freeze_after: number of steps after which mean, covariance and root stay as they are; default None, never.
        grad: what the gradient flows through: "full" statistics and root, as published (needs refresh=1), the "mean"
            only (default), or "none".
        average: whiten in evaluation with the root of the running "covariance" (default), or with the running average
            of "roots", as published.
        sync: pool mean and covariance over all processes, each of which needs a batch; default False.

    Before the first training step, evaluation is the plain convolution.

    Raises:
        InputError: a value out of range, or values that exclude each other.
    """


class FastDeconv3d(_FastDeconv, nn.Conv3d):
    """`torch.nn.Conv3d` on whitened patches of a volume (N, C, D, H, W); arguments as in `FastDeconv2d`."""
