"""Whitening of the activations themselves, channel by channel."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pellucid.core.device import at_least_single
from pellucid.core.errors import InputError
from pellucid.whiten import fold as folds
from pellucid.whiten.base import Whitening
from pellucid.whiten.blocks import Blocks
from pellucid.whiten.moments import Pixels, Rows
from pellucid.whiten.options import Blocking, Options, check_blocks, explicit


class ChannelDeconv(Whitening):
    """Whiten the channels of (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W): $y = D (x - \\mu)$ at every pixel.

    num_channels: C.
    block: maximum number of channels whitened together, default 64.
    blocks: "separate" (default) spreads channels over blocks as evenly as possible. "pooled" is the published
        arithmetic: row b of one matrix pools C // B consecutive channels, its covariance is not centred, and leftover
        channels share one mean and one variance (of each process's own batch, even with `sync`).

    The other keyword arguments are as in `FastDeconv2d`.

    Raises:
        InputError: a value out of range, or values that exclude each other.
    """

    @explicit()
    def __init__(
        self,
        num_channels: int,
        *,
        block: int = 64,
        sampling_stride: int = 3,
        blocks: Blocking = "separate",
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        check_blocks(block, sampling_stride, blocks)
        self.num_channels, self.sampling_stride, self.pooled = num_channels, sampling_stride, blocks == "pooled"
        self.rest_mean: Tensor
        self.rest_var: Tensor
        if not self.pooled:
            self.blocks = Blocks.cut(num_channels, 1, block, 1)
            self._remember(self.blocks.matrices, self.blocks.features, options)
            return
        size = min(block, num_channels)
        self.blocks = Blocks(num_channels // size * size, 1, num_channels // size, size, 1)
        self._remember(1, size, options, centre=False, copy_first=True)
        self.register_buffer("rest_mean", torch.zeros((), dtype=self.whiten.root.dtype))
        self.register_buffer("rest_var", torch.ones((), dtype=self.whiten.root.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *size) to the same shape.

        Raises:
            InputError: another number of channels, or of axes.
        """
        if not 2 <= x.dim() <= 5 or x.shape[1] != self.num_channels:
            raise InputError(
                f"ChannelDeconv takes (N, {self.num_channels}, ...) with 2 to 5 axes, not {tuple(x.shape)}."
            )
        with torch.autocast(x.device.type, enabled=False):
            if self.pooled:
                return self._published(x.to(self.whiten.root.dtype)).to(x.dtype)
            if self.training and x.numel():
                mean, root = self.whiten.step(x, Pixels(self.blocks, self.sampling_stride))
            else:
                mean, root = self.whiten.at_eval()
            columns = self.blocks.fold(x.to(root.dtype).transpose(0, 1).reshape(self.num_channels, 1, -1))
            y = self.blocks.unfold(root @ (columns - mean.unsqueeze(-1)))
            y = y.reshape(self.num_channels, x.shape[0], *x.shape[2:]).transpose(0, 1)
        return y.to(x.dtype)

    def _published(self, x: Tensor) -> Tensor:
        c = self.blocks.channels
        kept, rest = x[:, :c], x[:, c:]
        rows = kept.transpose(0, 1).reshape(1, self.blocks.size, -1)
        sparse = self.sampling_stride > 1 and x.dim() > 2 and min(x.shape[2:]) >= self.sampling_stride
        every = self.sampling_stride**2 if sparse else 1
        training = self.training and x.numel() > 0
        mean, root = self.whiten.step(rows[..., ::every], Rows()) if training else self.whiten.at_eval()
        y = root @ (rows - mean.unsqueeze(-1))
        y = y.reshape(c, x.shape[0], *x.shape[2:]).transpose(0, 1)
        if not rest.shape[1]:
            return y
        middle, var = self.rest_mean, self.rest_var
        if training:
            middle, var = self._rest(rest.flatten(1)[:, ::every])
        return torch.cat([y, (rest - middle) / (var + self.whiten.eps).sqrt()], 1)

    def _rest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A training step on the leftover channels: their mean and variance, which the running ones follow."""
        whiten, now = self.whiten, (x.mean(), x.var())
        frozen = torch.zeros_like(whiten.steps) if whiten.freeze_after is None else whiten.steps > whiten.freeze_after
        with torch.no_grad():
            held = [running.clone() for running in (self.rest_mean, self.rest_var)]
            for running, value in zip((self.rest_mean, self.rest_var), now, strict=True):
                new = torch.lerp(running, value, whiten.weight())
                running.copy_(torch.where(new.isfinite() & (frozen == 0), new, running))
        mean, var = (torch.where(frozen == 0, value, old) for value, old in zip(now, held, strict=True))
        return mean, var

    def folded(self) -> tuple[Tensor, Tensor]:
        """$D$ as a matrix (C, C) and the bias $-D \\mu$ of the 1x1 convolution that this layer is in evaluation."""
        mean, root = self.whiten.at_eval()
        eye = torch.eye(self.num_channels, dtype=root.dtype, device=root.device)
        if not self.pooled:
            weight = self.blocks.unfold(root @ self.blocks.fold(eye.unsqueeze(1))).squeeze(1)
            return weight, -weight @ self.blocks.unfold(mean).flatten()
        each, c = self.blocks.count, self.blocks.channels  # channels per row, and in all rows
        rest = eye[c:, c:] / (self.rest_var + self.whiten.eps).sqrt()
        weight = torch.block_diag(torch.kron(root[0], eye[:each, :each]), rest)
        shift = torch.cat([mean[0].repeat_interleave(each), self.rest_mean.expand(self.num_channels - c)])
        return weight, -weight @ shift

    def folded_for(self, axes: int | None) -> nn.Module:
        """A linear layer or 1x1 convolution, by the number of axes of the input, for `pellucid.fold`."""
        return folds.channels(self, axes)

    def _apply(self, fn: Any, recurse: bool = True) -> ChannelDeconv:  # torch's one hook into half() and the like
        return super()._apply(at_least_single(fn), recurse)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, block={self.blocks.size}"


class ChannelHead(nn.Sequential):
    """Whitened features (N, C), then a linear layer; the two fold into one."""

    whiten: ChannelDeconv
    linear: nn.Linear

    def __init__(self, whiten: ChannelDeconv, linear: nn.Linear) -> None:
        super().__init__(OrderedDict(whiten=whiten, linear=linear))

    def folded_module(self) -> nn.Module:
        """One linear layer, for `pellucid.fold`."""
        return folds.channel_head(self)
