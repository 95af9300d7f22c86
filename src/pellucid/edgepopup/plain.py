"""A subnetwork as an ordinary network, with batch-norm statistics of its own."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.network.fold import fold
from pellucid.core.network.reestimate import reestimated
from pellucid.edgepopup.layers import masks


def bake(model: nn.Module, images: Tensor | Iterable[Tensor] | None = None) -> nn.Module:
    """A copy of the masked network `model` of plain layers, its masks zeros in their weights, batch norm folded in.

    Without images it computes exactly the weights that `model` evaluates with (`pellucid.fold` does the same). With
    images, a batch (N, C, H, W) or several, normalised as the network expects, batch norm's statistics are those of
    the images, pooled: a mask moves at every step of training, and the running averages lag behind. `model` stays as
    it is.

    Raises InputError for a network without masks, for images where there is no batch norm, and what `pellucid.fold`
    raises.
    """
    if next(masks(model), None) is None:
        raise InputError("This network holds no subnetwork to bake: mask it with pellucid.edgepopup.")
    if images is None:
        return fold(model)
    batches = [images] if isinstance(images, Tensor) else list(images)
    with reestimated(model, batches):
        return fold(model, batches[0])
