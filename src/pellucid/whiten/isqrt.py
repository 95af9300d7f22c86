r"""Inverse square roots of covariance matrices, batched: D with $D \Sigma D^\top \approx I$.

All take $\Sigma$ of shape (..., F, F), symmetric and positive semidefinite, and return D of the same shape and type.

Five Newton steps, as Network Deconvolution (Ye et al., ICLR 2020) takes them, are far from the inverse square root:
small eigenvalues are amplified by $1.5^n$ at most. That is a regulariser, and a network trains worse without it. Its
response on an eigenvalue $\lambda$ of $\Sigma$ is `response(lambda / |Sigma|_F, n) / sqrt(lambda)`, close to that of
a ridge, $(\lambda + \delta)^{-1/2}$ with $\delta = |\Sigma|_F / 1.5^{2n}$. Every method below keeps the one or the
other, at another price.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from pellucid.core.errors import InputError

METHODS = ("newton", "newton-warm", "polynomial", "eigh", "cholesky")


def frobenius(cov: Tensor) -> Tensor:
    r"""$|\Sigma|_F$, (..., 1, 1), never below 1e-20, so that a zero matrix divides safely and its root stays finite."""
    # The squares of very large or small entries leave float32's range, so the greatest entry is taken out first.
    largest = cov.detach().abs().amax((-2, -1), keepdim=True).clamp_min(1e-20)
    return (torch.linalg.matrix_norm(cov / largest, keepdim=True) * largest).clamp_min(1e-20)


def ridge(cov: Tensor, n: int) -> Tensor:
    r"""The ridge $\delta = |\Sigma|_F / 1.5^{2n}$ that n Newton steps amount to, (..., 1, 1)."""
    return frobenius(cov) / 1.5 ** (2 * n)


def response(x: Tensor, n: int) -> Tensor:
    r"""What n Newton steps make of an eigenvalue: $s \mapsto \tfrac12 s (3 - s^2)$, n times, from $s = \sqrt x$.

    x = $\lambda / |\Sigma|_F$ in [0, 1]; the result tends to 1, and to $1.5^n \sqrt x$ for small x.
    """
    s = x.clamp(0, 1).sqrt()
    for _ in range(n):
        s = 0.5 * s * (3 - s * s)
    return s


def newton(cov: Tensor, n: int = 5) -> Tensor:
    r"""Coupled Newton-Schulz iteration, n steps, from $Y = \Sigma / |\Sigma|_F$ and $Z = I$:

    $T = \tfrac12 (3I - ZY),\quad Y \leftarrow YT,\quad Z \leftarrow TZ$; returns $Z / \sqrt{|\Sigma|_F}$.

    (Ye et al., section 3.3; Higham 2008, equation 6.35.) Products that nothing reads are left out: 3n - 3 remain.
    n is at least 1.
    """
    scale = frobenius(cov)
    y = cov / scale
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    t = 1.5 * eye - 0.5 * y
    z = t
    for _ in range(1, n):
        y = y @ t
        t = 1.5 * eye - 0.5 * (z @ y)
        z = t @ z
    return z / scale.sqrt()


def newton_warm(cov: Tensor, root: Tensor, n: int = 5) -> Tensor:
    r"""One Newton step from an earlier root: $W \leftarrow \tfrac12 (3W - W A W^\top W)$, with $A = \Sigma + \delta I$.

    `root` is scaled first where the step would diverge or creep, by the row-sum norm of $W A W^\top$, which is near 1
    when the root fits and at least the greatest eigenvalue otherwise. n sets the ridge only.

    In terms of $V = W A^{1/2}$ this is the Newton iteration for the orthogonal polar factor, stable at any condition,
    but free to rotate: W would whiten and yet drift from the symmetric root as $\Sigma$ changes. Making W symmetric by
    averaging it with its transpose amplifies rounding without bound once $\Sigma$'s condition passes 34; a small
    rotation $I - K$, K skew, towards the symmetric factor does not.
    """
    a = _with_ridge(cov, n)
    m = root @ a @ root.mT
    size = torch.linalg.matrix_norm(m, ord=float("inf"), keepdim=True).clamp_min(1e-20)
    scale = (2 / size).clamp_max(1) * (1 / size).clamp_min(1)
    # s W turns W A W' into s^2 of it; with s^2 = scale its norm is between 1 and 2.
    stepped = scale.sqrt() * (1.5 * root - 0.5 * scale * (m @ root))
    skew = stepped - stepped.mT
    return stepped - (skew / (2 * torch.linalg.matrix_norm(stepped, ord=float("inf"), keepdim=True))) @ stepped


def eigh(cov: Tensor, n: int = 5) -> Tensor:
    r"""$U\, \mathrm{diag}(r(\lambda_i / |\Sigma|_F) / \sqrt{\lambda_i})\, U^\top$: just what n Newton steps make.

    Not differentiable where eigenvalues meet: use it for roots that are constants.
    """
    values, vectors = torch.linalg.eigh(cov)
    scale = frobenius(cov)[..., 0]
    x = (values / scale).clamp_min(torch.finfo(cov.dtype).eps ** 2)  # as x tends to 0 the quotient tends to 1.5^n
    gain = response(x, n) / x.sqrt() / scale.sqrt()
    return (vectors * gain.unsqueeze(-2)) @ vectors.mT


def cholesky(cov: Tensor, n: int = 5) -> Tensor:
    r"""$L^{-1}$ with $L L^\top = \Sigma + \delta I$: triangular, so what it whitens depends on the channels' order."""
    # Not `cholesky`, which raises on NaN and on a GPU waits to find out.
    factor = torch.linalg.cholesky_ex(_with_ridge(cov, n)).L
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device).expand_as(cov)
    return torch.linalg.solve_triangular(factor, eye, upper=False)


