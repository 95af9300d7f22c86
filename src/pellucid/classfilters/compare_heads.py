"""Several last layers on one network: which images each of them classifies correctly, in a single pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.classfilters.head import DecomposedHead
from pellucid.classfilters.last_layer import Head
from pellucid.classfilters.responses import head_inputs
from pellucid.core.errors import InputError
from pellucid.core.measure.pairs import open_data

FULL = "model"  # what the network's own last layer is called in the result


@torch.no_grad()
def compare_heads(
    model: nn.Module,
    heads: Mapping[str, DecomposedHead],
    data: Any,
    split: str = "test",
    *,
    outputs: Sequence[int] | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> dict[str, Tensor]:
    """Which images `model` classifies correctly with each of several last layers; the model is run once per image.

    Args:
        model: any classifier with one last linear layer.
        heads: by name, the layers to put in its place.
        data, split, batch_size, workers: as in `decompose`.
        outputs: the classes that the heads distinguish, in their order; images of other classes are left out. Default:
            all.

    Returns:
        For each name, and for "model" (the model's own last layer), (N,) bool on the CPU.

    Raises:
        InputError: no image of these classes, or a model or data that `evidence.measure` refuses.
    """
    right: dict[str, list[Tensor]] = {name: [] for name in [FULL, *heads]}
    last: Head | None = None
    for images, labels in open_data(model, data, split, batch_size=batch_size, workers=workers):
        features, logits, last, labels = head_inputs(model, images, labels, last)
        if outputs is not None:
            places = torch.full((logits.shape[1],), -1, device=labels.device)
            places[list(outputs)] = torch.arange(len(outputs), device=labels.device)
            labels = places[labels]
            kept = labels >= 0
            features, logits, labels = features[kept], logits[kept][:, list(outputs)], labels[kept]
        right[FULL].append((logits.argmax(1) == labels).cpu())
        for name, head in heads.items():
            right[name].append((F.linear(features, head.dense(), head.bias).argmax(1) == labels).cpu())
    found = {name: torch.cat(parts) if parts else torch.zeros(0) for name, parts in right.items()}
    if not len(found[FULL]):
        raise InputError("There is no image of these classes: give at least one.")
    return found
