"""Several heads on the features of one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pellucid.classfilters.head import DecomposedHead
from pellucid.classfilters.last_layer import Head
from pellucid.classfilters.responses import look
from pellucid.core.errors import InputError
from pellucid.core.measure.pairs import open_data


@torch.no_grad()
def accuracies(
    model: nn.Module,
    heads: Mapping[str, DecomposedHead],
    data: Any,
    split: str = "test",
    *,
    outputs: Sequence[int] | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> tuple[dict[str, int], int]:
    """Images that `model` gets right with each of several last layers in turn, by one pass.

    Args:
        model: any classifier with one last linear layer.
        heads: in its place, by name; the model's own is added under the name "model".
        data, split, batch_size, workers: as of `decompose`.
        outputs: classes that the heads tell apart, in their order; images of others are left out. Default: all.

    Returns:
        How many each gets right, and how many images there were.

    Raises:
        InputError: no image of these classes, or what `evidence.measure` refuses.
    """
    right = dict.fromkeys(["model", *heads], 0)
    n = 0
    name: Head | None = None
    for images, labels in open_data(model, data, split, batch_size=batch_size, workers=workers):
        features, logits, name, labels = look(model, images, labels, name)
        if outputs is not None:
            places = torch.full((logits.shape[1],), -1, device=labels.device)
            places[list(outputs)] = torch.arange(len(outputs), device=labels.device)
            labels = places[labels]
            kept = labels >= 0
            features, logits, labels = features[kept], logits[kept][:, list(outputs)], labels[kept]
        n += len(labels)
        right["model"] += int((logits.argmax(1) == labels).sum())
        for key, head in heads.items():
            answers = F.linear(features, head.dense(), head.bias)
            right[key] += int((answers.argmax(1) == labels).sum())
    if not n:
        raise InputError("There is no image of these classes: give at least one.")
    return right, n
