r"""Odd quintics that bring singular values to 1 in the fewest steps (Amsel et al. 2025, arXiv 2505.16932).

Step k maps the singular values in $[l_k, 1]$ by $s (a_k + b_k s^2 + c_k s^4)$, with the smallest possible maximum
distance from 1.
"""

from __future__ import annotations

import functools
import math

import torch


@torch.compiler.assume_constant_result
def schedule(lowest: float, tolerance: float = 1e-3) -> tuple[tuple[float, float, float], ...]:
    """Coefficients of the best odd quintics, step by step, that bring values in [lowest, 1] to within `tolerance` of 1.

    After a step whose results lie in [1 - e, 1 + e], the next is designed for [(1 - e) / (1 + e), 1], and its argument
    divided by 1 + e.
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
    """The odd quintic p with the smallest max |p - 1| over [low, 1], and that maximum (Remez's exchange).

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
