r"""Few filters that stand for a class's logit: matching pursuit, the lasso's path, and the least-squares refit.

With responses $a$ of mean $\mu$ and covariance $\Sigma$, and the logit $z = w a + b$, the best weights v on a set S are

$$v_S = \Sigma_{SS}^{-1} \Sigma_{S:} w, \qquad b' = b + w\mu - v_S\mu_S, \qquad
  E(z - v_S a_S - b')^2 = (w - v)\,\Sigma\,(w - v)^\top$$

so that nothing but $\mu$ and $\Sigma$ is needed, however many images there were. All arithmetic is in float64.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

_TINY = 1e-10  # of a filter's variance: what is left of it is rounding
_CHUNK = 2**24  # numbers that the factors of a few classes may take at once (128 MiB)


def omp(weight: Tensor, cov: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    r"""Orthogonal matching pursuit of every class's logit: the filter that lowers the mean squared error most, again
    and again, with all weights refitted in each step.

    With L the partial Cholesky factor of $\Sigma$ on the chosen set, $d_j = \Sigma_{jj} - \sum_i L_{ij}^2$ what is new
    in filter j, and $r_j$ the covariance of the residual with it, the drop is $r_j^2 / d_j$ (orthogonal least squares:
    Chen, Billings and Luo 1989; Pati, Rezaiifar and Krishnaprasad 1993 leave out the division's update).

    Args:
        weight: (K, C) of the last layer.
        cov: (C, C), population covariance of its inputs.
        steps: filters a class, at most.

    Returns:
        Indices (K, steps) int64 in the order they joined, -1 where no filter lowers the error any more (constant and
        linearly dependent ones never do), and the drops (K, steps) float64, 0 there. Of equal filters the first.
    """
    weight, cov = weight.double(), cov.double()
    width = weight.shape[1]
    chunk = max(1, _CHUNK // max(1, width * steps))
    parts = [_omp(rows, cov, steps) for rows in weight.split(chunk)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _omp(weight: Tensor, cov: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    classes, width = weight.shape
    rows = torch.arange(classes)
    variance = cov.diagonal().clamp(min=0)
    fresh = variance.repeat(classes, 1)  # what of each filter the chosen ones do not explain
    covariance = weight @ cov  # of the residual with each filter
    error = (covariance * weight).sum(1)
    least = 1e-14 * error.clamp(min=0)
    factors = torch.zeros(classes, steps, width, dtype=torch.float64)
    indices = torch.full((classes, steps), -1)
    drops = torch.zeros(classes, steps, dtype=torch.float64)
    open_ = torch.ones(classes, width, dtype=torch.bool)
    for step in range(steps):
        usable = open_ & (fresh > _TINY * variance)
        gain = torch.where(usable, covariance.square() / fresh.clamp(min=1e-300), torch.zeros_like(fresh))
        # Of filters that are equal but for rounding the first: copies of a filter are one filter.
        best = (gain >= gain.amax(1, keepdim=True) * (1 - 1e-9)).int().argmax(1)
        drop = gain[rows, best]
        going = drop > least
        if not going.any():
            break
        known = factors[:, :step]
        column = cov[best] - torch.einsum("ks,ksc->kc", known[rows, :, best], known)
        column = column / fresh[rows, best].clamp(min=1e-300).sqrt()[:, None]
        column = torch.where(going[:, None], column, torch.zeros_like(column))
        factors[:, step] = column
        covariance = (
            covariance - (covariance[rows, best] / fresh[rows, best].clamp(min=1e-300).sqrt())[:, None] * column
        )
        fresh = (fresh - column.square()).clamp(min=0)
        open_[rows, best] &= ~going
        indices[:, step] = torch.where(going, best, torch.full_like(best, -1))
        drops[:, step] = torch.where(going, drop, torch.zeros_like(drop))
    return indices, drops


def lasso_paths(weight: Tensor, cov: Tensor, budget: int) -> tuple[list[list[int]], Tensor]:
    r"""The filters of all classes that one penalty leaves, the penalty being what spends the budget.

    For every class the lasso on standardised responses,

    $$\min_v\ \tfrac12 (w-v)\,\Sigma\,(w-v)^\top + \lambda \sum_j \sqrt{\Sigma_{jj}}\,|v_j|,$$

    is followed exactly from its largest penalty down (LARS; Efron, Hastie, Johnstone and Tibshirani 2004); the penalty
    $\lambda$ is common to all classes, and falls until the next filter would be one too many.

    Args:
        weight: (K, C); cov: (C, C).
        budget: filters of all classes together, at most.

    Returns:
        The sets, in the order in which filters joined for good, and the scores (K, C): the penalty at which a filter
        first joined its class's path, in units of the logit; 0 where it did not, as far as the path was followed.
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
            warnings.simplefilter("ignore")  # of dependent filters, which it drops
            alphas, _, values = lars_path_gram(targets[c], gram, n_samples=1, max_iter=steps, method="lasso")
        lengths[c] = steps
        return torch.from_numpy(alphas.copy()), torch.from_numpy(values != 0)

    first = min(4 * width, 2 * -(-budget // classes) + 8)
    paths = [follow(c, first) for c in range(classes)]
    while True:
        # A path that was cut short is followed further if the common penalty may fall below its end.
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


def refit(
    weight: Tensor, bias: Tensor, mean: Tensor, cov: Tensor, indices: list[list[int]]
) -> tuple[list[list[float]], list[float]]:
    """For each class the weights of its filters, and the bias, that are nearest to the full logit in the mean square.

    Args:
        weight: (K, C); bias: (K,); mean: (C,); cov: (C, C).
        indices: one list of filters a class.

    Returns:
        The weights, of the shape of `indices`, and K biases. Of linearly dependent filters the smallest weights.
    """
    weight, bias, mean, cov = weight.double(), bias.double(), mean.double(), cov.double()
    scale = cov.diagonal().clamp(min=0).sqrt()
    targets = weight @ cov
    weights, biases = [], []
    for c, chosen in enumerate(indices):
        # Standardised, so that what counts as dependent does not depend on the filters' units.
        size = scale[chosen].clamp(min=1e-150)
        gram = cov[chosen][:, chosen] / size[:, None] / size[None]
        values = torch.linalg.pinv(gram, rtol=_TINY, hermitian=True) @ (targets[c, chosen] / size) / size
        weights.append(values.tolist())
        biases.append(float(bias[c] + weight[c] @ mean - values @ mean[chosen]))
    return weights, biases
