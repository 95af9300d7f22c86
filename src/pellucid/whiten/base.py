"""What all whitening layers share: their options, where their state is, and how half precision is kept in range."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.network.statistics import Moments
from pellucid.whiten.moments import Blocks
from pellucid.whiten.state import Grad, Whitener

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


def in_range(
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


def thinned(stride: int, places: int) -> int:
    """Sampling stride along an axis: small maps are seen whole, or their covariance would be singular."""
    return max(1, min(stride, places // 8))


def divisor(channels: int, block: int) -> int:
    """Published: a block that does not divide the channels becomes their greatest common divisor."""
    size = min(block, channels)
    return size if channels % size == 0 else math.gcd(size, channels)


def check(block: int, sampling_stride: int, blocks: str = "separate") -> None:
    if block < 1:
        raise InputError(f"A whitening layer's block={block} must be at least 1.")
    if sampling_stride < 1:
        raise InputError(f"A whitening layer's sampling_stride={sampling_stride} must be at least 1.")
    if blocks not in ("separate", "pooled"):
        raise InputError(f"A whitening layer's blocks={blocks!r} must be separate or pooled.")
