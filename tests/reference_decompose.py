"""Slow twins of the training objectives, in float64, from their papers' formulas."""

from __future__ import annotations

import math

from torch import Tensor


def gated_loss(
    features: Tensor, labels: Tensor, gates: Tensor, weight: Tensor, bias: Tensor, sparsity: float, density: float
) -> float:
    """CE + sparsity max(0, |G|_1 - density K C), the logits of image i from a_ij G[y_i, j] (Liang et al. 2020)."""
    total = 0.0
    for a, label in zip(features.tolist(), labels.tolist(), strict=True):
        passed = [value * float(gates[label, j]) for j, value in enumerate(a)]
        logits = [
            math.fsum(w * value for w, value in zip(row, passed, strict=True)) + b
            for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        total += math.log(math.fsum(math.exp(z) for z in logits)) - logits[label]
    norm = math.fsum(abs(g) for row in gates.tolist() for g in row)
    return total / len(labels) + sparsity * max(0.0, norm - density * gates.numel())


def projected(gates: Tensor) -> Tensor:
    """Every column divided by its largest entry, then cut to [0, 1]."""
    found = gates.clone().double()
    for j in range(gates.shape[1]):
        largest = max(gates[:, j].tolist())
        for c in range(len(gates)):
            found[c, j] = min(1.0, max(0.0, float(gates[c, j]) / largest))
    return found


def selectivity(layers: list[Tensor], labels: Tensor) -> float:
    """Mean over layers of the mean over filters of (m_max - m_rest) / (m_max + m_rest) (Leavitt and Morcos 2020)."""
    means = []
    for responses in layers:
        indices = []
        for j in range(responses.shape[1]):
            own = []
            for c in sorted(set(labels.tolist())):
                picked = [float(a) for a, y in zip(responses[:, j], labels.tolist(), strict=True) if y == c]
                own.append(math.fsum(picked) / len(picked))
            largest = max(own)
            rest = (math.fsum(own) - largest) / (len(own) - 1)
            indices.append((largest - rest) / (largest + rest) if largest + rest else 0.0)
        means.append(math.fsum(indices) / len(indices))
    return math.fsum(means) / len(means)
