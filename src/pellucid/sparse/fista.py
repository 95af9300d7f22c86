r"""The sparse code of an image in a convolutional dictionary, by a few proximal gradient steps.

$$\min_z\; \lambda \lVert z \rVert_1 + \tfrac{\mu}{2} \lVert z \rVert_2^2 + \tfrac12 \lVert x - D^* z \rVert_2^2$$

(Dai et al., NeurIPS 2022, equation 3), with z non-negative if asked for. A step of size t is

$$z \leftarrow S_{\lambda t / (1 + \mu t)}\big((y + t D (x - D^* z)) / (1 + \mu t)\big)$$

with the soft threshold S. The first step starts at z = 0, so n steps take 2n - 1 convolutions.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from pellucid.sparse.dictionary import Dictionary

Schedule = Literal["published", "long", "greedy", "barzilai-borwein"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
# Step sizes times L; proximal gradient descent converges below 2.
STEP = {"published": 0.9, "long": 1.8, "greedy": 1.3, "barzilai-borwein": 1.8}
_LONGEST = 20.0  # the largest Barzilai-Borwein step, times L


def unroll(
    dictionary: Dictionary,
    x: Tensor,
    lam: float | Tensor,
    mu: float,
    n_steps: int,
    norm: Tensor,
    *,
    nonnegative: bool = True,
    square_noise: bool = True,
    schedule: str = "published",
) -> Tensor:
    """The code (B, K, *places) of images x (B, C, *size) after `n_steps` steps.

    Args:
        dictionary: D and D*.
        lam: one lambda for all images, or (B,).
        mu: weight of |z|^2 / 2.
        n_steps: number of steps, at least 1.
        norm: L, the largest eigenvalue of D D*.
        nonnegative: restrict codes to z >= 0.
        square_noise: False minimises half the norm of the residual instead of half its square, as published: from the
            second step on, and with the norm as a constant in gradients.
        schedule: "published" takes steps of 0.9 / L, from the third on with Nesterov's momentum, but evaluates the
            gradient before adding it; "long" takes 1.8 / L without momentum; "greedy" takes 1.3 / L with full momentum,
            dropped in images where it leads uphill (Liang, Luo and Schönlieb, SIAM J. Sci. Comput. 2022);
            "barzilai-borwein" takes 1.8 / L, then for each image a step from its last two codes (Barzilai and Borwein
            1988).
    """
    size = tuple(x.shape[2:])
    step = STEP[schedule] / norm.to(x.dtype)
    prox = _Step(dictionary, lam, mu, step, nonnegative, x)
    z = prox(x)
    before: Tensor | None = None  # the code before z; None is 0
    r_before, y, tau = x, z, (1 + math.sqrt(5)) / 2
    for _ in range(n_steps - 1):
        if schedule == "greedy":
            y = 2 * z if before is None else _momentum(y, z, before)
        elif schedule == "published" and before is not None:
            following = (1 + math.sqrt(1 + 4 * tau * tau)) / 2
            y = z + (tau - 1) / following * (z - before)
            tau = following
        else:
            y = z
        r = x - dictionary.synthesise(y if schedule == "greedy" else z, size)
        if not square_noise:
            r = r / (2 * _column(r.flatten(1).norm(dim=1).clamp_min(1e-12).detach(), x))
        if schedule == "barzilai-borwein":
            moved = z if before is None else z - before
            own = _ratio(moved, r_before - r, step)  # D* of what z moved by
            prox = _Step(dictionary, lam, mu, own.clamp_max(_LONGEST / norm.to(x.dtype)), nonnegative, x)
            r_before = r
        before, z = z, prox(r, y)
    return z


class _Step:
    """One step from y along D r. A step size and lambda that all images share go into the convolution, as its weights
    and bias."""

    def __init__(
        self, dictionary: Dictionary, lam: float | Tensor, mu: float, t: Tensor, nonnegative: bool, like: Tensor
    ) -> None:
        self.dictionary, self.nonnegative, self.like = dictionary, nonnegative, like
        self.shrink = None if mu == 0 else 1 / (1 + mu * t)
        t = t if self.shrink is None else t * self.shrink
        threshold = lam.to(like) * t if isinstance(lam, Tensor) else lam * t
        self.alike = t.dim() == 0
        self.t = t
        self.atoms = dictionary.atoms * t if self.alike else None
        self.shift = None
        if nonnegative and threshold.dim() == 0:
            self.shift = -threshold.expand(dictionary.atoms.shape[0])
        self.threshold = threshold

    def __call__(self, r: Tensor, y: Tensor | None = None) -> Tensor:
        u = self.dictionary.analyse(r, self.atoms, self.shift)
        if not self.alike:
            u = u * _column(self.t, r)
        if y is not None:
            u += y if self.shrink is None else y * _column(self.shrink, y)
        if self.shift is not None:
            return u.relu_()
        threshold = _column(self.threshold, u)
        return (u - threshold).relu_() if self.nonnegative else u - u.clamp(-threshold, threshold)


def _momentum(y: Tensor, z: Tensor, before: Tensor) -> Tensor:
    """From z, the last move once more, except in images where the last step from y turned against it."""
    moved = z - before
    uphill = ((y - z) * moved).flatten(1).sum(1) >= 0
    return z + torch.where(_column(uphill, z), 0, moved)


def _ratio(moved: Tensor, change: Tensor, otherwise: Tensor) -> Tensor:
    """|moved|^2 / |change|^2 of each image, (B,); `otherwise` where nothing changed."""
    above, below = moved.square().flatten(1).sum(1), change.square().flatten(1).sum(1)
    still = below <= torch.finfo(below.dtype).tiny
    return torch.where(still, otherwise, above / torch.where(still, 1, below))


def _column(value: Tensor, like: Tensor) -> Tensor:
    """One number for all, or (B,), reshaped to broadcast with `like` (B, ...)."""
    return value if value.dim() == 0 else value.reshape(-1, *[1] * (like.dim() - 1))
