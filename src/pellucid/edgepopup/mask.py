r"""The maths of edge-popup: which weights are kept, how many, and the gradient of the scores.

A layer has frozen weights w and trained scores s of the same shape. It computes with $w \odot h(s)$, where h is 1 for
the fraction `keep` of entries with the largest |s| and 0 for the others. The backward pass treats h as |s| itself
(Ramanujan et al. 2020, section 3.2), so that

$$\partial L / \partial s = \partial L / \partial (w \odot h) \odot w \odot \mathrm{sign}(s).$$
"""

from __future__ import annotations

import math
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from pellucid.core.errors import InputError

_SLACK = 1e-6  # of one weight, against rounding: 0.3 * 10 must give 3, not 4

Number = TypeVar("Number", float, Tensor)


def check_keep(keep: float) -> float:
    """`keep` itself; InputError unless it is a fraction above 0 and at most 1."""
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise InputError(f"keep={keep!r} is out of range: give the fraction of weights to keep, above 0, at most 1.")
    return keep


@overload
def kept(keep: float, n: int) -> int: ...
@overload
def kept(keep: Tensor, n: int) -> Tensor: ...
def kept(keep: float | Tensor, n: int) -> int | Tensor:
    """How many of n weights are kept: ceil(keep n), as published (n - floor((1 - keep) n)), but at least 1."""
    if isinstance(keep, Tensor):
        return torch.ceil(keep * n - _SLACK).clamp(min=1).long()
    return max(1, math.ceil(keep * n - _SLACK))


def annealed(keep: float, step: Number, steps: int) -> Number:
    r"""The fraction kept at `step` while it falls from 1 to `keep` over `steps`: $k + (1 - k)(1 - t/T)^3$, then k.

    The cubic schedule of gradual pruning (Zhu and Gupta 2017, equation 1, from a dense start). `step` is a number or a
    tensor, and so is the result.
    """
    rest = 1 - step / steps
    rest = rest.clamp(min=0) if isinstance(rest, Tensor) else max(rest, 0.0)
    return keep + (1 - keep) * rest * rest * rest


def topk_mask(scores: Tensor, keep: float) -> Tensor:
    """Mark the fraction `keep` of entries of `scores` with the largest magnitude: bool, of the same shape.

    Exactly ceil(keep n) of the n entries are marked, at least 1; of equal magnitudes the first in memory order. Scores
    must be finite.

    Raises InputError for a `keep` outside (0, 1].

    Example:
        >>> topk_mask(torch.tensor([0.1, -3.0, 2.0, 2.0]), 0.5)
        tensor([False,  True,  True, False])
    """
    return largest(scores.detach().abs(), kept(check_keep(keep), scores.numel()))


def largest(values: Tensor, k: int | Tensor) -> Tensor:
    """Mark exactly k largest of `values` (bool, same shape), of equal ones the first; k is an int, or () int64."""
    flat, n = values.flatten(), values.numel()
    if isinstance(k, int) and k >= n:
        return torch.ones_like(values, dtype=torch.bool)
    if isinstance(k, Tensor):
        least = flat.sort().values.gather(0, (n - k).clamp(0, n - 1).reshape(1))
    elif flat.device.type == "cpu":
        least = flat.kthvalue(n - k + 1).values
    else:  # kthvalue is not deterministic on other devices, and no faster
        least = flat.sort().values[n - k]
    above, tied = flat > least, flat == least
    return (above | (tied & (tied.cumsum(0) <= k - above.sum()))).view_as(values)


class Popup(torch.autograd.Function):
    """(scores, weight, mask) -> weight * mask, with the straight-through gradient for the scores."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        scores, weight, mask = ctx.saved_tensors
        to_scores = grad * weight * scores.sign() if ctx.needs_input_grad[0] else None
        return to_scores, grad * mask if ctx.needs_input_grad[1] else None, None


def binary(weight: Tensor, mask: Tensor) -> Tensor:
    r"""$\alpha\,\mathrm{sign}(w)$ with $\alpha$ the mean magnitude of the kept weights; no gradient flows through it.

    Multi-prize tickets (Diffenderfer and Kailkhura 2021, section 3: $\alpha = |M \odot W|_1 / |M|_1$).
    """
    gain = (weight.abs() * mask).sum() / mask.sum().clamp(min=1)
    return (gain * weight.sign()).detach()
