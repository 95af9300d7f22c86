"""Which part of an image drives a filter: the peak of the map that is pooled to the filter's response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.classfilters.last_layer import Head
from pellucid.core.network.tap import tap

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit


@torch.no_grad()
def pooled_map(audit: Audit, head: Head) -> str | None:
    """The last layer whose output is a map with the last layer's input as its mean or maximum over positions."""
    with tap(audit.model, [name for name, _ in audit.model.named_modules()]) as taps:
        audit.forward(audit.images(torch.tensor([0])))
    found = [name for name, seen in taps.items() if seen.calls == 1 and _is_map(seen.output, taps[head.name].input)]
    return found[-1] if found else None


@torch.no_grad()
def peaks(audit: Audit, layer: str, best: dict[int, list[int]]) -> dict[tuple[int, int], tuple[int, ...]]:
    """(filter, image) -> (top, bottom, left, right) of half the image's size around the peak of the filter's map."""
    rows = torch.tensor(sorted({row for shown in best.values() for row in shown}))
    with tap(audit.model, [layer]) as taps:
        audit.forward(audit.images(rows))
    maps, size = taps[layer].output, audit.dataset.image_size
    boxes = {}
    for number, shown in best.items():
        for row in shown:
            peak = divmod(int(maps[int((rows == row).nonzero()), number].argmax()), maps.shape[3])
            box: tuple[int, ...] = ()
            for axis in (0, 1):
                side = size[axis] // 2
                middle = (peak[axis] + 0.5) * size[axis] / maps.shape[2 + axis]
                start = min(max(0, round(middle - side / 2)), size[axis] - side)
                box += (start, start + side)
            boxes[number, row] = box
    return boxes


def _is_map(output: Any, pooled: Any) -> bool:
    """Is it (B, C, h, w) with more than one position, and its mean or maximum over positions the last layer's input?"""
    if not (isinstance(output, Tensor) and isinstance(pooled, Tensor) and output.dim() == 4):
        return False
    pooled = pooled.mean((2, 3)) if pooled.dim() == 4 else pooled
    if output.shape[:2] != pooled.shape or output[0, 0].numel() < 2:
        return False
    slack = 1e-4 * float(pooled.abs().max().clamp(min=1e-12))
    return any(bool((form - pooled).abs().max() <= slack) for form in (output.mean((2, 3)), output.amax((2, 3))))
