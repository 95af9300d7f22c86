"""Rules that choose the filters of each class from what one pass has measured; `evidence` has their formulas."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from pellucid.classfilters.accuracy import Sets
from pellucid.classfilters.evidence import Evidence
from pellucid.classfilters.lasso import lasso_paths
from pellucid.classfilters.omp import omp
from pellucid.classfilters.refit import refitted
from pellucid.classfilters.sets import ClassFilters
from pellucid.classfilters.top import fractions, top_sets
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

RULES = ("evidence", "frequency", "mass", "omp", "l1", "gradient", "weight", "random")
INNER = ("frequency", "mass", "gradient", "random")  # rules that need no last layer
COUNTED = ("frequency", "mass")  # rules that need responses of 0 or more, and count an image's k largest
FITTED = ("omp", "l1")  # rules that fit weights of their own


def choose(
    seen: Evidence,
    k: int = 5,
    rule: str = "evidence",
    *,
    budget: int | None = None,
    refit: bool | None = None,
    seed: int = 0,
) -> ClassFilters:
    """The sets that `rule` chooses from what one pass has `measure`d; arguments and errors as in `decompose`.

    The pass must have counted the k largest responses for `frequency` and `mass` (tops), and summed up the covariance
    for `omp`, `l1` and a refit, and the gradient for `gradient`.
    """
    check_rule(rule)
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
    sets: Sets
    if rule == "l1":
        assert seen.head is not None and seen.cov is not None
        sets, scores = lasso_paths(seen.head.weight, seen.cov, budget or k * classes)
        totals = scores.sum(1)
    elif rule == "omp":
        sets, scores, totals = _pursued(seen, k, budget)
    else:
        scores = _scores(seen, k, rule, seed)
        sets = top_sets(scores, k, budget=budget, positive=True)
        totals = scores.clamp(min=0).sum(1)
    return as_filters(seen, sets, rule, refit=fit, scores=scores, totals=totals)


def as_filters(
    seen: Evidence,
    sets: Sets,
    rule: str,
    *,
    refit: bool = False,
    scores: Tensor | None = None,
    totals: Tensor | None = None,
) -> ClassFilters:
    """Given sets as `ClassFilters`; with `refit` their weights are fitted to the full logits by least squares.

    Args:
        seen: the pass; with a covariance and a last layer for a refit.
        sets: K sets of filters.
        rule: what to call the way they were chosen.
        refit: fit weights and bias, else keep those of the model.
        scores: (K, C); default 0 for every filter.
        totals: (K,) what a class's shares are fractions of; default 0, so that shares are 0.
    """
    classes = len(seen.classes)
    scores = torch.zeros(classes, seen.width) if scores is None else scores
    totals = torch.zeros(classes) if totals is None else totals
    weights, bias = None, None
    if refit:
        assert seen.head is not None and seen.cov is not None
        fitted, biases = refitted(seen.head.weight, seen.head.bias, seen.total, seen.cov, sets)
        weights, bias = tuple(map(tuple, fitted)), tuple(biases)
    return ClassFilters(
        indices=tuple(map(tuple, sets)),
        shares=tuple(fractions(scores[c, list(chosen)], float(totals[c])) for c, chosen in enumerate(sets)),
        rule=rule,
        layer=seen.layer,
        width=seen.width,
        classes=seen.classes,
        scores=scores.float(),
        weights=weights,
        bias=bias,
    )


def check_rule(rule: str) -> None:
    """Refuse the name of a rule that does not exist.

    Raises:
        InputError: it names the rules there are.
    """
    if rule not in RULES:
        raise InputError(f"There is no rule {rule!r}: choose one of {', '.join(RULES)}.")


def _scores(seen: Evidence, k: int, rule: str, seed: int) -> Tensor:
    """(K, C) float64 of the rules that score every filter on its own."""
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
                f"Rule {rule!r} takes a large response for a strong one, but layer {seen.layer!r} has responses down "
                f"to {seen.least:.3g}: use {'gradient' if seen.head is None else 'evidence, omp or l1'}, which take "
                "signs into account."
            )
        histograms = seen.frequency if rule == "frequency" else seen.mass
        if k not in histograms:
            raise InputError(f"Rule {rule!r} with k={k} needs the {k} largest responses: measure with tops=({k},).")
        return histograms[k]
    assert seen.head is not None
    return seen.head.weight if rule == "weight" else seen.head.weight * seen.mean


def _pursued(seen: Evidence, k: int, budget: int | None) -> tuple[list[list[int]], Tensor, Tensor]:
    """Sets by matching pursuit, the decreases of the error as scores (K, C), and the variances of the logits (K,)."""
    assert seen.head is not None and seen.cov is not None
    weight, cov = seen.head.weight, seen.cov
    classes, width = weight.shape
    if budget is None:
        indices, drops = omp(weight, cov, k)
        taken = (indices >= 0).sum(1).tolist()
    else:
        # Each class has its own pursuit; of their next filters, always take the one that lowers its error most.
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
    """How many of each class's drops to take, in their order, if always the largest one available is taken."""
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
