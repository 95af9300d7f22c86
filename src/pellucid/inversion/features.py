r"""The moments of a layer's current input, of exactly those features that its entry in a statistics table describes.

An entry of shape (C,) describes the channels. An entry of shape (G, F) describes G blocks of F features: the channels
of each of the g convolution groups are cut into G/g equal blocks (zero-filled where they do not divide evenly), of
single pixels ("channels") or of patches, channel-major ("patches"). The blocks of a "pooled" entry count as samples of
one block: feature j // B of block j mod B in a convolution, consecutive features in a linear layer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.core.network.plain import CONVOLUTIONS, border
from pellucid.core.network.statistics import Moments

Live = tuple[Tensor, Tensor]  # mean, and variance or covariance, of a layer's current input


def moments_of(x: Tensor, module: nn.Module, entry: Moments, covariance: bool) -> Live:
    """Mean, shaped like `entry.mean`, and population variance or covariance of an input.

    Args:
        x: the input of `module`.
        module: a layer.
        entry: its entry in a statistics table.
        covariance: return the covariance, shaped like `entry.cov`, instead of the variance, shaped like `entry.var`.
    """
    if entry.mean.dim() == 1:
        rows = (x.flatten(0, -2) if isinstance(module, nn.Linear | nn.LayerNorm) else x.movedim(1, -1).flatten(0, -2)).T
        mean = rows.mean(1)
        return mean, _second(rows.unsqueeze(0), covariance)[0]
    if entry.of == "pooled":
        rows = _pooled(x, module, entry.mean.shape[1])
        return rows.mean(-1), _second(rows, covariance)
    if isinstance(module, nn.Linear):
        x = x.reshape(-1, module.in_features)
    groups = getattr(module, "groups", 1)
    if entry.of == "patches":
        x, kernel, stride, dilation = _padded(x, module)
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        places = [(n - span) // s + 1 for n, span, s in zip(x.shape[2:], spans, stride, strict=True)]
        sampled = tuple(s * _thinned(module, n) for s, n in zip(stride, places, strict=True))
        # The mean of all patches is that of the patches of the mean image, at the cost of one image.
        mean = _patches(x.mean(0, keepdim=True), kernel, stride, dilation).mean(-1, keepdim=True)
        rows = _patches(x, kernel, sampled, dilation)
    else:
        mean = x.mean((0, *range(2, x.dim()))).view(-1, 1, 1)
        for axis in range(2, x.dim()):
            x = x[(slice(None),) * axis + (slice(None, None, _thinned(module, x.shape[axis])),)]
        rows = x.movedim(1, 0).reshape(x.shape[1], 1, -1)
    mean, rows = (_cut(part, entry.mean.shape, groups) for part in (mean, rows))
    return mean.squeeze(-1), _second(rows, covariance)


class _Covariance(torch.autograd.Function):
    """The population covariance (G, F, F) of rows (G, F, n), with one product in each pass.

    With R the centred rows, the gradient of $R R^\\top / n$ is $(\\dot S + \\dot S^\\top) R / n$; centring adds
    nothing, since R sums to 0.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        centred = rows - rows.mean(-1, keepdim=True)
        ctx.save_for_backward(centred)
        return centred @ centred.mT / rows.shape[-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (centred,) = ctx.saved_tensors
        return ((gradients[0] + gradients[0].mT) / centred.shape[-1]) @ centred


def _second(rows: Tensor, covariance: bool) -> Tensor:
    """Population variance (G, F) or covariance (G, F, F) of rows (G, F, n)."""
    return _Covariance.apply(rows) if covariance else rows.var(-1, correction=0)


def _cut(rows: Tensor, shape: torch.Size, groups: int) -> Tensor:
    """Rows (C, K, n) as (G, F, n), for an entry of shape (G, F)."""
    blocks, features = shape
    each = rows.shape[0] // groups
    size = features // rows.shape[1]
    short = blocks // groups * size - each
    if short:
        rows = F.pad(rows.unflatten(0, (groups, each)), (0, 0, 0, 0, 0, short))
    return rows.reshape(blocks, features, -1)


def _pooled(x: Tensor, module: nn.Module, features: int) -> Tensor:
    """Rows (1, F, n) of an input whose blocks count as samples, in the published order."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, features).T.unsqueeze(0)
    if isinstance(module, CONVOLUTIONS):
        x, kernel, stride, dilation = _padded(x, module)
        stride = tuple(s * getattr(module, "sampling_stride", 1) for s in stride)
        rows = _patches(x, kernel, stride, dilation).flatten(0, 1)  # (C K, n)
    else:
        rows = x.movedim(1, 0).flatten(1)
        rows = rows[: len(rows) // features * features]
    return rows.reshape(1, features, -1)


def _padded(x: Tensor, module: Any) -> tuple[Tensor, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """x, padded as the convolution does, and the convolution's kernel, stride and dilation."""
    ends = border(module.padding, module.kernel_size, module.dilation)
    if any(ends):
        x = F.pad(x, ends, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    return x, module.kernel_size, module.stride, module.dilation


def _patches(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """All patches (C, K, n) of x (N, C, *size), ordered by image and then by position in raster order."""
    if len(kernel) == 2:
        columns = F.unfold(x, kernel, dilation, 0, stride)  # (N, C K, positions)
        return columns.transpose(0, 1).reshape(x.shape[1], math.prod(kernel), -1)
    dims, channels = len(kernel), x.shape[1]
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    order = (1, *range(2 + dims, 2 + 2 * dims), 0, *range(2, 2 + dims))
    return x.permute(order).reshape(channels, math.prod(kernel), -1)


def _thinned(module: nn.Module, places: int) -> int:
    """The layer's sampling stride along an axis, reduced so that at least eight places remain."""
    return max(1, min(getattr(module, "sampling_stride", 1), places // 8))
