"""Edge-popup by loops, in float64, from the papers: what `pellucid.edgepopup` is compared with."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

_WORD = 2**64 - 1


def kept(keep: str, n: int) -> int:
    """n less the floor((1 - keep) n) smallest, at least 1; `keep` as a decimal number, exactly."""
    return max(1, n - math.floor((1 - Fraction(keep)) * n))


def mask(scores: list[float], k: int) -> list[bool]:
    """Sorted by magnitude, the largest first; of equal ones the one that stands first."""
    order = sorted(range(len(scores)), key=lambda i: (-abs(scores[i]), i))
    return [i in set(order[:k]) for i in range(len(scores))]


def masks(scores: list[Tensor], keep: str, ranking: str) -> list[Tensor]:
    """One mask a layer, each by itself or all together."""
    if ranking == "layer":
        parts = [mask(s.flatten().tolist(), kept(keep, s.numel())) for s in scores]
    else:
        values = [v for s in scores for v in s.flatten().tolist()]
        whole, parts = mask(values, kept(keep, len(values))), []
        for s in scores:
            parts.append(whole[: s.numel()])
            whole = whole[s.numel() :]
    return [torch.tensor(part).view_as(s) for part, s in zip(parts, scores, strict=True)]


class Perceptron:
    """Two linear layers and a ReLU between them; the weights stay, the scores are trained by SGD with momentum."""

    def __init__(self, weights: list[Tensor], scores: list[Tensor], keep: str, ranking: str) -> None:
        self.weights = [w.detach().double().clone() for w in weights]
        self.scores = [s.detach().double().clone() for s in scores]
        self.keep, self.ranking = keep, ranking
        self.momenta = [torch.zeros_like(s) for s in self.scores]

    def used(self) -> list[Tensor]:
        chosen = masks(self.scores, self.keep, self.ranking)
        return [w * m for w, m in zip(self.weights, chosen, strict=True)]

    def forward(self, x: Tensor, used: list[Tensor]) -> Tensor:
        return (x.double() @ used[0].T).relu() @ used[1].T

    def step(self, x: Tensor, target: Tensor, lr: float, momentum: float, decay: float) -> float:
        """One step on the mean squared error."""
        used = [w.requires_grad_() for w in self.used()]
        loss = (self.forward(x, used) - target).square().mean()
        gradients = torch.autograd.grad(loss, used)
        for i, g in enumerate(gradients):
            for place in range(g.numel()):  # dL/ds = dL/dv w, through |s|
                s = float(self.scores[i].view(-1)[place])
                slope = float(g.reshape(-1)[place] * self.weights[i].reshape(-1)[place]) * math.copysign(1, s)
                change = momentum * float(self.momenta[i].view(-1)[place]) + slope + decay * s
                self.momenta[i].view(-1)[place] = change
                self.scores[i].view(-1)[place] = s - lr * change
        return loss.item()


def splitmix(seed: int, count: int) -> list[int]:
    """The first outputs of SplitMix64 after a start at `seed` less one step, by whole numbers."""
    return [mix((seed + i * 0x9E3779B97F4A7C15) & _WORD) for i in range(count)]


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)
