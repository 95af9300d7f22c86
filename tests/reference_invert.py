"""Slow twins of inversion in float64, written from the papers: loops, no cleverness.

Yin et al., "Dreaming to distill", CVPR 2020 (equations 2 to 7); the Gaussian divergence is the textbook's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_divergence(m: Tensor, v: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Mean over features of KL(N(m, v) | N(mean, var)), one feature after the other."""
    total = 0.0
    for i in range(len(m)):
        total = total + 0.5 * ((v[i] + (m[i] - mean[i]) ** 2) / var[i] - 1 - torch.log(v[i] / var[i]))
    return total / len(m)


def full_divergence(m: Tensor, v: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """KL(N(m, v) | N(mean, cov)) / F by inverse and determinants."""
    inverse, gap, f = torch.linalg.inv(cov), m - mean, len(m)
    log_ratio = torch.logdet(v) - torch.logdet(cov)
    return 0.5 * (torch.trace(inverse @ v) + gap @ inverse @ gap - f - log_ratio) / f


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of each channel of x (N, C, ...), value by value."""
    means, variances = [], []
    for c in range(x.shape[1]):
        values = x[:, c].flatten().tolist()
        mean = math.fsum(values) / len(values)
        means.append(mean)
        variances.append(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return torch.tensor(means, dtype=torch.float64), torch.tensor(variances, dtype=torch.float64)


def total_variation(images: Tensor) -> float:
    """Mean over images of the norms of differences to the right, below, and along both diagonals."""
    result = 0.0
    for image in images.tolist():
        sums = [0.0, 0.0, 0.0, 0.0]
        for channel in image:
            for i, row in enumerate(channel):
                for j, value in enumerate(row):
                    for k, (di, dj) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
                        if i + di < len(channel) and 0 <= j + dj < len(row):
                            sums[k] += (channel[i + di][j + dj] - value) ** 2
        result += sum(map(math.sqrt, sums)) / len(images)
    return result


def jensen_shannon(a: Tensor, b: Tensor, temperature: float) -> float:
    """Mean over rows of the divergence, in nats, of softmax(a / T) and softmax(b / T), kept in [0.01, 0.99]."""
    result = 0.0
    for row, other in zip(a, b, strict=True):
        p, q = ([min(max(float(u), 0.01), 0.99) for u in (z / temperature).softmax(0)] for z in (row, other))
        for u, w in zip(p, q, strict=True):
            middle = (u + w) / 2
            result += (u * math.log(u / middle) + w * math.log(w / middle)) / 2 / len(a)
    return result
