r"""Random weights as a function of (seed, place, round): no generator has a state to keep.

Entry i of a tensor in round r is made from the bits of SplitMix64 (Steele, Lea and Flood 2014), whose i-th output is
mix(seed + i g), with a seed that is itself mixed with r. Any entry can therefore be drawn again at any time and
independently of the others, so a subnetwork needs no weights on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from pellucid.core.device import has_double
from pellucid.core.errors import InputError

Init = Literal[
    "signed_constant",
    "unsigned_constant",
    "kaiming_normal",
    "kaiming_uniform",
    "xavier_constant",
    "xavier_normal",
    "xavier_uniform",
    "given",
]
INITS: tuple[str, ...] = get_args(Init)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_ROUND = _signed(0xD1B54A32D192ED03)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(z: Tensor, by: int) -> Tensor:
    """Shift right logically; torch's own shift keeps the sign."""
    return (z >> by) & (2 ** (64 - by) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def uniform(seed: int, shape: Sequence[int], rounds: int | Tensor = 0, device: torch.device | str = "cpu") -> Tensor:
    """Draw uniform numbers in (0, 1): float64, of `shape`, on the CPU if `device` has no float64.

    rounds: one int, or one per place (int64, of `shape`); every round is an independent draw.
    """
    device = device if has_double(device) else "cpu"
    place = torch.arange(math.prod(shape), device=device).view(tuple(shape))
    start = _mix(torch.as_tensor(rounds, device=device) * _ROUND + seed)
    return (_shifted(_mix(place * _GOLDEN + start), 12).double() + 0.5) * 2.0**-52


def scale(init: Init, fan_in: float, fan_out: float) -> float:
    """Standard deviation of the weights: sqrt(2 / fan_in) for ReLU networks, Xavier's sqrt(2 / (fan_in + fan_out)).

    He et al. 2015, equation 10; Glorot and Bengio 2010, equation 12.
    """
    return math.sqrt(2 / (fan_in + fan_out if init.startswith("xavier") else fan_in))


def weights(
    init: Init,
    std: float,
    seed: int,
    shape: Sequence[int],
    rounds: int | Tensor = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw random weights of standard deviation `std`: float64, of `shape`; device and `rounds` as in `uniform`.

    signed_constant and xavier_constant are +std or -std, unsigned_constant is std, and the others are normal or
    uniform.

    Raises InputError for any other `init`.
    """
    if init == "unsigned_constant":
        return torch.full(tuple(shape), std, dtype=torch.float64, device=device if has_double(device) else "cpu")
    u = uniform(seed, shape, rounds, device)
    if init in ("signed_constant", "xavier_constant"):
        return torch.where(u < 0.5, -std, std)
    if init in ("kaiming_normal", "xavier_normal"):
        return std * torch.special.ndtri(u)
    if init in ("kaiming_uniform", "xavier_uniform"):
        return std * math.sqrt(3) * (2 * u - 1)
    raise InputError(f"init={init!r} draws no weights: choose one of {', '.join(INITS[:-1])}.")
