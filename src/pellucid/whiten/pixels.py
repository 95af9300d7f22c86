"""Layers that whiten single pixels or features: linear, transposed convolution, and the activations themselves."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from pellucid.core.device import at_least_single
from pellucid.core.errors import InputError
from pellucid.whiten import fold as folds
from pellucid.whiten.base import HEAD, Blocking, Options, Whitening, check, divisor, in_range, thinned
from pellucid.whiten.moments import Blocks
from pellucid.whiten.state import Whitener


class FastDeconvTranspose2d(Whitening, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` on whitened pixels: channels are whitened, in blocks, before they are spread out.

    The mean is subtracted from the input itself, since at the border of the output not every kernel position adds up.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        block: int = 64,
        sampling_stride: int = 3,
        **options: Unpack[Options],
    ) -> None:
        nn.ConvTranspose2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype,
        )  # fmt: skip
        check(block, sampling_stride)
        self.blocks = Blocks.cut(in_channels, groups, block, 1)
        self._remember(self.blocks.matrices, self.blocks.features, options)
        self.sampling_stride = sampling_stride

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Images (N, C, H, W) or one (C, H, W) to (N, O, H', W')."""
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0), output_size).squeeze(0)
        if self.training and x.numel():
            mean, root = _channel_step(self.whiten, self.blocks, x, self.sampling_stride)
        else:
            mean, root = self.whiten.at_eval()
        shift, weight = self.folded(mean, root)
        extra = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation  # type: ignore[arg-type]
        )  # fmt: skip

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.conv_transpose2d(
                x, weight, bias, self.stride, self.padding, extra, self.groups, self.dilation  # type: ignore[arg-type]
            )  # fmt: skip

        bias = None if self.bias is None else self.bias.to(weight.dtype)
        centred = x.to(shift.dtype) - shift[:, None, None]
        return in_range(product, centred, weight, bias, self.whiten, x.dtype)

    @classmethod
    def as_published(cls, *args: Any, **options: Any) -> Any:
        """Raises InputError: there is no published transposed convolution."""
        raise InputError("FastDeconvTranspose2d has no published form: leave out as_published.")

    def folded(self, mean: Tensor | None = None, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The mean (C,) to subtract, and the weight $D^\\top W$ of the plain transposed convolution after it."""
        if mean is None or root is None:
            mean, root = self.whiten.at_eval()
        with torch.autocast(self.weight.device.type, enabled=False):
            rows = self.blocks.fold(self.weight.to(root.dtype).reshape(self.in_channels, 1, -1))
            weight = self.blocks.unfold(root.mT @ rows).reshape(self.weight.shape)
        return self.blocks.unfold(mean).flatten(), weight

    def folded_module(self) -> nn.Module:
        """A 1x1 convolution that subtracts the mean, then a transposed convolution: `whiten.fold`."""
        return folds.transposed(self)


class FastDeconvLinear(Whitening, nn.Linear):
    """`torch.nn.Linear` on whitened features (..., in): before a classifier, as published.

    block: most features that are whitened together, default 128; `blocks` and the rest as in `FastDeconv2d`. Published
    pooling ("pooled") stacks the blocks as samples of one. Unless `method`, `refresh` or `grad` is given, they are
    those of `HEAD`: five Newton steps at every step, with the gradient through them.
    """

    published_block = 512

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        block: int = 128,
        blocks: Blocking = "separate",
        **options: Unpack[Options],
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        check(block, 1, blocks)
        self.pooled = blocks == "pooled"
        size = divisor(in_features, block) if self.pooled else block
        self.blocks = Blocks.cut(in_features, 1, size, 1)
        if not HEAD.keys() & options.keys():
            options = {**HEAD, **options}
        self._remember(1 if self.pooled else self.blocks.matrices, self.blocks.features, options)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        mean, root = self._step(x) if self.training and x.numel() else self.whiten.at_eval()
        return in_range(F.linear, x, *self.folded(mean, root), self.whiten)

    def folded(self, mean: Tensor | None = None, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """$W' = W D$ and $b' = b - W' \\mu$; by default in evaluation."""
        if mean is None or root is None:
            mean, root = self.whiten.at_eval()
        with torch.autocast(self.weight.device.type, enabled=False):
            weight, shift = self.blocks.times(self.weight.to(root.dtype), mean, root)
            return weight, -shift if self.bias is None else self.bias.to(root.dtype) - shift

    def folded_module(self) -> nn.Module:
        """The linear layer that this is in evaluation: `whiten.fold`."""
        return folds.linear(self)

    def _step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.pooled:
            return _channel_step(self.whiten, self.blocks, x.reshape(-1, self.in_features), 1)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(self.whiten.root.dtype).reshape(-1, self.blocks.features).T.unsqueeze(0)
            return self.whiten.step(rows, lambda: rows.mean(-1), lambda rows: rows, rows.shape[-1])


class ChannelDeconv(Whitening):
    """Whiten the channels of (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W): $y = D (x - \\mu)$ at every pixel.

    num_channels: C. block: most channels that are whitened together, default 64. blocks: "separate" (default) shares
    out channels that the block does not divide. "pooled" is the published arithmetic: row b of one matrix pools C // B
    consecutive channels, its covariance is not centred, and channels that remain share one mean and one variance (of
    each process's own batch, even with `sync`). The rest as in `FastDeconv2d`.
    """

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
        check(block, sampling_stride, blocks)
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
        """(N, C, *size) to the same shape."""
        if not 2 <= x.dim() <= 5 or x.shape[1] != self.num_channels:
            raise InputError(f"ChannelDeconv takes (N, {self.num_channels}, ...) of 2 to 5 axes, not {tuple(x.shape)}.")
        with torch.autocast(x.device.type, enabled=False):
            if self.pooled:
                return self._published(x.to(self.whiten.root.dtype)).to(x.dtype)
            if self.training and x.numel():
                mean, root = _channel_step(self.whiten, self.blocks, x, self.sampling_stride)
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
        if training:
            seen = rows[..., ::every]
            mean, root = self.whiten.step(seen, lambda: seen.mean(-1), lambda seen: seen, seen.shape[-1])
        else:
            mean, root = self.whiten.at_eval()
        y = root @ (rows - mean.unsqueeze(-1))
        y = y.reshape(c, x.shape[0], *x.shape[2:]).transpose(0, 1)
        if not rest.shape[1]:
            return y
        middle, var = self.rest_mean, self.rest_var
        if training:
            middle, var = self._rest(rest.flatten(1)[:, ::every])
        return torch.cat([y, (rest - middle) / (var + self.whiten.eps).sqrt()], 1)

    def _rest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A training step on the channels that remain: their mean and variance, which the running ones follow."""
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
        """$D$ as a matrix (C, C) and the bias $-D \\mu$ of the 1x1 convolution that evaluation is."""
        mean, root = self.whiten.at_eval()
        eye = torch.eye(self.num_channels, dtype=root.dtype, device=root.device)
        if not self.pooled:
            weight = self.blocks.unfold(root @ self.blocks.fold(eye.unsqueeze(1))).squeeze(1)
            return weight, -weight @ self.blocks.unfold(mean).flatten()
        each, c = self.blocks.count, self.blocks.channels  # channels of a row, and of all rows
        rest = eye[c:, c:] / (self.rest_var + self.whiten.eps).sqrt()
        weight = torch.block_diag(torch.kron(root[0], eye[:each, :each]), rest)
        shift = torch.cat([mean[0].repeat_interleave(each), self.rest_mean.expand(self.num_channels - c)])
        return weight, -weight @ shift

    def folded_for(self, axes: int | None) -> nn.Module:
        """A linear layer or 1x1 convolution, by the axes of the input: `whiten.fold`."""
        return folds.channels(self, axes)

    def _apply(self, fn: Any, recurse: bool = True) -> ChannelDeconv:
        return super()._apply(at_least_single(fn), recurse)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, block={self.blocks.size}"


class ChannelHead(nn.Sequential):
    """Whitened features (N, C), then a linear layer: the two fold into one."""

    whiten: ChannelDeconv
    linear: nn.Linear

    def __init__(self, whiten: ChannelDeconv, linear: nn.Linear) -> None:
        super().__init__(OrderedDict(whiten=whiten, linear=linear))

    def folded_module(self) -> nn.Module:
        """One linear layer: `whiten.fold`."""
        return folds.channel_head(self)


def _channel_step(whiten: Whitener, blocks: Blocks, x: Tensor, sampling: int) -> tuple[Tensor, Tensor]:
    """A training step on single pixels of x (N, C, *size)."""
    kind = whiten.root.dtype

    def mean() -> Tensor:
        return blocks.fold(x.mean((0, *range(2, x.dim())), dtype=kind).unsqueeze(1))

    def rows(seen: Tensor) -> Tensor:
        for axis in range(2, x.dim()):
            seen = seen[(slice(None),) * axis + (slice(None, None, thinned(sampling, x.shape[axis])),)]
        return blocks.fold(seen.transpose(0, 1).reshape(seen.shape[1], 1, -1)).to(kind)

    with torch.autocast(x.device.type, enabled=False):
        return whiten.step(x, mean, rows, x.numel() // x.shape[1])
