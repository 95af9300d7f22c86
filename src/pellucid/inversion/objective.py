"""What images are to say to the network: a class, a distribution over classes, or something another network denies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.core.errors import InputError


@dataclass(frozen=True)
class CrossEntropy:
    """Mean over images of $-\\sum_k t_k \\log \\mathrm{softmax}(z / T)_k$: logits z, targets t, temperature T."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"A temperature of {self.temperature:g} is out of range: give one above 0.")

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits and targets (B, K), rows of targets summing to 1; a scalar."""
        return F.cross_entropy(logits / self.temperature, targets)


@dataclass(frozen=True)
class Logit:
    """Minus the mean over images of the target's logit, $-\\sum_k t_k z_k$."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits and targets (B, K); a scalar."""
        return -(logits * targets).sum(1).mean()


@dataclass(frozen=True)
class Disagreement:
    """Adaptive DeepInversion's competition (Yin et al. 2020, equation 7): $w (1 - \\mathrm{JS}(p, q))$.

    p and q are the teacher's and the student's probabilities at `temperature`, kept in [0.01, 0.99]; JS, in nats, is
    kept in [0, 1].
    """

    weight: float = 0.2
    temperature: float = 3.0

    def __call__(self, logits: Tensor, others: Tensor) -> Tensor:
        """Logits (B, K) of the inverted network and of the other one; a scalar."""
        p, q = ((z / self.temperature).softmax(1).clamp(0.01, 0.99) for z in (logits, others))
        log_middle = ((p + q) / 2).log()
        divergence = ((p * (p.log() - log_middle)).sum(1) + (q * (q.log() - log_middle)).sum(1)) / 2
        return self.weight * (1 - divergence.mean().clamp(0, 1))


Objective = CrossEntropy | Logit
TARGET_KINDS = ("balanced", "random")


def class_targets(targets: object, classes: int, indices: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """What `invert` takes for targets, as indices (B,) of the images and distributions (B, K) over `classes`.

    Args:
        targets: classes (a sequence or tensor of whole numbers), distributions (B, K), ("balanced", n): image i has
            class i modulo K, or ("random", n): a class drawn by seed and index.
        indices: numbers of the images; default 0, 1, ...

    Raises:
        InputError: nothing of the kind, a class that the network does not have, or a row that is no distribution.
    """
    from pellucid.core.seeds import seed_of

    if isinstance(targets, tuple) and len(targets) == 2 and isinstance(targets[0], str):
        kind, count = targets
        if kind not in TARGET_KINDS or not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"Targets {targets!r} are none: give ('balanced', n) or ('random', n) with n at least 1.")
        numbers = _numbers(indices, count)
        if kind == "balanced":
            labels = numbers % classes
        else:
            labels = torch.tensor([seed_of("target", seed, number) % classes for number in numbers.tolist()])
        return numbers, F.one_hot(labels, classes).float()
    try:
        given = torch.as_tensor(targets).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"Targets must be classes or distributions over classes, not {str(targets)[:80]!r}.") from None
    if given.dim() == 1 and len(given) and not given.is_floating_point():
        if int(given.min()) < 0 or int(given.max()) >= classes:
            wrong = int(given.min()) if int(given.min()) < 0 else int(given.max())
            raise InputError(f"There is no class {wrong}: the network has the classes 0 to {classes - 1}.")
        return _numbers(indices, len(given)), F.one_hot(given.long(), classes).float()
    if given.dim() == 2 and len(given) and given.is_floating_point() and given.shape[1] == classes:
        rows = given.float()
        if not bool(rows.isfinite().all()) or bool((rows < 0).any()) or bool(((rows.sum(1) - 1).abs() > 1e-3).any()):
            raise InputError("Soft targets must be distributions: no entry below 0, and each row with the sum 1.")
        return _numbers(indices, len(given)), rows
    raise InputError(
        f"Targets of shape {tuple(given.shape)} and type {str(given.dtype).removeprefix('torch.')} are none: give "
        f"whole numbers (B,), or rows (B, {classes}) of probabilities."
    )


def _numbers(indices: Tensor | None, count: int) -> Tensor:
    if indices is None:
        return torch.arange(count)
    numbers = torch.as_tensor(indices).long().cpu()
    if numbers.shape != (count,) or (count and int(numbers.min()) < 0):
        raise InputError(f"Give one number for each of the {count} images, not {tuple(numbers.shape)}, none below 0.")
    return numbers
