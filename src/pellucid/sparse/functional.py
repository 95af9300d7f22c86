"""Sparse coding as a function of images and a dictionary."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.sparse.dictionary import Dictionary
from pellucid.sparse.fista import SCHEDULES, Schedule, unroll
from pellucid.sparse.norm import start

_POWER = 50  # steps of power iteration when no norm is given


def fista(
    x: Tensor,
    dictionary: Tensor,
    lam: float | Tensor,
    *,
    mu: float = 0.0,
    n_steps: int = 2,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    nonnegative: bool = True,
    schedule: Schedule = "published",
    norm: Tensor | float | None = None,
) -> Tensor:
    r"""The code of images after `n_steps` steps towards
    $\min_z \lambda |z|_1 + \mu/2 |z|^2 + 1/2 |x - D^* z|^2$ (Dai et al., NeurIPS 2022, equation 3).

    Args:
        x: images (B, C, *size).
        dictionary: atoms (K, C, *kernel), of any norm.
        lam: weight of |z|_1; one number, or (B,) for one per image.
        mu: weight of |z|^2 / 2.
        n_steps: number of proximal gradient steps; they take 2 n_steps - 1 convolutions.
        stride, padding, dilation: of the convolution that is the adjoint of D*.
        nonnegative: restrict codes to z >= 0.
        schedule: how step sizes are chosen, see `pellucid.sparse.fista.unroll`.
        norm: the largest eigenvalue of D D*; by default measured by power iteration.

    Returns:
        Codes (B, K, *places), differentiable in x, dictionary and lam.

    Raises:
        InputError: fewer than one step, or an unknown schedule.
    """
    if n_steps < 1:
        raise InputError(f"n_steps={n_steps} must be at least 1.")
    if schedule not in SCHEDULES:
        raise InputError(f"schedule={schedule!r} must be {', '.join(SCHEDULES)}.")
    rank = x.dim() - 2
    stride, padding, dilation = (
        (value,) * rank if isinstance(value, int) else tuple(value) for value in (stride, padding, dilation)
    )
    operator = Dictionary(dictionary, stride, padding, dilation)
    if norm is None:
        with torch.no_grad():
            norm, _ = operator.norm(start(operator.analyse(x[:1]).shape, x), _POWER)
    largest = norm if isinstance(norm, Tensor) else x.new_full((), norm)
    return unroll(operator, x, lam, mu, n_steps, largest, nonnegative=nonnegative, schedule=schedule)
