r"""The norm of a dictionary, the largest eigenvalue L of $D D^*$, which the step sizes come from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pellucid.sparse.dictionary import Dictionary

_FALL = 0.95  # a norm falls by no more than this in a step, since power iteration approaches from below


def start(places: tuple[int, ...], like: Tensor) -> Tensor:
    """A code (1, K, *places) to start power iteration from: noise that is the same on every machine."""
    count = 1
    for n in places[1:]:
        count *= n
    return (torch.arange(1, count + 1, dtype=torch.float64) ** 2).sin().reshape(1, *places[1:]).to(like)


def expected_norm(out_channels: int, in_channels: int, stride: tuple[int, ...]) -> float:
    r"""What the largest eigenvalue of $D D^*$ is about for random atoms of norm 1: the edge of the law of Marchenko and
    Pastur (1967), $(1 + \sqrt{K / C s^d})^2$, with 10 % on top."""
    return 1.1 * (1 + math.sqrt(out_channels / (in_channels * math.prod(stride)))) ** 2


def followed(dictionary: Dictionary, norm: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Norm and direction (1, K, *places) after one more step of power iteration; unchanged if that is not finite."""
    found, v = dictionary.norm(direction.to(dictionary.atoms.dtype), 1)
    good = found.isfinite() & (found > 0)
    norm = torch.where(good, torch.maximum(found, _FALL * norm), norm)
    return norm, torch.where(good, v, direction).to(direction.dtype)


def published_norm(dictionary: Dictionary, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Norm and direction as published: up to 50 steps of power iteration on codes of the size that images x have.

    It goes on from `direction`, or starts anew if that has another size.
    """
    places, size = dictionary.analyse(x[:1]).shape, tuple(x.shape[2:])
    v = direction if direction.shape == places else start(places, direction)
    going = torch.ones((), dtype=torch.bool, device=x.device)
    for _ in range(50):
        new = dictionary.analyse(dictionary.synthesise(v, size))
        new = new / new.norm().clamp_min(1e-12)
        further = going & ((new - v).square().sum() > 1e-5)
        v, going = torch.where(going, new, v), further
        if not torch.compiler.is_compiling() and not going:
            break
    return dictionary.synthesise(v, size).square().sum(), v
