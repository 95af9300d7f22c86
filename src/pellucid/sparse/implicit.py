r"""Gradients of a converged sparse code, in memory that does not grow with the number of steps.

At convergence, on the entries S of the code that are not 0, $D (x - D^* z) - \mu z = \lambda\, \mathrm{sign}\, z$. Let
`slope` be the left side minus the right, at a z held constant. Its derivative by z is -H, with
$H = P_S (D D^* + \mu) P_S$, so where z receives the gradient g, `slope` receives $H^{-1} P_S g$. H is inverted by
conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pellucid.sparse.dictionary import Dictionary


class _Implicit(torch.autograd.Function):
    """Forward, the code z; backward, the gradient of `slope` from that of z."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, z: Tensor, curvature: Callable[[Tensor], Tensor], steps: int) -> Tensor:
        ctx.save_for_backward(z)
        ctx.curvature, ctx.steps = curvature, steps
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (z,) = ctx.saved_tensors
        active = z != 0
        return (
            conjugate_gradients(lambda v: ctx.curvature(v) * active, gradients[0] * active, ctx.steps),
            None,
            None,
            None,
        )


def implicit(dictionary: Dictionary, x: Tensor, z: Tensor, lam: float | Tensor, mu: float, steps: int) -> Tensor:
    """The converged code z (B, K, *places), with gradients for x, the atoms and lam in constant memory.

    steps: number of steps of conjugate gradients.
    """
    column = (-1, *[1] * (x.dim() - 1))
    size = tuple(x.shape[2:])
    sign = z.sign()
    weight = lam.reshape(column) if isinstance(lam, Tensor) and lam.dim() else lam
    slope = (dictionary.analyse(x - dictionary.synthesise(z, size)) - mu * z - weight * sign) * sign.abs()
    held = replace(dictionary, atoms=dictionary.atoms.detach())

    def curvature(v: Tensor) -> Tensor:
        return held.analyse(held.synthesise(v, size)) + mu * v

    return _Implicit.apply(slope, z, curvature, steps)


@torch.no_grad()
def conjugate_gradients(apply: Callable[[Tensor], Tensor], target: Tensor, steps: int) -> Tensor:
    """The solution of `apply(v) = target`, for each image of (B, ...), with `apply` positive semidefinite (Hestenes and
    Stiefel 1952); an image that is already solved stays as it is."""
    column = (-1, *[1] * (target.dim() - 1))
    tiny = torch.finfo(target.dtype).tiny

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(column)

    v, r, p = torch.zeros_like(target), target, target
    energy = dot(r, r)
    for _ in range(steps):
        image = apply(p)
        curvature = dot(p, image)
        step = torch.where(curvature > tiny, energy / curvature.clamp_min(tiny), 0)
        v = v + step * p
        r = r - step * image
        following = dot(r, r)
        p = r + torch.where(energy > tiny, following / energy.clamp_min(tiny), 0) * p
        energy = following
    return v
