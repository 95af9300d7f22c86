"""Slow twins in float64 of what judges and teaches in `pellucid.distillation`, pair by pair from the papers."""

from __future__ import annotations

import math

from torch import Tensor


def distance(a: Tensor, b: Tensor) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a.double().tolist(), b.double().tolist(), strict=True)))


def radii(points: Tensor, k: int) -> list[float]:
    """Distance of each point to its k-th nearest other one."""
    return [sorted(distance(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]


def alike(real: Tensor, made: Tensor, k: int) -> tuple[float, float, float, float]:
    """Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020)."""
    ball, own = radii(real, k), radii(made, k)
    inside = [[distance(x, y) <= ball[i] for y in made] for i, x in enumerate(real)]
    precision = sum(any(row[j] for row in inside) for j in range(len(made))) / len(made)
    density = sum(sum(row) for row in inside) / (k * len(made))
    coverage = sum(any(row) for row in inside) / len(real)
    recall = sum(any(distance(x, y) <= own[j] for j, y in enumerate(made)) for x in real) / len(real)
    return precision, recall, density, coverage


def diversity(features: Tensor, labels: Tensor, classes: int) -> list[float]:
    """Mean cosine of all pairs of different images of each class; NaN for fewer than two."""
    found = []
    for label in range(classes):
        own = [row.double() for row, y in zip(features, labels.tolist(), strict=True) if y == label]
        cosines = [float(a @ b / (a.norm() * b.norm())) for i, a in enumerate(own) for b in own[i + 1 :]]
        found.append(sum(cosines) / len(cosines) if cosines else math.nan)
    return found


def nearest(points: Tensor, among: Tensor) -> list[tuple[float, int]]:
    """Distance and index of the nearest of `among` to each point, the first of several."""
    return [min((distance(p, q), j) for j, q in enumerate(among)) for p in points]


def inception_score(p: Tensor) -> float:
    """exp of the mean divergence of the rows of p from their mean."""
    mean = [sum(column) / len(p) for column in p.double().T.tolist()]
    total = 0.0
    for row in p.double().tolist():
        total += sum(x * (math.log(x) - math.log(m)) for x, m in zip(row, mean, strict=True) if x > 0)
    return math.exp(total / len(p))


def distillation(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float) -> float:
    """alpha T^2 KL(teacher || student) + (1 - alpha) cross-entropy, image by image (Hinton et al. 2015)."""

    def softmax(row: list[float], t: float) -> list[float]:
        shifted = [math.exp((x - max(row)) / t) for x in row]
        return [x / sum(shifted) for x in shifted]

    total = 0.0
    for s, t, y in zip(student.double().tolist(), teacher.double().tolist(), labels.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        total += alpha * temperature**2 * divergence - (1 - alpha) * math.log(softmax(s, 1.0)[y])
    return total / len(labels)