def polynomial(cov: Tensor, n: int = 5) -> Tensor:
    r"""$(\Sigma + \delta I)^{-1/2}$ by odd quintics that are best at each step, in fewer products than `newton`.

    Step k maps the singular values in $[l_k, 1]$ by $s (a_k + b_k s^2 + c_k s^4)$, with the smallest greatest distance
    from 1 (the construction of Amsel et al. 2025, arXiv 2505.16932), in the coupled form of Higham (2008, section 6.7).
    The ridge bounds the condition, so the number of steps is known beforehand: three for n = 5.
    """
    a = _with_ridge(cov, n)
    scale = frobenius(a)
    y = a / scale
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    # The least eigenvalue of a / |a|_F is at least delta / (|Sigma|_F + sqrt(F) delta).
    share = 1.5 ** (-2 * n)
    lowest = math.sqrt(share / (1 + math.sqrt(cov.shape[-1]) * share))
    steps = schedule(lowest)
    z: Tensor | None = None  # stands for I
    for k, (alpha, beta, gamma) in enumerate(steps):
        zy = y if z is None else z @ y
        q = alpha * eye + beta * zy + gamma * (zy @ zy)
        z = q if z is None else q @ z
        if k + 1 < len(steps):
            y = y @ q
    return (eye if z is None else z) / scale.sqrt()


@torch.compiler.assume_constant_result
def schedule(lowest: float, tolerance: float = 1e-3) -> tuple[tuple[float, float, float], ...]:
    """Coefficients of the best odd quintics, step after step, for values in [lowest, 1], until within `tolerance` of 1.

    After a step that leaves [1 - e, 1 + e], the next is made for [(1 - e) / (1 + e), 1], and its argument is divided by
    1 + e.
    """
    return _schedule(lowest, tolerance)


@functools.lru_cache(maxsize=64)
def _schedule(lowest: float, tolerance: float) -> tuple[tuple[float, float, float], ...]:
    steps: list[tuple[float, float, float]] = []
    low, high = lowest, 1.0
    while 1 - low / high > tolerance and len(steps) < 20:
        (a, b, c), error = best_quintic(low / high)
        steps.append((a / high, b / high**3, c / high**5))
        low, high = 1 - error, 1 + error
    return tuple(steps)


def best_quintic(low: float) -> tuple[tuple[float, float, float], float]:
    """The odd quintic p with the least max |p - 1| over [low, 1], and that maximum (Remez's exchange).

    The error alternates at low < q < r < 1, where q and r are the extrema of p.
    """
    q, r = low + (1 - low) / 3, low + 2 * (1 - low) / 3
    for _ in range(50):
        points = torch.tensor([low, q, r, 1.0], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], 1)
        a, b, c, error = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        # p' = a + 3 b s^2 + 5 c s^4 vanishes at the extrema.
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        inner = sorted(((-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)))
        if inner[0] <= 0:
            break
        new_q, new_r = math.sqrt(inner[0]), math.sqrt(inner[1])
        if abs(new_q - q) + abs(new_r - r) < 1e-12:
            break
        q, r = new_q, new_r
    return (a, b, c), abs(error)


def isqrt(cov: Tensor, method: str = "newton", n: int = 5, root: Tensor | None = None) -> Tensor:
    """The root of `cov` (..., F, F) by `method`; `root` is the earlier one for "newton-warm".

    Raises:
        InputError: no such method, or no earlier root for "newton-warm".
    """
    if method == "newton-warm":
        if root is None:
            raise InputError("method 'newton-warm' starts from an earlier root: give root=.")
        return newton_warm(cov, root, n)
    solvers = {"newton": newton, "polynomial": polynomial, "eigh": eigh, "cholesky": cholesky}
    if method not in solvers:
        raise InputError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")
    return solvers[method](cov, n)


def _with_ridge(cov: Tensor, n: int) -> Tensor:
    return cov + ridge(cov, n) * torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
