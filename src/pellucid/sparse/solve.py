r"""The sparse code to a tolerance, with a certificate; and gradients at convergence.

For dual variables $\theta$ of the size of x and $a = D \theta$, every

$$d(\theta) = \langle \theta, x \rangle - \tfrac12 \lVert \theta \rVert^2 - g^*(a)$$

is a lower bound of the least objective. With $\mu > 0$, $g^*(a) = \sum (|a_i| - \lambda)_+^2 / 2 \mu$ and the
residual itself will do for $\theta$; with $\mu = 0$, $g^*$ is 0 where $|a_i| \le \lambda$ and infinite elsewhere, and
$\theta$ is the residual scaled into that. For non-negative codes $a_i$ takes the place of $|a_i|$. (Fercoq, Gramfort
and Salmon, "Mind the duality gap", ICML 2015.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pellucid.sparse.dictionary import Dictionary

_EVERY = 10  # steps between two looks at the gap
_POWER = 50  # steps of power iteration for the step size


@dataclass(frozen=True)
class Solution:
    """A code and how good it is. Each image has its own numbers.

    code: (B, K, *places). residual: x - D* z, (B, C, *size). objective: (B,). gap: (B,), the objective less a lower
    bound of the least there is. sparsity: (B,), share of the code's entries that are 0. steps: taken.
    """

    code: Tensor
    residual: Tensor
    objective: Tensor
    gap: Tensor
    sparsity: Tensor
    steps: int


def objective(z: Tensor, r: Tensor, lam: float | Tensor, mu: float, square_noise: bool = True) -> Tensor:
    r"""$\lambda |z|_1 + \mu/2 |z|^2 + 1/2 |r|^2$ of each image (B,); `square_noise=False` has 1/2 |r|."""
    energy = r.square().flatten(1).sum(1)
    error = energy if square_noise else energy.sqrt()
    penalty = lam * z.abs().flatten(1).sum(1)
    if mu:
        penalty = penalty + mu / 2 * z.square().flatten(1).sum(1)
    return penalty + error / 2


def bound(dictionary: Dictionary, x: Tensor, r: Tensor, lam: float | Tensor, mu: float, nonnegative: bool) -> Tensor:
    """A lower bound (B,) of the least objective of images x, from any residual r."""
    a = dictionary.analyse(r).flatten(1)
    a = a if nonnegative else a.abs()
    along, energy = (r * x).flatten(1).sum(1), r.square().flatten(1).sum(1)
    if mu:
        limit = lam.unsqueeze(1) if isinstance(lam, Tensor) and lam.dim() else lam
        return along - energy / 2 - (a - limit).clamp_min(0).square().sum(1) / (2 * mu)
    tiny = torch.finfo(r.dtype).tiny
    most = a.amax(1)
    feasible = torch.where(most > 0, lam / most.clamp_min(tiny), torch.inf)
    scale = torch.minimum((along / energy.clamp_min(tiny)).clamp_min(0), feasible)
    return scale * along - scale.square() * energy / 2


@torch.no_grad()
def solve(
    dictionary: Dictionary,
    x: Tensor,
    lam: float | Tensor,
    mu: float,
    *,
    nonnegative: bool,
    tol: float,
    max_steps: int,
) -> Solution:
    """The code of x (B, C, *size) by FISTA (Beck and Teboulle 2009) with restarts where its momentum turns uphill
    (O'Donoghue and Candès 2015, section 3.2), until the gap is at most `tol` times the objective of z = 0."""
    column = (-1, *[1] * (x.dim() - 1))
    size = tuple(x.shape[2:])
    places = dictionary.analyse(x[:1]).shape
    norm, _ = dictionary.norm(start(places, x), _POWER)
    step = 1 / torch.minimum(1.05 * norm, dictionary.bound()).clamp_min(torch.finfo(x.dtype).tiny)
    shrink = 1 / (1 + mu * step)
    threshold = (lam.reshape(column) if isinstance(lam, Tensor) and lam.dim() else lam) * step * shrink

    def prox(u: Tensor) -> Tensor:
        u = u * shrink
        return (u - threshold).relu_() if nonnegative else u - u.clamp(-threshold, threshold)

    enough = tol * x.square().flatten(1).sum(1) / 2
    z = y = torch.zeros_like(dictionary.analyse(x))
    tau = x.new_ones(x.shape[0])
    steps = 0
    while True:
        for _ in range(min(_EVERY, max_steps - steps)):
            new = prox(y + step * dictionary.analyse(x - dictionary.synthesise(y, size)))
            moved = new - z
            uphill = ((y - new) * moved).flatten(1).sum(1) > 0
            tau = torch.where(uphill, 1.0, tau)
            following = (1 + (1 + 4 * tau * tau).sqrt()) / 2
            y = new + ((tau - 1) / following).reshape(column) * moved
            z, tau = new, following
            steps += 1
        r = x - dictionary.synthesise(z, size)
        value = objective(z, r, lam, mu)
        gap = (value - bound(dictionary, x, r, lam, mu, nonnegative)).clamp_min(0)
        if steps >= max_steps or bool((gap <= enough).all()):
            empty = (z == 0).flatten(1).to(z.dtype).mean(1)
            return Solution(z, r, value, gap, empty, steps)


def start(places: tuple[int, ...], like: Tensor) -> Tensor:
    """A code (1, K, *places) to begin power iteration with: noise that is the same on every machine."""
    count = 1
    for n in places[1:]:
        count *= n
    return (torch.arange(1, count + 1, dtype=torch.float64) ** 2).sin().reshape(1, *places[1:]).to(like)


class _Implicit(torch.autograd.Function):
    r"""The code z, with the gradient of the equation that holds at convergence.

    On the entries S that are not 0, $D (x - D^* z) - \mu z = \lambda\, \mathrm{sign}\, z$. `slope` is the left side
    less the right at a z held constant; its derivative by z is -H, $H = P_S (D D^* + \mu) P_S$, so that `slope`
    takes the gradient $H^{-1} P_S g$ where z has g. H is inverted by conjugate gradients.
    """

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
    """The converged code z, with gradients of x, the atoms and lam in constant memory."""
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
    """The solution of `apply`(v) = `target` for each image of (B, ...), `apply` positive semidefinite (Hestenes and
    Stiefel 1952); an image that is solved stays as it is."""
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
