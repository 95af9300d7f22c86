"""Multinomial logistic regression in which each class reads only its own filters: a convex fit of a decomposed head."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.classfilters.head import DecomposedHead
from pellucid.core.device import has_double
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of


def fit_features(
    head: DecomposedHead,
    features: Tensor,
    targets: Tensor,
    *,
    solver: str = "lbfgs",
    steps: int = 100,
    lr: float = 1e-2,
    decay: float = 0.0,
) -> tuple[float, float]:
    """Fit weights and bias of `head`, in place, to its inputs: multinomial logistic regression with each class
    restricted to its filters. The problem is convex.

    Args:
        head: its sets of filters stay as they are.
        features: (N, C), inputs of the head.
        targets: labels (N,) int64, or probabilities (N, K) of another model (distillation).
        solver: "lbfgs" with a strong Wolfe line search over all images in float64, or "adamw" on batches of 256.
        steps: iterations of L-BFGS, or passes of AdamW over the images.
        lr: learning rate of AdamW.
        decay: factor of half the squared distance from the starting weights, added to the objective; 0 fits freely.

    Returns:
        The objective (mean cross-entropy in nats, decay included) before and after; it never rises, because the
        starting weights are kept otherwise.

    Raises:
        InputError: shapes that do not fit, an unknown solver, or a number out of range.
    """
    if features.ndim != 2 or features.shape[1] != head.in_features or len(features) != len(targets) or not len(targets):
        raise InputError(
            f"Features {list(features.shape)} and targets {list(targets.shape)} do not fit a head of "
            f"{head.in_features} inputs: give [images, {head.in_features}] and one target per image."
        )
    if targets.ndim == 2 and targets.shape[1] != head.out_features:
        raise InputError(f"Probabilities of {targets.shape[1]} classes do not fit a head of {head.out_features}.")
    if targets.ndim == 1 and not 0 <= int(targets.min()) <= int(targets.max()) < head.out_features:
        raise InputError(f"Labels must be from 0 to {head.out_features - 1}.")
    if solver not in ("lbfgs", "adamw"):
        raise InputError(f"There is no solver {solver!r}: choose lbfgs or adamw.")
    if steps < 1 or not (math.isfinite(lr) and lr > 0) or not (math.isfinite(decay) and decay >= 0):
        raise InputError(f"steps={steps}, lr={lr} and decay={decay} must be at least 1, above 0, and at least 0.")
    # A copy in float64: near the minimum a line search depends on differences that float32 cannot resolve.
    work = copy.deepcopy(head)
    if not has_double(work.weight.device):
        work.cpu()
    work.double().requires_grad_(True)
    work.spatial = False
    x = features.detach().to(work.weight)
    y = targets.detach().to(work.weight.device)
    y = y.double() if y.ndim == 2 else y.long()
    starts = [parameter.detach().clone() for parameter in work.parameters()]

    def loss(rows: Tensor | slice = slice(None)) -> Tensor:
        value = F.cross_entropy(work(x[rows]), y[rows])
        if decay:
            away = sum((p - start).square().sum() for p, start in zip(work.parameters(), starts, strict=True))
            value = value + decay / 2 * away
        return value

    with torch.enable_grad():
        before = float(loss().detach())
        if solver == "lbfgs":
            optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
                work.parameters(), max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-10
            )

            def closure() -> float:
                optimizer.zero_grad()
                value = loss()
                value.backward()
                return float(value.detach())

            optimizer.step(closure)
        else:
            _adamw(work, loss, len(x), steps, lr)
        after = float(loss().detach())
    if not after <= before:
        return before, before
    with torch.no_grad():
        for parameter, fitted in zip(head.parameters(), work.parameters(), strict=True):
            parameter.copy_(fitted)
    return before, after


def _adamw(work: nn.Module, loss: Callable[[Tensor], Tensor], n: int, steps: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(work.parameters(), lr=lr, weight_decay=0.0)
    for epoch in range(steps):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed_of("head fit", epoch)))
        for rows in order.split(256):
            optimizer.zero_grad()
            loss(rows.to(next(work.parameters()).device)).backward()
            optimizer.step()
