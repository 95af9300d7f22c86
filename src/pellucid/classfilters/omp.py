r"""Orthogonal matching pursuit: a few filters that approximate the logit of a class.

With responses $a$ of mean $\mu$ and covariance $\Sigma$, and the logit $z = w a + b$, the best weights v on a set S are

$$v_S = \Sigma_{SS}^{-1} \Sigma_{S:} w, \qquad b' = b + w\mu - v_S\mu_S, \qquad
  E(z - v_S a_S - b')^2 = (w - v)\,\Sigma\,(w - v)^\top$$

so that $\mu$ and $\Sigma$ suffice, however many images there were. All arithmetic is in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-10  # fraction of a filter's variance below which what is left of it is rounding
_CHUNK = 2**24  # numbers in the factors of the classes that are processed at once (128 MiB)


def omp(weight: Tensor, cov: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    r"""Orthogonal matching pursuit for every class's logit: again and again add the filter that lowers the mean squared
    error most, with all weights refitted at each step.

    With L the partial Cholesky factor of $\Sigma$ on the chosen set, $d_j = \Sigma_{jj} - \sum_i L_{ij}^2$ the part of
    filter j that the set does not explain, and $r_j$ its covariance with the residual, the error falls by
    $r_j^2 / d_j$ (orthogonal least squares: Chen, Billings and Luo 1989; Pati, Rezaiifar and Krishnaprasad 1993 do not
    update the divisor).

    Args:
        weight: (K, C) of the last layer.
        cov: (C, C), population covariance of its inputs.
        steps: maximum number of filters per class.

    Returns:
        Indices (K, steps) int64 in the order in which they joined, -1 where no filter lowers the error any more
        (constant and linearly dependent ones never do), and the decreases of the error (K, steps) float64, 0 there.
        Ties go to the lower index.
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
    fresh = variance.repeat(classes, 1)  # variance of each filter that the chosen ones do not explain
    covariance = weight @ cov  # of each filter with the residual
    error = (covariance * weight).sum(1)
    least = 1e-14 * error.clamp(min=0)
    factors = torch.zeros(classes, steps, width, dtype=torch.float64)
    indices = torch.full((classes, steps), -1)
    drops = torch.zeros(classes, steps, dtype=torch.float64)
    open_ = torch.ones(classes, width, dtype=torch.bool)
    for step in range(steps):
        usable = open_ & (fresh > TINY * variance)
        gain = torch.where(usable, covariance.square() / fresh.clamp(min=1e-300), torch.zeros_like(fresh))
        # Of filters that are equal up to rounding take the first: copies of a filter are one filter.
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
