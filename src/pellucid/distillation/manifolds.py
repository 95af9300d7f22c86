r"""How similar two sets of feature vectors are, judged by nearest neighbours rather than by a density.

With $B_k(x; X)$ the ball around $x \in X$ whose radius is the distance to the k-th nearest other point of X, for real
vectors $X_1 \dots X_N$ and generated ones $Y_1 \dots Y_M$

$$\text{precision} = \frac1M \sum_j 1[\exists i: Y_j \in B_k(X_i; X)], \qquad
  \text{recall} = \frac1N \sum_i 1[\exists j: X_i \in B_k(Y_j; Y)]$$

(Kynkäänniemi et al. 2019, arXiv:1904.06991, equations 1 to 3), and

$$\text{density} = \frac1{kM} \sum_j \sum_i 1[Y_j \in B_k(X_i; X)], \qquad
  \text{coverage} = \frac1N \sum_i 1[\exists j: Y_j \in B_k(X_i; X)]$$

(Naeem et al. 2020, arXiv:2002.09797, equations 3 and 4). All are fractions except the density, which may exceed 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.core.errors import InputError

ROWS = 1024  # rows of the table of distances that are in memory at a time
VALUES = 2**24  # and at most so many numbers of the vectors that are compared


@dataclass(frozen=True)
class Alike:
    """Precision, recall, density and coverage of generated among real vectors, for k neighbours."""

    precision: float
    recall: float
    density: float
    coverage: float
    k: int


def alike(real: Tensor, generated: Tensor, k: int = 5) -> Alike:
    """The four scores of `generated` (M, D) against `real` (N, D), Euclidean distance in float64.

    Raises:
        InputError: k or fewer vectors in either set.
    """
    if min(len(real), len(generated)) <= k or k < 1:
        raise InputError(
            f"{len(real)} real and {len(generated)} generated images have no {k} neighbours each: give more than "
            f"{k} of each."
        )
    real, generated = real.double(), generated.double()
    real_radius, generated_radius = radius(real, k), radius(generated, k)
    inside = torch.zeros(len(generated), dtype=torch.int64)  # real balls that each generated vector lies in
    covered, recalled = [], []
    for rows, distance in _distances(real, generated):
        within = distance <= real_radius[rows, None]
        inside += within.sum(0)
        covered.append(within.any(1))
        recalled.append((distance <= generated_radius).any(1))
    return Alike(
        precision=(inside > 0).double().mean().item(),
        recall=torch.cat(recalled).double().mean().item(),
        density=inside.double().mean().item() / k,
        coverage=torch.cat(covered).double().mean().item(),
        k=k,
    )


def radius(points: Tensor, k: int) -> Tensor:
    """The distance (N,) of each of the points (N, D) to its k-th nearest other point."""
    found = []
    for rows, distance in _distances(points, points):
        distance[torch.arange(len(rows)), rows] = torch.inf  # itself
        found.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(found)


class Nearest:
    """The nearest of any number of vectors, which arrive in parts, to each of some points.

    Memory does not grow with the number of vectors; what arrives is compared in float64.

    Attributes:
        distance: (M,) float64, Euclidean; infinite before the first part.
        index: (M,) int64, the place of the nearest vector among all so far; the first of equals.
        seen: number of vectors so far.
    """

    def __init__(self, points: Tensor) -> None:
        """`points`: (M, D), of any type that float64 can hold."""
        self.points = points
        self.distance = torch.full((len(points),), torch.inf, dtype=torch.float64)
        self.index = torch.zeros(len(points), dtype=torch.int64)
        self.seen = 0

    def add(self, vectors: Tensor) -> None:
        """Compare with the next `vectors` (N, D)."""
        size = max(1, min(ROWS, VALUES // max(1, self.points.shape[1])))
        for part in vectors.split(size):
            among = part.double()
            for rows in torch.arange(len(self.points)).split(size):
                own = self.points[rows].double()
                place = torch.cdist(own, among, compute_mode="use_mm_for_euclid_dist").argmin(1)
                # Distances by matrix products lose digits where points nearly coincide: recompute those of the nearest.
                distance = (own - among[place]).norm(dim=1)
                closer = distance < self.distance[rows]
                self.distance[rows] = torch.where(closer, distance, self.distance[rows])
                self.index[rows] = torch.where(closer, place + self.seen, self.index[rows])
            self.seen += len(part)


def nearest(points: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of `among` (N, D) to each of `points` (M, D): distances (M,) in float64 and indices (M,)."""
    found = Nearest(points)
    found.add(among)
    return found.distance, found.index


def diversity(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean cosine (K,) between two different vectors of each class; near 1, its images are all alike.

    Args:
        features: (N, D).
        labels: (N,) int64.
        classes: K; a class of fewer than two images gets NaN.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    count = torch.bincount(labels, minlength=classes).double()
    total = torch.zeros(classes, unit.shape[1], dtype=torch.float64).index_add_(0, labels, unit)
    own = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, unit.square().sum(1))
    # The squared length of the sum counts every pair twice, and each vector with itself once.
    return (total.square().sum(1) - own) / (count * (count - 1)).where(count > 1, torch.nan)


def inception_score(probabilities: Tensor) -> float:
    r"""$\exp \frac1N \sum_i KL(p_i \| \bar p)$ of rows (N, K), between 1 and K (Salimans et al. 2016, section 4)."""
    p = probabilities.double()
    # 0 log 0 = 0 for a class that no image shows, where a difference of logarithms would be NaN.
    gain = torch.special.xlogy(p, p) - torch.special.xlogy(p, p.mean(0))
    return gain.sum(1).mean().exp().item()


def _distances(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of row numbers of `a`, and the distances of these rows to all of `b`."""
    for rows in torch.arange(len(a)).split(ROWS):
        yield rows, torch.cdist(a[rows], b, compute_mode="use_mm_for_euclid_dist")
