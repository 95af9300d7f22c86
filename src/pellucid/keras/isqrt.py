r"""Inverse square roots of covariance matrices, batched: D with $D \Sigma D^\top \approx I$.

All functions take $\Sigma$ (..., F, F), symmetric and positive semidefinite, in float32 or float64, and return D with
the same shape and dtype. The formulas are those of `pellucid.functional.isqrt`, in the operations of Keras: five Newton
steps as in Network Deconvolution (Ye et al., ICLR 2020, section 3.3), or the ridge equivalent to n of them,
$\delta = |\Sigma|_F / 1.5^{2n}$.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
import numpy as np
from keras import ops

METHODS = ("newton", "newton-warm", "polynomial", "eigh", "cholesky")


def isqrt(cov: Any, method: str, n: int = 5, root: Any = None) -> Any:
    """Compute the root of `cov` by `method`: one of `METHODS`, or "auto". "newton-warm" starts from `root`."""
    if method == "auto":
        method = "eigh" if _on_cpu(cov) else "newton-warm"
    if method == "newton-warm":
        return newton_warm(cov, root, n)
    return {"newton": newton, "polynomial": polynomial, "eigh": eigh, "cholesky": cholesky}[method](cov, n)


def _on_cpu(cov: Any) -> bool:
    if keras.backend.backend() in ("jax", "tensorflow"):
        return all(device.startswith("cpu") for device in keras.distribution.list_devices())
    return str(cov.device) == "cpu"


def frobenius(cov: Any) -> Any:
    r"""$|\Sigma|_F$, (..., 1, 1), at least 1e-20, so that the root of a zero matrix is finite."""
    # Squares of very large or small entries leave the range of float32, so divide by the largest entry first.
    largest = ops.stop_gradient(ops.maximum(ops.max(ops.abs(cov), axis=(-2, -1), keepdims=True), 1e-20))
    squares = ops.sum(ops.square(cov / largest), axis=(-2, -1), keepdims=True)
    # The lower bound keeps the gradient at a zero matrix finite.
    return ops.maximum(ops.sqrt(ops.maximum(squares, 1e-30)) * largest, 1e-20)


def ridge(cov: Any, n: int) -> Any:
    r"""$\delta = |\Sigma|_F / 1.5^{2n}$, (..., 1, 1)."""
    return frobenius(cov) / 1.5 ** (2 * n)


def response(x: Any, n: int) -> Any:
    r"""What n Newton steps turn an eigenvalue x into: $s \mapsto \tfrac12 s (3 - s^2)$, n times, from $s = \sqrt x$."""
    s = ops.sqrt(ops.clip(x, 0.0, 1.0))
    for _ in range(n):
        s = 0.5 * s * (3 - s * s)
    return s


def newton(cov: Any, n: int = 5) -> Any:
    r"""Newton-Schulz from $Y = \Sigma / |\Sigma|_F$, $Z = I$: $T = \tfrac12 (3I - ZY)$, $Y \leftarrow YT$,
    $Z \leftarrow TZ$, n times; returns $Z / \sqrt{|\Sigma|_F}$."""
    scale = frobenius(cov)
    y = cov / scale
    eye = _eye(cov)
    t = 1.5 * eye - 0.5 * y
    z = t
    for _ in range(1, n):
        y = y @ t
        t = 1.5 * eye - 0.5 * (z @ y)
        z = t @ z
    return z / ops.sqrt(scale)


def newton_warm(cov: Any, root: Any, n: int = 5) -> Any:
    r"""One Newton step from an earlier root, $W \leftarrow \tfrac12 (3W - W A W^\top W)$ with $A = \Sigma + \delta I$,
    scaled where it would diverge or converge slowly, and rotated slightly towards the symmetric factor."""
    m = root @ _with_ridge(cov, n) @ _transposed(root)
    size = ops.maximum(_row_sums(m), 1e-20)
    scale = ops.minimum(2 / size, 1.0) * ops.maximum(1 / size, 1.0)
    stepped = ops.sqrt(scale) * (1.5 * root - 0.5 * scale * (m @ root))
    skew = stepped - _transposed(stepped)
    return stepped - (skew / (2 * _row_sums(stepped))) @ stepped


def eigh(cov: Any, n: int = 5) -> Any:
    r"""The result of n Newton steps, by eigenvalues; for constant roots, since equal ones have no gradient."""
    values, vectors = ops.linalg.eigh(cov)
    scale = frobenius(cov)[..., 0]
    least = float(np.finfo(keras.backend.standardize_dtype(cov.dtype)).eps) ** 2  # the gain tends to 1.5^n towards 0
    x = ops.maximum(values / scale, least)
    gain = response(x, n) / ops.sqrt(x) / ops.sqrt(scale)
    return (vectors * ops.expand_dims(gain, -2)) @ _transposed(vectors)


def cholesky(cov: Any, n: int = 5) -> Any:
    r"""$L^{-1}$ with $L L^\top = \Sigma + \delta I$: triangular, so the result depends on the order of channels."""
    factor = ops.linalg.cholesky(_with_ridge(cov, n))
    return ops.linalg.solve_triangular(factor, ops.broadcast_to(_eye(cov), ops.shape(cov)), lower=True)


def polynomial(cov: Any, n: int = 5) -> Any:
    r"""$(\Sigma + \delta I)^{-1/2}$ to 1e-3, by the odd quintic that is optimal at each step (Amsel et al. 2025)."""
    a = _with_ridge(cov, n)
    scale = frobenius(a)
    y, eye = a / scale, _eye(cov)
    # The smallest eigenvalue of a / |a|_F is at least delta / (|Sigma|_F + sqrt(F) delta).
    relative = 1.5 ** (-2 * n)
    z = eye
    for alpha, beta, gamma in schedule(math.sqrt(relative / (1 + math.sqrt(cov.shape[-1]) * relative))):
        zy = z @ y
        q = alpha * eye + beta * zy + gamma * (zy @ zy)
        y, z = y @ q, q @ z
    return z / ops.sqrt(scale)


@functools.lru_cache(maxsize=64)
def schedule(lowest: float, tolerance: float = 1e-3) -> tuple[tuple[float, float, float], ...]:
    """Coefficients of the best odd quintic of each step, for values in [lowest, 1], until within `tolerance` of 1."""
    steps: list[tuple[float, float, float]] = []
    low, high = lowest, 1.0
    while 1 - low / high > tolerance and len(steps) < 20:
        (a, b, c), error = best_quintic(low / high)
        steps.append((a / high, b / high**3, c / high**5))
        low, high = 1 - error, 1 + error
    return tuple(steps)


def best_quintic(low: float) -> tuple[tuple[float, float, float], float]:
    """The odd quintic p with the smallest max |p - 1| over [low, 1], and that maximum (Remez exchange).

    The error alternates at low < q < r < 1, where q and r are the extrema of p.
    """
    q, r = low + (1 - low) / 3, low + 2 * (1 - low) / 3
    for _ in range(50):
        points = np.array([low, q, r, 1.0])
        system = np.stack([points, points**3, points**5, [1.0, -1.0, 1.0, -1.0]], 1)
        a, b, c, error = np.linalg.solve(system, np.ones(4)).tolist()
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


def _eye(cov: Any) -> Any:
    return ops.eye(cov.shape[-1], dtype=cov.dtype)


def _transposed(matrices: Any) -> Any:
    return ops.swapaxes(matrices, -2, -1)


def _row_sums(matrices: Any) -> Any:
    """The largest sum of magnitudes in a row, (..., 1, 1)."""
    return ops.max(ops.sum(ops.abs(matrices), axis=-1, keepdims=True), axis=-2, keepdims=True)


def _with_ridge(cov: Any, n: int) -> Any:
    return cov + ridge(cov, n) * _eye(cov)
