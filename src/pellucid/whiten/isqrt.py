r"""Inverse square roots of covariance matrices, batched: D with $D \Sigma D^\top \approx I$.

All functions take $\Sigma$ of shape (..., F, F), symmetric and positive semidefinite, and return D of the same shape
and type.

Five Newton steps, as in Network Deconvolution (Ye et al., ICLR 2020), are far from the inverse square root: they
amplify small eigenvalues by at most $1.5^n$. That is a regulariser, and a network trains worse without it. The response
to an eigenvalue $\lambda$ of $\Sigma$ is `response(lambda / |Sigma|_F, n) / sqrt(lambda)`, close to that of a ridge,
$(\lambda + \delta)^{-1/2}$ with $\delta = |\Sigma|_F / 1.5^{2n}$. Every method below preserves one of the two, at a
different cost.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.whiten.quintic import schedule

METHODS = ("newton", "newton-warm", "polynomial", "eigh", "cholesky")


def frobenius(cov: Tensor) -> Tensor:
    r"""$|\Sigma|_F$, (..., 1, 1), never below 1e-20, so that a zero matrix divides safely and its root stays finite."""
    # The squares of very large or small entries leave the range of float32, so the largest entry is factored out first.
    largest = cov.detach().abs().amax((-2, -1), keepdim=True).clamp_min(1e-20)
    return (torch.linalg.matrix_norm(cov / largest, keepdim=True) * largest).clamp_min(1e-20)


def ridge(cov: Tensor, n: int) -> Tensor:
    r"""The ridge $\delta = |\Sigma|_F / 1.5^{2n}$ that n Newton steps are equivalent to, (..., 1, 1)."""
    return frobenius(cov) / 1.5 ** (2 * n)


def response(x: Tensor, n: int) -> Tensor:
    r"""What n Newton steps turn an eigenvalue into: $s \mapsto \tfrac12 s (3 - s^2)$, n times, from $s = \sqrt x$.

    x = $\lambda / |\Sigma|_F$ in [0, 1]; the result tends to 1, and to $1.5^n \sqrt x$ for small x.
    """
    s = x.clamp(0, 1).sqrt()
    for _ in range(n):
        s = 0.5 * s * (3 - s * s)
    return s


def newton(cov: Tensor, n: int = 5) -> Tensor:
    r"""Coupled Newton-Schulz iteration, n steps, from $Y = \Sigma / |\Sigma|_F$ and $Z = I$:

    $T = \tfrac12 (3I - ZY),\quad Y \leftarrow YT,\quad Z \leftarrow TZ$; returns $Z / \sqrt{|\Sigma|_F}$.

    (Ye et al., section 3.3; Higham 2008, equation 6.35.) Products that nothing reads are left out, so 3n - 3
    remain. n is at least 1.
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

    Where the step would diverge or make no progress, `root` is rescaled first, by the row-sum norm of $W A W^\top$:
    near 1 when the root fits, and at least the largest eigenvalue otherwise. n only sets the ridge.

    In terms of $V = W A^{1/2}$ this is the Newton iteration for the orthogonal polar factor: stable at any condition
    number, but free to rotate, so W would whiten and yet drift from the symmetric root as $\Sigma$ changes. Averaging W
    with its transpose would amplify rounding without bound once the condition number of $\Sigma$ exceeds 34; a small
    rotation $I - K$, K skew, towards the symmetric factor does not.
    """
    a = _with_ridge(cov, n)
    m = root @ a @ root.mT
    size = torch.linalg.matrix_norm(m, ord=float("inf"), keepdim=True).clamp_min(1e-20)
    scale = (2 / size).clamp_max(1) * (1 / size).clamp_min(1)
    # s W multiplies W A W' by s^2; with s^2 = scale its norm is between 1 and 2.
    stepped = scale.sqrt() * (1.5 * root - 0.5 * scale * (m @ root))
    skew = stepped - stepped.mT
    return stepped - (skew / (2 * torch.linalg.matrix_norm(stepped, ord=float("inf"), keepdim=True))) @ stepped


def eigh(cov: Tensor, n: int = 5) -> Tensor:
    r"""$U\, \mathrm{diag}(r(\lambda_i / |\Sigma|_F) / \sqrt{\lambda_i})\, U^\top$: exactly what n Newton steps compute.

    Not differentiable where eigenvalues coincide: use it for roots that are constants to the gradient.
    """
    values, vectors = torch.linalg.eigh(cov)
    scale = frobenius(cov)[..., 0]
    x = (values / scale).clamp_min(torch.finfo(cov.dtype).eps ** 2)  # as x tends to 0 the quotient tends to 1.5^n
    gain = response(x, n) / x.sqrt() / scale.sqrt()
    return (vectors * gain.unsqueeze(-2)) @ vectors.mT


def cholesky(cov: Tensor, n: int = 5) -> Tensor:
    r"""$L^{-1}$ with $L L^\top = \Sigma + \delta I$: triangular, so it depends on the order of channels."""
    # Not `cholesky`, which raises on NaN, and waits for a GPU to find out.
    factor = torch.linalg.cholesky_ex(_with_ridge(cov, n)).L
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device).expand_as(cov)
    return torch.linalg.solve_triangular(factor, eye, upper=False)


def polynomial(cov: Tensor, n: int = 5) -> Tensor:
    r"""$(\Sigma + \delta I)^{-1/2}$ by the minimax odd quintics of `quintic.schedule`, in fewer products than `newton`.

    The iteration has the coupled form of Higham (2008, section 6.7). The ridge bounds the condition number, so the
    number of steps is known in advance: three for n = 5.
    """
    a = _with_ridge(cov, n)
    scale = frobenius(a)
    y = a / scale
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    # The least eigenvalue of a / |a|_F is at least delta / (|Sigma|_F + sqrt(F) delta).
    fraction = 1.5 ** (-2 * n)  # delta / |Sigma|_F
    lowest = math.sqrt(fraction / (1 + math.sqrt(cov.shape[-1]) * fraction))
    steps = schedule(lowest)
    z: Tensor | None = None  # stands for I
    for k, (alpha, beta, gamma) in enumerate(steps):
        zy = y if z is None else z @ y
        q = alpha * eye + beta * zy + gamma * (zy @ zy)
        z = q if z is None else q @ z
        if k + 1 < len(steps):
            y = y @ q
    return (eye if z is None else z) / scale.sqrt()


def isqrt(cov: Tensor, method: str = "newton", n: int = 5, root: Tensor | None = None) -> Tensor:
    """The inverse square root of `cov` (..., F, F), with the response of `n` Newton steps or the equivalent ridge.

    Args:
        cov: symmetric and positive semidefinite.
        method: "newton", "newton-warm", "polynomial", "eigh" or "cholesky"; see the function of that name.
        n: number of Newton steps.
        root: the earlier root (..., F, F) that "newton-warm" starts from.

    Raises:
        InputError: an unknown method, or no earlier root for "newton-warm".
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
