r"""Least-squares weights for chosen filters, from mean and covariance alone; the equations are those of `omp`."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.classfilters.accuracy import Sets
from pellucid.classfilters.omp import TINY


def refitted(
    weight: Tensor, bias: Tensor, mean: Tensor, cov: Tensor, indices: Sets
) -> tuple[list[list[float]], list[float]]:
    """For each class the weights of its filters, and the bias, whose logit is nearest to the full one in mean square.

    Args:
        weight: (K, C) of the last layer.
        bias: (K,) of the last layer.
        mean: (C,), mean of its inputs.
        cov: (C, C), population covariance of its inputs.
        indices: one set of filters per class.

    Returns:
        The weights, of the shape of `indices`, and K biases. For linearly dependent filters, the smallest weights.
    """
    weight, bias, mean, cov = weight.double(), bias.double(), mean.double(), cov.double()
    scale = cov.diagonal().clamp(min=0).sqrt()
    targets = weight @ cov
    weights, biases = [], []
    for c, own in enumerate(indices):
        chosen = list(own)
        # Standardised, so that which filters count as dependent does not depend on their units.
        size = scale[chosen].clamp(min=1e-150)
        gram = cov[chosen][:, chosen] / size[:, None] / size[None]
        values = torch.linalg.pinv(gram, rtol=TINY, hermitian=True) @ (targets[c, chosen] / size) / size
        weights.append(values.tolist())
        biases.append(float(bias[c] + weight[c] @ mean - values @ mean[chosen]))
    return weights, biases
