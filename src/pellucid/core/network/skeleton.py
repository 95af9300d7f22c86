"""A network without memory for its tensors, which shows their names and shapes before anything large is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# What layers make their weights and buffers with; other tensors that a constructor computes with are small.
_ALLOCATORS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.empty_strided}


class _Weightless(TorchFunctionMode):
    """Weights have no memory, but a constructor may compute with the values of other tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _ALLOCATORS and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def skeleton(make: Callable[[], nn.Module]) -> nn.Module:
    """The network that `make` builds, with its tensors on the device "meta".

    Some constructors compute with tensors, such as the widths of torchvision's RegNet: only weights are then without
    memory.

    Raises:
        Exception: whatever `make` raises.
    """
    try:
        with torch.device("meta"):
            return make()
    except Exception:
        try:
            with _Weightless():
                return make()
        except Exception:  # of the two errors, the first says what is wrong with the request
            pass
        raise
