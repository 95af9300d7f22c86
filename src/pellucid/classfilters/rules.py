"""Rules that choose the filters of each class from what one pass has measured."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import torch
from torch import Tensor

from pellucid.classfilters.evidence import Evidence
from pellucid.classfilters.lasso import lasso_paths
from pellucid.classfilters.omp import omp
from pellucid.classfilters.refit import refitted
from pellucid.classfilters.sets import ClassFilters
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

RULES = ("evidence", "frequency", "mass", "omp", "l1", "gradient", "weight", "random")
INNER = ("frequency", "mass", "gradient", "random")  # rules that need no last layer
COUNTED = ("frequency", "mass")  # that assume responses of 0 or more, and count an image's k largest
FITTED = ("omp", "l1")  # that fit weights of their own


def choose(
    seen: Evidence,
    k: int = 5,
    rule: str = "evidence",
    *,
    budget: int | None = None,
    refit: bool | None = None,
    seed: int = 0,
) -> ClassFilters:
    """The sets that `rule` makes of what one pass has `measure`d; arguments and errors as of `decompose`.

    The pass must have counted the k largest responses for `frequency` and `mass` (tops), the covariance for `omp`,
    `l1` and a refit, and the gradient for `gradient`.
    """
    known(rule)
    classes, width = len(seen.classes), seen.width
    if (budget is None or rule in COUNTED) and not 1 <= k <= width:
        raise InputError(f"k={k} is out of range: layer {seen.layer!r} has {width} filters.")
    if budget is not None and not 1 <= budget <= classes * width:
        raise InputError(
            f"A budget of {budget} filters is out of range: {classes} classes of {width} filters can have 1 to "
            f"{classes * width}."
        )
    if seen.head is None and (rule not in INNER or refit):
        raise InputError(
            f"Rule {rule!r}{' with a refit' if refit else ''} needs the last layer's weights, but {seen.layer!r} is an "
            f"inner layer: use {', '.join(INNER[:-1])} or {INNER[-1]} without a refit."
        )
    fit = rule in FITTED if refit is None else refit
    if (fit or rule in FITTED) and seen.cov is None:
        raise InputError(f"Rule {rule!r} needs a covariance: measure with covariance=True.")
    if rule == "l1":
        assert seen.head is not None and seen.cov is not None
        sets, scores = lasso_paths(seen.head.weight, seen.cov, budget or k * classes)
        whole = scores.sum(1)
    elif rule == "omp":
        sets, scores, whole = _pursued(seen, k, budget)
    else:
        scores = _scores(seen, k, rule, seed)
        sets = largest(scores, k, budget)
        whole = scores.clamp(min=0).sum(1)
    weights, bias = None, None
    if fit:
        assert seen.head is not None and seen.cov is not None
        fitted, biases = refitted(seen.head.weight, seen.head.bias, seen.total, seen.cov, sets)
        weights, bias = tuple(map(tuple, fitted)), tuple(biases)
    return ClassFilters(
        indices=tuple(map(tuple, sets)),
        shares=tuple(parts(scores[c, chosen], float(whole[c])) for c, chosen in enumerate(sets)),
        rule=rule,
        layer=seen.layer,
        width=width,
        classes=seen.classes,
        scores=scores.float(),
        weights=weights,
        bias=bias,
    )


def known(rule: str) -> None:
    if rule not in RULES:
        raise InputError(f"There is no rule {rule!r}: choose one of {', '.join(RULES)}.")


def _scores(seen: Evidence, k: int, rule: str, seed: int) -> Tensor:
    """(K, C) float64 of the rules that score every filter by itself."""
    if rule == "random":
        generator = torch.Generator().manual_seed(seed_of("random filters", seed))
        return 1 - torch.rand(seen.mean.shape, generator=generator, dtype=torch.float64)
    if rule == "gradient":
        if seen.gradient is None:
            raise InputError("Rule 'gradient' needs a gradient: measure with gradient=True.")
        return seen.gradient
    if rule in COUNTED:
        if seen.least < 0:
            raise InputError(
                f"Rule {rule!r} takes a large response for a strong one, but layer {seen.layer!r} answers down to "
                f"{seen.least:.3g}: use {'gradient' if seen.head is None else 'evidence, omp or l1'}, which heed signs."
            )
        histograms = seen.frequency if rule == "frequency" else seen.mass
        if k not in histograms:
            raise InputError(f"Rule {rule!r} with k={k} needs the {k} largest responses: measure with tops=({k},).")
        return histograms[k]
    assert seen.head is not None
    return seen.head.weight if rule == "weight" else seen.head.weight * seen.mean


def largest(scores: Tensor, k: int, budget: int | None) -> list[list[int]]:
    """The filters of positive score: the k largest of each class, or `budget` of all; of equal ones the first."""
    if budget is None:
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        return [[j for j in row.tolist() if line[j] > 0] for row, line in zip(order, scores, strict=True)]
    ranked = scores.flatten().argsort(descending=True, stable=True)[:budget]
    return _grouped(((int(place) // scores.shape[1], int(place) % scores.shape[1]) for place in ranked
                     if scores.flatten()[place] > 0), len(scores))  # fmt: skip


def _grouped(pairs: Iterable[tuple[int, int]], classes: int) -> list[list[int]]:
    sets: list[list[int]] = [[] for _ in range(classes)]
    for c, j in pairs:
        sets[c].append(j)
    return sets


def _pursued(seen: Evidence, k: int, budget: int | None) -> tuple[list[list[int]], Tensor, Tensor]:
    """Sets by matching pursuit, the drops as scores (K, C), and the variances of the logits (K,)."""
    assert seen.head is not None and seen.cov is not None
    weight, cov = seen.head.weight, seen.cov
    classes, width = weight.shape
    if budget is None:
        indices, drops = omp(weight, cov, k)
        taken = (indices >= 0).sum(1).tolist()
    else:
        # Each class's own pursuit; of their next filters always the one that lowers its logit's error most.
        steps = min(width, 2 * -(-budget // classes) + 8)
        while True:
            indices, drops = omp(weight, cov, steps)
            taken = _spent(drops.tolist(), budget)
            if steps == width or max(taken) < steps:
                break
            steps = min(width, 2 * steps)
    scores = torch.zeros(classes, width, dtype=torch.float64)
    sets = []
    for c, count in enumerate(taken):
        chosen = indices[c, :count]
        scores[c, chosen] = drops[c, :count]
        sets.append(chosen.tolist())
    return sets, scores, ((weight @ cov) * weight).sum(1)


def _spent(drops: list[list[float]], budget: int) -> list[int]:
    """How many of each class's drops to take in their order so that always the largest on offer is taken."""
    taken = [0] * len(drops)
    offers = [(-row[0], c) for c, row in enumerate(drops) if row[0] > 0]
    heapq.heapify(offers)
    for _ in range(budget):
        if not offers:
            break
        _, c = heapq.heappop(offers)
        taken[c] += 1
        if taken[c] < len(drops[c]) and drops[c][taken[c]] > 0:
            heapq.heappush(offers, (-drops[c][taken[c]], c))
    return taken


def parts(scores: Tensor, whole: float) -> tuple[float, ...]:
    """Each score's part of `whole`; 0 where there is no whole."""
    return tuple(float(score) / whole if whole > 0 else 0.0 for score in scores)
