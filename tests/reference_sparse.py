"""Slow twins of sparse coding in float64: the dictionary as a matrix, and the published layer step by step.

The published arithmetic is that of the implementation of Dai et al., "Revisiting Sparse Convolutional Model for Visual
Recognition", NeurIPS 2022, from a description of it.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def matrix(
    atoms: Tensor, size: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """D* as a matrix (C prod(size), K prod(places)): a column is one atom (K, C, *kernel) at one place."""
    kernel = atoms.shape[2:]
    geometry = list(zip(size, kernel, stride, padding, dilation, strict=True))
    places = [range(0, n + 2 * p - d * (k - 1), s) for n, k, s, p, d in geometry]
    columns = []
    for atom in atoms.double():
        for place in itertools.product(*places):
            image = torch.zeros(atoms.shape[1], *size, dtype=torch.float64)
            for offset in itertools.product(*map(range, kernel)):
                at = [o + i * d - p for o, i, d, p in zip(place, offset, dilation, padding, strict=True)]
                if all(0 <= i < n for i, n in zip(at, size, strict=True)):
                    image[(slice(None), *at)] += atom[(slice(None), *offset)]
            columns.append(image.flatten())
    return torch.stack(columns, 1)


def objective(d: Tensor, x: Tensor, z: Tensor, lam: float, mu: float = 0.0) -> Tensor:
    """At one code z (n,) of one image x (m,), both flat."""
    return lam * z.abs().sum() + mu / 2 * (z * z).sum() + ((x - d @ z) ** 2).sum() / 2


def ista(d: Tensor, x: Tensor, lam: float, mu: float = 0.0, *, nonnegative: bool = True, steps: int = 20000) -> Tensor:
    """The code by thousands of plain proximal gradient steps of 1 / L."""
    t = 1 / torch.linalg.matrix_norm(d, 2) ** 2
    z = torch.zeros(d.shape[1], dtype=torch.float64)
    for _ in range(steps):
        z = shrink(z + t * (d.T @ (x - d @ z)), t, lam, mu, nonnegative)
    return z


def shrink(u: Tensor, t: Tensor, lam: float, mu: float, nonnegative: bool) -> Tensor:
    """The proximal map of t (lam |z|_1 + mu/2 |z|^2)."""
    u = u / (1 + mu * t)
    u = u.sign() * (u.abs() - lam * t / (1 + mu * t)).clamp(min=0)
    return u.clamp(min=0) if nonnegative else u


class Published:
    """The published layer and its training loop's `update_stepsize`, in float64, by matrices.

    weight: (K, n_dict C, *kernel), a leaf that `forward` scales in place. v: where power iteration starts.
    """

    def __init__(self, weight: Tensor, v: Tensor, size: tuple[int, ...], stride: tuple[int, ...], padding, **options):
        self.weight = weight.detach().clone().double().requires_grad_()
        self.v = v.double().flatten()
        self.size, self.stride, self.padding = size, stride, padding
        self.lam, self.mu, self.n_steps = 0.1, 0.0, 2
        self.nonnegative, self.n_dict, self.square_noise = True, 1, True
        vars(self).update(options)

    def matrix(self) -> Tensor:
        """D* of the weights as they are, differentiable in them: a matrix of each weight's place."""
        shape = self.weight.shape
        size = (*self.size,)
        parts = []
        eye = torch.eye(shape[2:].numel(), dtype=torch.float64).reshape(-1, *shape[2:])
        ones = (1,) * len(size)
        taps = [matrix(e[None, None], size, self.stride, self.padding, ones) for e in eye]  # (pixels, places) each
        for k in range(shape[0]):
            rows = [
                sum(w * tap for w, tap in zip(self.weight[k, c].flatten(), taps, strict=True)) for c in range(shape[1])
            ]
            parts.append(torch.cat(rows))
        return torch.cat(parts, 1)

    def update_stepsize(self) -> float:
        """0.9 / L by at most 50 steps of power iteration, of the weights as the optimiser left them."""
        with torch.no_grad():
            d = self.matrix()
            change, k, v = math.inf, 0, self.v
            while k < 50 and change > 1e-5:
                new = d.T @ (d @ v)
                new = new / new.norm()
                change = float(((new - v) ** 2).sum())
                v = new
                k += 1
            self.v = v
            self.t = 0.9 / (d @ v).square().sum()
        return float(self.t)

    def forward(self, x: Tensor) -> Tensor:
        """Codes (B, n) of images (B, C, *size)."""
        with torch.no_grad():
            lengths = self.weight.flatten(1).norm(dim=1)
            self.weight /= lengths.reshape(-1, *[1] * (self.weight.dim() - 1))
        d, t = self.matrix(), self.t
        x = torch.cat([x] * self.n_dict, 1).flatten(1).double()
        codes = []
        for image in x:
            z = shrink(t * (d.T @ image), t, self.lam, self.mu, self.nonnegative)
            before, tau = torch.zeros_like(z), (1 + math.sqrt(5)) / 2
            for k in range(1, self.n_steps):
                r = image - d @ z
                gradient = d.T @ r if self.square_noise else 0.5 * (d.T @ (r / r.norm().detach()))
                base = z
                if k > 1:
                    following = (1 + math.sqrt(1 + 4 * tau**2)) / 2
                    base = (tau + following - 1) / following * z + (1 - tau) / following * before
                    tau = following
                before, z = z, shrink(base + t * gradient, t, self.lam, self.mu, self.nonnegative)
            codes.append(z)
        return torch.stack(codes)
