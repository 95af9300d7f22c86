"""Turn a masked network into an ordinary one, if wanted with new batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.network.fold import fold
from pellucid.core.network.reestimate import reestimated
from pellucid.edgepopup.layers import masks


def bake(model: nn.Module, images: Tensor | Iterable[Tensor] | None = None) -> nn.Module:
    """Copy the masked network `model` as plain layers: pruned weights become zeros, and batch norm is folded in.

    The weights are those that `model` evaluates with (`pellucid.fold` does the same). `model` itself is not changed.

    Args:
        model: a network that `pellucid.subnet` has masked.
        images: a batch (N, C, H, W), or several, normalised and on the device as the network expects them. Batch norm
            then uses the statistics of these images, pooled over all batches, instead of its running averages, which
            lag behind: the mask moves at every training step. Default: the running averages.

    Raises:
        InputError: a network without masks, images for a network without batch norm, or what `pellucid.fold` raises.
    """
    if next(masks(model), None) is None:
        raise InputError(
            "This network has no masks to bake in, so it holds no subnetwork: mask it with pellucid.subnet."
        )
    if images is None:
        return fold(model)
    batches = [images] if isinstance(images, Tensor) else list(images)
    with reestimated(model, batches):
        return fold(model, batches[0])
