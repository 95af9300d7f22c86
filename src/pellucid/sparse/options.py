"""Which values the options of a sparse coding layer may have."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.sparse.fista import SCHEDULES

Differentiate = Literal["unrolled", "implicit"]


def check(
    padding: Any,
    n_steps: int,
    n_dict: int,
    lam: float | Tensor,
    mu: float,
    schedule: str,
    differentiate: str,
    square_noise: bool,
) -> None:
    """Raise InputError for a value out of range, or for values that exclude each other."""
    rules = [
        (not isinstance(padding, str), f"padding={padding!r} must be a number or one for each axis"),
        (n_steps >= 1, f"n_steps={n_steps} must be at least 1"),
        (n_dict >= 1, f"n_dict={n_dict} must be at least 1"),
        (isinstance(lam, Tensor) or (lam >= 0 and math.isfinite(lam)), f"lam={lam} must be at least 0"),
        (mu >= 0 and math.isfinite(mu), f"mu={mu} must be at least 0"),
        (schedule in SCHEDULES, f"schedule={schedule!r} must be {', '.join(SCHEDULES)}"),
        (differentiate in ("unrolled", "implicit"), f"differentiate={differentiate!r} must be unrolled or implicit"),
        (
            square_noise or (schedule in ("published", "long") and differentiate == "unrolled"),
            "square_noise=False only works with the schedules published and long and with differentiate='unrolled'",
        ),
    ]
    for holds, sentence in rules:
        if not holds:
            raise InputError(f"A sparse coding layer's {sentence}.")
