"""The lasso's path: a few filters that approximate the logit of a class, from its covariance as in `omp`."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def lasso_paths(weight: Tensor, cov: Tensor, budget: int) -> tuple[list[list[int]], Tensor]:
    r"""The filters of all classes that remain at one common penalty, the smallest that keeps within the budget.

    For every class the lasso on standardised responses,

    $$\min_v\ \tfrac12 (w-v)\,\Sigma\,(w-v)^\top + \lambda \sum_j \sqrt{\Sigma_{jj}}\,|v_j|,$$

    is followed exactly from its largest penalty down (LARS; Efron, Hastie, Johnstone and Tibshirani 2004). The penalty
    $\lambda$ is common to all classes, and is lowered until the next filter would exceed the budget.

    Args:
        weight: (K, C) of the last layer.
        cov: (C, C), population covariance of its inputs.
        budget: maximum number of filters of all classes together.

    Returns:
        The sets, each ordered by the penalty at which its filters first joined, and the scores (K, C): that penalty, in
        units of the logit; 0 for filters that did not join as far as the path was followed.
    """
    from sklearn.linear_model import lars_path_gram

    weight, cov = weight.double(), cov.double()
    classes, width = weight.shape
    deviation = cov.diagonal().clamp(min=0).sqrt()
    alive = (deviation > 0).nonzero().flatten()
    scores = torch.zeros(classes, width, dtype=torch.float64)
    if not len(alive):
        return [[] for _ in range(classes)], scores
    gram = (cov[alive][:, alive] / deviation[alive, None] / deviation[None, alive]).numpy()
    targets = ((weight @ cov)[:, alive] / deviation[alive]).numpy()
    lengths = [0] * classes

    def follow(c: int, steps: int) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about dependent filters, which it drops
            alphas, _, values = lars_path_gram(targets[c], gram, n_samples=1, max_iter=steps, method="lasso")
        lengths[c] = steps
        return torch.from_numpy(alphas.copy()), torch.from_numpy(values != 0)

    first = min(4 * width, 2 * -(-budget // classes) + 8)
    paths = [follow(c, first) for c in range(classes)]
    while True:
        # Follow a truncated path further if the common penalty may fall below its end.
        events = sorted(
            (
                (-float(alphas[step]), c, step, int(active[:, step + 1].sum()) - int(active[:, step].sum()))
                for c, (alphas, active) in enumerate(paths)
                for step in range(len(alphas) - 1)
            ),
        )
        spent, stop = 0, [0] * classes
        penalty = 0.0
        for negative, c, step, change in events:
            if spent + change > budget:
                penalty = -negative
                break
            spent += change
            stop[c] = step + 1
        short = [
            c
            for c, (alphas, _) in enumerate(paths)
            if len(alphas) == lengths[c] + 1 and float(alphas[-1]) > penalty and lengths[c] < 8 * width
        ]
        if not short:
            break
        for c in short:
            paths[c] = follow(c, 2 * lengths[c])
    sets = []
    for c, (alphas, active) in enumerate(paths):
        joined = active.int().argmax(1)  # the first knot with the filter in
        ever = active.any(1)
        scores[c, alive[ever]] = alphas[(joined[ever] - 1).clamp(min=0)]
        chosen = active[:, stop[c]].nonzero().flatten()
        order = scores[c, alive[chosen]].argsort(descending=True, stable=True)
        sets.append(alive[chosen[order]].tolist())
    return sets, scores
