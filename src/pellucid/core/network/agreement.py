"""How much the outputs of two networks differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from pellucid.core.device import double


def tensors(value: object) -> Iterator[Tensor]:
    """The tensors in a network's output, which is a tensor, or nested tables and sequences of tensors."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from tensors(value[key])
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)


def distance(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference between outputs, relative to the largest expected one; infinite if any is not finite."""
    if not expected or [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return math.inf
    distances = [0.0]
    for a, b in zip(expected, found, strict=True):
        if a.numel():
            a, b = double(a.detach()), double(b.detach())
            gap, scale = float((a - b).abs().max()), float(a.abs().max())
            if not (math.isfinite(gap) and math.isfinite(scale)) or (gap and not scale):
                return math.inf
            distances.append(gap / scale if gap else 0.0)
    return max(distances)
