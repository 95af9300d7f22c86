"""The filters that decide each class."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pellucid.classfilters.evidence import measure
from pellucid.classfilters.rules import COUNTED, FITTED, choose, known
from pellucid.classfilters.sets import ClassFilters

# --- finding them ---


def decompose(
    model: nn.Module,
    data: Any,
    k: int = 5,
    rule: str = "evidence",
    layer: str | None = None,
    *,
    budget: int | None = None,
    refit: bool | None = None,
    split: str = "train",
    device: str | torch.device | None = None,
    batch_size: int = 256,
    workers: int = 0,
    seed: int = 0,
) -> ClassFilters:
    """The filters that decide each class of a classifier, by one pass over labelled images.

    Args:
        model: any classifier, images (N, ...) -> logits (N, K); it stays as it is.
        data: a data set's name as in `load_data`, a `Dataset`, (images already normalised, labels), or an iterable of
            such pairs (a DataLoader).
        k: filters a class; rules that count take each image's k largest responses too.
        rule: one of `RULES`; their formulas and sources are on top of `evidence`.
        layer: dotted name of an inner layer, whose outputs (averaged over positions) are meant; default the inputs of
            the last linear layer.
        budget: filters of all classes together instead of k for each: those with the largest scores of all. `l1` has
            one penalty for all classes, so k of it is an average: its budget is k for each class, or this.
        refit: fit the last layer's weights of the chosen filters to the full logits by least squares; default for
            `omp` and `l1` alone. The other rules keep the model's weights.
        split: part of a named data set: "train", "val" or "test".
        device: where to compute; the model is moved there. Default: where it is.
        batch_size: images in a step; the sets do not depend on it but by rounding.
        workers: processes that decode images of a data set too large for memory.
        seed: of the rule `random`.

    Returns:
        Sets that hold filters of a positive score only, so that they may be smaller than k.

    Raises:
        InputError: no such rule, one that does not fit the layer or its responses, k or budget out of range, or
            what `evidence.measure` refuses of model and data.
    """
    known(rule)
    seen = measure(
        model,
        data,
        layer,
        tops=(k,) if rule in COUNTED else (),
        covariance=bool(refit) or rule in FITTED,
        gradient=rule == "gradient",
        split=split,
        device=device,
        batch_size=batch_size,
        workers=workers,
    )
    return choose(seen, k, rule, budget=budget, refit=refit, seed=seed)
