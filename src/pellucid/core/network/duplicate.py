"""Copy a network, whatever it holds."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from pellucid.core.network.agreement import tensors

M = TypeVar("M", bound=nn.Module)


def duplicate(model: M) -> M:
    """A deep copy of `model`, which shares nothing with it.

    In evaluation mode some networks keep tables that they have computed from their parameters, such as the attention
    biases of timm's LeViT, in plain attributes. torch refuses to copy a tensor that has a gradient to pass on, so the
    copy gets its values.
    """
    computed: dict[int, Any] = {
        id(tensor): tensor.detach().clone()
        for module in model.modules()
        for tensor in tensors(vars(module))
        if not tensor.is_leaf
    }
    return copy.deepcopy(model, computed)
