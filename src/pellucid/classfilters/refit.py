"""Least-squares weights of chosen filters. The setting is that of `omp`."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.classfilters.omp import TINY


def refitted(
    weight: Tensor, bias: Tensor, mean: Tensor, cov: Tensor, indices: list[list[int]]
) -> tuple[list[list[float]], list[float]]:
    """For each class the weights of its filters, and the bias, that are nearest to the full logit in the mean square.

    Args:
        weight: (K, C); bias: (K,); mean: (C,); cov: (C, C).
        indices: one list of filters a class.

    Returns:
        The weights, of the shape of `indices`, and K biases. Of linearly dependent filters the smallest weights.
    """
    weight, bias, mean, cov = weight.double(), bias.double(), mean.double(), cov.double()
    scale = cov.diagonal().clamp(min=0).sqrt()
    targets = weight @ cov
    weights, biases = [], []
    for c, chosen in enumerate(indices):
        # Standardised, so that what counts as dependent does not depend on the filters' units.
        size = scale[chosen].clamp(min=1e-150)
        gram = cov[chosen][:, chosen] / size[:, None] / size[None]
        values = torch.linalg.pinv(gram, rtol=TINY, hermitian=True) @ (targets[c, chosen] / size) / size
        weights.append(values.tolist())
        biases.append(float(bias[c] + weight[c] @ mean - values @ mean[chosen]))
    return weights, biases
