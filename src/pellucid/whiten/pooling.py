"""Means and covariances of a batch that several processes share."""

from __future__ import annotations

import torch
from torch import Tensor


def pooled(value: Tensor, count: int, sync: bool) -> Tensor:
    """The mean of `value` over all processes of torch.distributed, weighted by their `count`; without `sync`, or with
    a single process, `value` itself."""
    if not sync or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    from torch.distributed.nn.functional import all_reduce

    total = all_reduce(torch.cat([value.flatten() * count, value.new_full((1,), count)]))
    return (total[:-1] / total[-1]).reshape(value.shape)


def covariance(rows: Tensor, centre: bool, sync: bool) -> Tensor:
    """Population covariance (G, F, F) of rows (G, F, n), or with `centre=False` their second moment about 0."""
    n = rows.shape[-1]
    # The mean first, then the moment about it: a difference of large second moments would lose all digits.
    centred = rows - pooled(rows.mean(-1, keepdim=True), n, sync) if centre else rows
    return pooled(centred @ centred.mT / n, n, sync)
