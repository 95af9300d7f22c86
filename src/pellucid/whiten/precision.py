"""A layer's product in the precision that is asked for, with float16 kept in range."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pellucid.whiten.state import Whitener


def in_range(
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    whiten: Whitener,
    kind: torch.dtype | None = None,
) -> Tensor:
    """`product(x, weight, bias)` in autocast's type, or else in `kind`, by default the type of x.

    In float16, x, W D and their product before the mean is subtracted may all overflow, even though the result does
    not: the root brings any scale to about 1. So input and weight are rescaled, and the mean is subtracted in float32.
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
        # A bound on the product, for inputs up to 1 and as many terms as a weight has.
        up = (weight.abs().amax() * (weight.numel() / weight.shape[0]) / down / 1024).clamp_min(1)
    with torch.autocast(device, enabled=False):
        y = product((x.to(weight.dtype) * down).half(), (weight / (down * up)).half(), None)
        y = y.to(weight.dtype) * up
        if bias is not None:
            y = y + (bias if weight.dim() == 2 else bias.reshape(-1, *[1] * (weight.dim() - 2)))
        return y.half()
