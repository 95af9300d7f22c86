"""Which class each image is searched for: as Python code says it, and as words of a command line do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

TARGET_KINDS = ("balanced", "random")


def class_targets(targets: object, classes: int, indices: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """The targets of `invert` as numbers (B,) of the images and distributions (B, K) over the classes.

    Args:
        targets: classes (a sequence or tensor of whole numbers); distributions (B, K); ("balanced", n): image i has
            class i modulo K; or ("random", n): a class drawn from the seed and the image's number.
        classes: K.
        indices: the images' numbers; default 0, 1, ...
        seed: of random classes.

    Raises:
        InputError: none of these, a class that the network does not have, or a row that is not a distribution.
    """
    if isinstance(targets, tuple) and len(targets) == 2 and isinstance(targets[0], str):
        kind, count = targets
        if kind not in TARGET_KINDS or not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"Unknown targets {targets!r}: give ('balanced', n) or ('random', n) with n at least 1.")
        numbers = _numbers(indices, count)
        labels = numbers % classes if kind == "balanced" else _random_classes(numbers, classes, seed)
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
            raise InputError("Soft targets must be distributions: no entry below 0, and every row summing to 1.")
        return _numbers(indices, len(given)), rows
    raise InputError(
        f"Targets of shape {tuple(given.shape)} and type {str(given.dtype).removeprefix('torch.')} cannot be used: "
        f"give whole numbers (B,), or rows (B, {classes}) of probabilities."
    )


def targets_named(words: Sequence[str] | None, count: int | None, classes: Sequence[str], seed: int) -> Tensor:
    """The class (B,) of each image, as the words after --targets say.

    Args:
        words: "balanced" (the default) or "random", or classes by name or number.
        count: how many images; default 64, or one for each class named.
        classes: all classes of the network.
        seed: of random classes.

    Raises:
        InputError: a count below 1, or a class that the network does not have.
    """
    if count is not None and count < 1:
        raise InputError(f"--count {count} is out of range: give at least 1.")
    words = list(words or ["balanced"])
    if words == ["balanced"]:
        return torch.arange(count or 64) % len(classes)
    if words == ["random"]:
        return _random_classes(torch.arange(count or 64), len(classes), seed)
    chosen = []
    for word in words:
        if word in classes:
            chosen.append(classes.index(word))
        elif word.isdecimal() and int(word) < len(classes):
            chosen.append(int(word))
        else:
            shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise InputError(f"--targets {word!r} is not a class of this model: give balanced, random, {shown}.")
    return torch.tensor([chosen[n % len(chosen)] for n in range(count or len(chosen))])


def _random_classes(numbers: Tensor, classes: int, seed: int) -> Tensor:
    """A class for each image number, a function of the seed and that number."""
    return torch.tensor([seed_of("target", seed, number) % classes for number in numbers.tolist()])


def _numbers(indices: Tensor | None, count: int) -> Tensor:
    if indices is None:
        return torch.arange(count)
    numbers = torch.as_tensor(indices).long().cpu()
    if numbers.shape != (count,) or (count and int(numbers.min()) < 0):
        raise InputError(
            f"indices {tuple(numbers.shape)} must hold one number for each of the {count} images, none below 0."
        )
    return numbers
