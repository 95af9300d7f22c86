r"""Network Deconvolution: convolutions and linear layers that whiten their input (Ye et al., ICLR 2020).

A layer computes $y = W D (x - \mu) + b$ for every patch $x$ of its input, where $\mu$ is the patches' mean and $D$ an
inverse square root of their covariance. Nothing is subtracted or multiplied where the image is large: with
$W' = W D$ and $b' = b - W' \mu$ it is the ordinary convolution of $W'$ and $b'$, in training and in evaluation alike.
Padding is part of a patch, so mean and covariance are of padded patches, and $b'$ is exact at the border too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from typing_extensions import Unpack

from pellucid.core.errors import InputError
from pellucid.core.statistics import Moments
from pellucid.whiten.moments import Blocks, patch_mean, patch_rows, windows
from pellucid.whiten.state import Grad, Whitener, at_least_single

Blocking = Literal["separate", "pooled"]


class Options(TypedDict, total=False):
    """Keyword options of every whitening layer.

    n_iter: Newton steps, or the ridge that amounts to them; default 5.
    eps: added to the covariance's diagonal, times its mean with `relative_eps`; default 1e-5.
    relative_eps: default False.
    momentum: weight of a new batch in the running mean and covariance; default 0.1.
    debias: correct the running values for their start; default True.
    method: how the root is made: "auto" (default: eigh on a CPU, newton-warm elsewhere), "newton", "newton-warm",
        "polynomial", "eigh", "cholesky". See `isqrt` for what each keeps of the response of Newton steps.
    refresh: covariance and root are made every so many steps, after the first 50, which all do; default 16.
    freeze_after: steps after which mean, covariance and root stay as they are; default None, never.
    grad: what the gradient flows through: "full" (statistics and root, as published; refresh 1), "mean" (default)
        or "none".
    average: evaluation takes the root of the pooled "covariance" (default), or the running average of "roots".
    sync: pool mean and covariance over all processes; default False.
    """

    n_iter: int
    eps: float
    relative_eps: bool
    momentum: float
    debias: bool
    method: str
    refresh: int
    freeze_after: int | None
    grad: Grad
    average: Literal["covariance", "roots"]
    sync: bool


DEFAULTS: Options = {
    "n_iter": 5,
    "eps": 1e-5,
    "relative_eps": False,
    "momentum": 0.1,
    "debias": True,
    "method": "auto",
    "refresh": 16,
    "freeze_after": None,
    "grad": "mean",
    "average": "covariance",
    "sync": False,
}
# A classifier's head is one small layer: there the published gradient costs little, and trains better.
HEAD: Options = {"method": "newton", "refresh": 1, "grad": "full"}
PUBLISHED: Options = {"method": "newton", "refresh": 1, "grad": "full", "average": "roots", "debias": False}


class Whitening(nn.Module):
    """What all whitening layers share: a `whiten` that holds the state."""

    whiten: Whitener
    blocks: Blocks
    pooled: bool = False  # one matrix that all blocks share
    published_block: int = 64

    def _remember(self, matrices: int, features: int, options: Options, **published: Any) -> None:
        unknown = sorted(set(options) - set(DEFAULTS))
        if unknown:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {unknown[0]!r}")
        chosen: dict[str, Any] = {**DEFAULTS, **options}
        chosen["relative"] = chosen.pop("relative_eps")
        self.whiten = Whitener(matrices, features, **published, **chosen)
        for weight in self.parameters(recurse=False):
            self.whiten.to(device=weight.device, dtype=weight.dtype)  # float32 at least
            break

    def declared_moments(self) -> Moments:
        """Mean (G, F) and covariance (G, F, F) of the input, by blocks (see `Blocks`; features that fill up the last
        block are 0): of its "channels" where the layer sees single pixels, of its "patches", or of "pooled" blocks in
        the published order of features.
        """
        return self.whiten.moments("pooled" if self.pooled else "channels" if self.blocks.positions == 1 else "patches")

    @classmethod
    def as_published(cls, *args: Any, **options: Any) -> Any:
        """The same layer in the paper's published arithmetic: one pooled matrix, five Newton steps under autograd at
        every step, running averages of mean and root from 0 and I. `options` override."""
        return cls(*args, **{**PUBLISHED, "blocks": "pooled", "block": cls.published_block, **options})


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
        block: int = 32,
        sampling_stride: int = 3,
        blocks: Blocking = "separate",
        **options: Unpack[Options],
    ) -> None:
        plain: Any = super()  # the twin's, which _ConvNd does not know
        plain.__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        _check(block, sampling_stride, blocks)
        positions = math.prod(self.kernel_size)
        self.published = blocks == "pooled"  # sampling and grouping as published
        self.pooled = self.published and groups == 1
        if self.pooled:
            size = _divisor(in_channels, block)
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

        return _in_range(product, x, *self.folded(mean, root), self.whiten)

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
            sampled = tuple(s * _sampling(self.sampling_stride, n) for s, n in zip(strides, places, strict=True))

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

        block: most channels that are whitened together, default 32. Channels are cut into the fewest equal blocks; a
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
        block: int = 32,
        sampling_stride: int = 3,
        **options: Unpack[Options],
    ) -> None:
        nn.ConvTranspose2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype,
        )  # fmt: skip
        _check(block, sampling_stride)
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
        return _in_range(product, centred, weight, bias, self.whiten, x.dtype)

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


class FastDeconvLinear(Whitening, nn.Linear):
    """`torch.nn.Linear` on whitened features (..., in): before a classifier, as published.

    block: most features that are whitened together, default 512; `blocks` and the rest as in `FastDeconv2d`. Published
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
        block: int = 512,
        blocks: Blocking = "separate",
        **options: Unpack[Options],
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        _check(block, 1, blocks)
        self.pooled = blocks == "pooled"
        size = _divisor(in_features, block) if self.pooled else block
        self.blocks = Blocks.cut(in_features, 1, size, 1)
        if not HEAD.keys() & options.keys():
            options = {**HEAD, **options}
        self._remember(1 if self.pooled else self.blocks.matrices, self.blocks.features, options)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        mean, root = self._step(x) if self.training and x.numel() else self.whiten.at_eval()
        return _in_range(F.linear, x, *self.folded(mean, root), self.whiten)

    def folded(self, mean: Tensor | None = None, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """$W' = W D$ and $b' = b - W' \\mu$; by default in evaluation."""
        if mean is None or root is None:
            mean, root = self.whiten.at_eval()
        with torch.autocast(self.weight.device.type, enabled=False):
            weight, shift = self.blocks.times(self.weight.to(root.dtype), mean, root)
            return weight, -shift if self.bias is None else self.bias.to(root.dtype) - shift

    def _step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.pooled:
            return _channel_step(self.whiten, self.blocks, x.reshape(-1, self.in_features), 1)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(self.whiten.root.dtype).reshape(-1, self.blocks.features).T.unsqueeze(0)
            return self.whiten.step(rows, lambda: rows.mean(-1), lambda rows: rows, rows.shape[-1])


class ChannelDeconv(Whitening):
    """Whiten the channels of (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W): $y = D (x - \\mu)$ at every pixel.

    num_channels: C. block: most channels that are whitened together, default 32. blocks: "separate" (default) shares
    out channels that the block does not divide. "pooled" is the published arithmetic: row b of one matrix pools C // B
    consecutive channels, its covariance is not centred, and channels that remain share one mean and one variance (of
    each process's own batch, even with `sync`). The rest as in `FastDeconv2d`.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        block: int = 32,
        sampling_stride: int = 3,
        blocks: Blocking = "separate",
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        _check(block, sampling_stride, blocks)
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

    def _apply(self, fn: Any, recurse: bool = True) -> ChannelDeconv:
        return super()._apply(at_least_single(fn), recurse)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, block={self.blocks.size}"


def _sampling(stride: int, places: int) -> int:
    """Sampling stride along an axis: small maps are seen whole, or their covariance would be singular."""
    return max(1, min(stride, places // 8))


def _channel_step(whiten: Whitener, blocks: Blocks, x: Tensor, sampling: int) -> tuple[Tensor, Tensor]:
    """A training step on single pixels of x (N, C, *size)."""
    kind = whiten.root.dtype

    def mean() -> Tensor:
        return blocks.fold(x.mean((0, *range(2, x.dim())), dtype=kind).unsqueeze(1))

    def rows(seen: Tensor) -> Tensor:
        for axis in range(2, x.dim()):
            seen = seen[(slice(None),) * axis + (slice(None, None, _sampling(sampling, x.shape[axis])),)]
        return blocks.fold(seen.transpose(0, 1).reshape(seen.shape[1], 1, -1)).to(kind)

    with torch.autocast(x.device.type, enabled=False):
        return whiten.step(x, mean, rows, x.numel() // x.shape[1])


def _in_range(
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    whiten: Whitener,
    kind: torch.dtype | None = None,
) -> Tensor:
    """`product` of input, weight and bias in the type that is asked for: autocast's, or `kind`, by default x's.

    In float16 neither x, nor W D, nor their product before the mean is taken off need be in range, though the result
    is: the root brings any scale to about 1. So input and weight are scaled, and the mean is taken off in float32.
    """
    device = x.device.type
    cast_to = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else kind or x.dtype
    if cast_to != torch.float16:
        if torch.is_autocast_enabled(device):
            return product(x, weight, bias)
        return product(x.to(cast_to), weight.to(cast_to), None if bias is None else bias.to(cast_to))
    with torch.no_grad():
        tiny = torch.finfo(weight.dtype).tiny
        spread = whiten.running_cov.diagonal(dim1=-2, dim2=-1).amax().clamp_min(0).sqrt()
        most = whiten.root.diagonal(dim1=-2, dim2=-1).abs().amax().clamp_min(tiny)
        down = 1 / torch.maximum(whiten.running_mean.abs().amax() + spread, 1 / most)
        # A bound of the product, with inputs up to 1 and as many terms as a weight has.
        up = (weight.abs().amax() * (weight.numel() / weight.shape[0]) / down / 1024).clamp_min(1)
    with torch.autocast(device, enabled=False):
        y = product((x.to(weight.dtype) * down).half(), (weight / (down * up)).half(), None)
        y = y.to(weight.dtype) * up
        if bias is not None:
            y = y + (bias if weight.dim() == 2 else bias.reshape(-1, *[1] * (weight.dim() - 2)))
        return y.half()


def _divisor(channels: int, block: int) -> int:
    """Published: a block that does not divide the channels becomes their greatest common divisor."""
    size = min(block, channels)
    return size if channels % size == 0 else math.gcd(size, channels)


def _check(block: int, sampling_stride: int, blocks: str = "separate") -> None:
    if block < 1:
        raise InputError(f"A whitening layer's block={block} must be at least 1.")
    if sampling_stride < 1:
        raise InputError(f"A whitening layer's sampling_stride={sampling_stride} must be at least 1.")
    if blocks not in ("separate", "pooled"):
        raise InputError(f"A whitening layer's blocks={blocks!r} must be separate or pooled.")
