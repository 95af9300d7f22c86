"""State that half precision would spoil."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def at_least_single(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `Module._apply`, but half() and bfloat16() leave tensors as they are: covariances and ranks in halves are
    none."""

    def kept(tensor: Tensor) -> Tensor:
        made = fn(tensor)
        return tensor.to(made.device) if made.dtype in (torch.float16, torch.bfloat16) else made

    return kept
