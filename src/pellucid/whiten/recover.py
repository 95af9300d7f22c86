r"""The covariance that a stored root was made of.

n Newton steps turn an eigenvalue $\lambda$ of $A = \Sigma + \epsilon I$ into $q(\lambda / a) / \sqrt a$, with
$a = |A|_F$ and $q(s) = r(s) / \sqrt s$ for the response r of `isqrt.response`. q falls from $1.5^n$ to 1, so a root's
eigenvalues d give $s = q^{-1}(d \sqrt a)$ for any a, and a is the one for which $\sum s^2 = 1$. Since a Newton root is
far from an inverse square root, $(D D^\top)^{-1}$ would be another matrix: larger by about the ridge.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.whiten.isqrt import response

_POINTS = 40_001  # where q is tabulated
_SMALLEST = -16.0  # the decimal logarithm of the smallest s that is told from 0
_HALVINGS = 100


def recovered(root: Tensor, n: int, eps: float) -> Tensor:
    r"""$\Sigma$ (F, F) of which `root` (F, F) is the root by n Newton steps, with $\epsilon$ on the diagonal; float64.

    Exact for the root of one covariance, up to eigenvalues below about $10^{-4}$ of the largest, which all roots treat
    alike. For an average of the roots of several batches it is close to the average of their covariances.

    Raises:
        InputError: a matrix that is not finite, or that is no root.
    """
    root = root.detach().double()
    if not bool(root.isfinite().all()):
        raise InputError("a stored root is not finite, so the file is damaged.")
    values, vectors = torch.linalg.eigh((root + root.mT) / 2)
    if not float(values[0]) > 0:
        raise InputError("a stored root has eigenvalues that are not above 0, which no root has.")
    grid = torch.logspace(0, _SMALLEST, _POINTS, dtype=torch.float64)  # s falls, q rises
    table = response(grid, n) / grid.sqrt()
    # In logarithms, d is a factor of the reciprocal root of the eigenvalue between 1 and 1.5^n.
    low, high = values.square().max().reciprocal().log(), (1.5**n / values.min()).square().log()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(_inverse(values * (middle / 2).exp(), table, grid).square().sum()) > 1:
            low = middle
        else:
            high = middle
    size = high.exp()
    eigenvalues = size * _inverse(values * size.sqrt(), table, grid) - eps
    return (vectors * eigenvalues.clamp_min(0)) @ vectors.mT


def _inverse(q: Tensor, table: Tensor, grid: Tensor) -> Tensor:
    """The s at which the rising `table` is q, between the points of `grid`; 1 below the table, 0 above it."""
    after = torch.searchsorted(table, q).clamp(1, len(table) - 1)
    part = (q - table[after - 1]) / (table[after] - table[after - 1]).clamp_min(torch.finfo(q.dtype).tiny)
    s = torch.lerp(grid[after - 1], grid[after], part.clamp(0, 1))
    return torch.where(q >= table[-1], 0, s)
