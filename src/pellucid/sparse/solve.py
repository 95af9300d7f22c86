r"""The sparse code to a given tolerance, with a certificate.

For dual variables $\theta$ of the size of x and $a = D \theta$, every

$$d(\theta) = \langle \theta, x \rangle - \tfrac12 \lVert \theta \rVert^2 - g^*(a)$$

is a lower bound of the minimum of the objective. With $\mu > 0$, $g^*(a) = \sum (|a_i| - \lambda)_+^2 / 2 \mu$ and
$\theta$ may be the residual itself; with $\mu = 0$, $g^*$ is 0 where $|a_i| \le \lambda$ and infinite elsewhere, and
$\theta$ is the residual rescaled to satisfy that. For non-negative codes, $a_i$ replaces $|a_i|$. (Fercoq, Gramfort and
Salmon, "Mind the duality gap", ICML 2015.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.sparse.dictionary import Dictionary
from pellucid.sparse.norm import start

_EVERY = 10  # steps between two evaluations of the gap
_POWER = 50  # steps of power iteration for the step size


@dataclass(frozen=True)
class Solution:
    """A code and how good it is, image by image.

    code: (B, K, *places).
    residual: x - D* z, (B, C, *size).
    objective: (B,).
    gap: (B,), the objective minus a lower bound of its minimum.
    sparsity: (B,), fraction of the entries of the code that are 0.
    steps: number of steps taken.
    """

    code: Tensor
    residual: Tensor
    objective: Tensor
    gap: Tensor
    sparsity: Tensor
    steps: int


def objective(z: Tensor, r: Tensor, lam: float | Tensor, mu: float, square_noise: bool = True) -> Tensor:
    r"""$\lambda |z|_1 + \mu/2 |z|^2 + 1/2 |r|^2$ of each image, (B,); `square_noise=False` ends in 1/2 |r|."""
    energy = r.square().flatten(1).sum(1)
    error = energy if square_noise else energy.sqrt()
    penalty = lam * z.abs().flatten(1).sum(1)
    if mu:
        penalty = penalty + mu / 2 * z.square().flatten(1).sum(1)
    return penalty + error / 2


def bound(dictionary: Dictionary, x: Tensor, r: Tensor, lam: float | Tensor, mu: float, nonnegative: bool) -> Tensor:
    """A lower bound (B,) of the minimum of the objective for images x, from any residual r."""
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
    """The code of x (B, C, *size), until the gap is at most `tol` times the objective of z = 0, or after `max_steps`.

    By FISTA (Beck and Teboulle 2009), restarted where its momentum points uphill (O'Donoghue and Candès 2015,
    section 3.2).
    """
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
