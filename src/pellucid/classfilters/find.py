"""Find the filters that decide each class: one pass over the images, then a rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pellucid.classfilters.evidence import measure
from pellucid.classfilters.rules import COUNTED, FITTED, check_rule, choose
from pellucid.classfilters.sets import ClassFilters


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
    """Find the filters that decide each class of a classifier, in one pass over labelled images.

    Args:
        model: any classifier, images (N, ...) -> logits (N, K). Afterwards it is as before: its weights, its device and
            the training mode of every submodule.
        data: a data set's name as in `load_data`, a `Dataset`, (images already normalised, labels), or an iterable of
            such pairs (a DataLoader).
        k: filters per class; the rules that count also use each image's k largest responses.
        rule: one of `rules.RULES`; for their formulas and sources see `pellucid.classfilters.evidence`.
        layer: dotted name of an inner layer, whose outputs (averaged over positions) are the filters' responses;
            default the inputs of the last linear layer.
        budget: filters of all classes together, in place of `k` per class: those with the largest scores overall. `l1`
            has one penalty for all classes, so its k is an average: its budget is k times the number of classes, or
            this.
        refit: fit the last layer's weights of the chosen filters to the full logits by least squares; default only for
            `omp` and `l1`. The other rules keep the model's weights.
        split: part of a named data set or `Dataset`: "train" or "val". Filters are never chosen on the test split.
            Images handed over as tensors or by a DataLoader have no role: keep them apart from those that you measure
            accuracy on.
        device: where to compute; the model is moved there and back. Default: where it is.
        batch_size: images per step; up to rounding the sets do not depend on it.
        workers: processes that decode images of a data set too large for memory.
        seed: of the rule `random`.

    Returns:
        Sets of filters with a positive score, so that they may be smaller than k.

    Raises:
        InputError: an unknown rule, one that does not fit the layer or its responses, k or budget out of range, or a
            model or data that `evidence.measure` refuses.
    """
    check_rule(rule)
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
