r"""The distance between the moments that layers see now and those of a statistics table.

Scale-free: the mean over layers of the Gaussian divergence per feature. With the current mean and variance m, v and the
table's M, V of a layer's C features,

$$\frac1{2C} \sum_c \frac{v_c + (m_c - M_c)^2}{V_c} - 1 - \ln \frac{v_c}{V_c},$$

and with covariances, in blocks of F features,

$$\frac1{2F} \left[\operatorname{tr}(V^{-1} v) + (m - M)^\top V^{-1} (m - M) - F - \ln \frac{\det v}{\det V}\right].$$

It is 0 where the moments agree. Rescaling, widening or deepening a network does not change it, so one weight serves
every network. The papers' term (Yin et al. 2020, equation 4), $\sum_l |m_l - M_l|_2 + |v_l - V_l|_2$, grows with all
three.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.core.device import double
from pellucid.core.errors import InputError
from pellucid.core.network.statistics import Moments


class VarianceDivergence:
    """The divergence of all layers whose variances are compared, on their features laid end to end."""

    def __init__(self, entries: Sequence[Moments], weights: Sequence[float], ridge: float) -> None:
        ridges, factors = [], []
        for entry, weight in zip(entries, weights, strict=True):
            count, added = _ridge(entry.var, ridge)
            ridges.append(torch.full_like(entry.var.flatten(), added))
            factors.append(torch.full_like(entry.var.flatten(), weight / count / 2))
        self.mean = torch.cat([entry.mean.flatten() for entry in entries])
        self.ridge, self.factor = torch.cat(ridges), torch.cat(factors)
        self.var = torch.cat([entry.var.flatten() for entry in entries]) + self.ridge

    def __call__(self, mean: Tensor, var: Tensor) -> Tensor:
        ratio = (var + self.ridge) / self.var
        return (self.factor * (ratio + (mean - self.mean).square() / self.var - 1 - ratio.log())).sum()


class NormSum:
    """The papers' sum of norms, on the features of all layers laid end to end."""

    def __init__(self, entries: Sequence[Moments], weights: Sequence[float], ridge: float) -> None:
        self.mean, self.var = (torch.cat([getattr(e, key).flatten() for e in entries]) for key in ("mean", "var"))
        self.weight = self.mean.new_tensor(weights)
        sizes = torch.tensor([entry.mean.numel() for entry in entries])
        self.layer = torch.arange(len(entries)).repeat_interleave(sizes).to(self.mean.device)

    def __call__(self, mean: Tensor, var: Tensor) -> Tensor:
        total = mean.new_zeros(())
        for gap in (mean - self.mean, var - self.var):
            squares = torch.zeros_like(self.weight).index_add(0, self.layer, gap.square())
            total = total + (self.weight * squares.clamp_min(1e-24).sqrt()).sum()
        return total


class CovarianceDivergence:
    """The divergence of one layer whose covariance is compared, in float64."""

    def __init__(self, entry: Moments, ridge: float) -> None:
        assert entry.cov is not None
        cov = double(entry.cov if entry.cov.dim() == 3 else entry.cov.unsqueeze(0))
        self.count, added = _ridge(entry.var, ridge)
        self.mean = double(entry.mean).reshape(len(cov), -1, 1)
        self.ridge = added * torch.eye(cov.shape[-1], dtype=torch.float64, device=cov.device)
        factor, failed = torch.linalg.cholesky_ex(cov + self.ridge)
        if bool(failed.any()):
            raise InputError(
                "A covariance in the statistics table is not positive definite: record it from more images."
            )
        self.whiten = torch.linalg.solve_triangular(factor, torch.eye(len(self.ridge)).to(self.ridge), upper=False)

    def __call__(self, mean: Tensor, cov: Tensor) -> Tensor:
        device = mean.device
        cov = double(cov).reshape(self.mean.shape[0], *self.ridge.shape)
        gap = self.whiten @ (double(mean).reshape(self.mean.shape) - self.mean)
        white = self.whiten @ (cov + self.ridge) @ self.whiten.mT  # I where the covariances agree
        diagonal = torch.linalg.cholesky_ex(white).L.diagonal(dim1=-2, dim2=-1)
        trace = white.diagonal(dim1=-2, dim2=-1)
        total = (trace - 1 - 2 * diagonal.log()).sum() + gap.square().sum()
        return total.float().to(device) / (2 * self.count)


def _ridge(var: Tensor, fraction: float) -> tuple[float, float]:
    """The number of features that are not constant, and the ridge that is added to each variance of the layer."""
    count = max(1, int((var > 0).sum()))
    return float(count), fraction * float(double(var).sum()) / count or 1.0
