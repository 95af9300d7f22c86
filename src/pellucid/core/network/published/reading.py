"""What the readers of published checkpoints share: sizes, names and arguments, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pellucid.core.errors import InputError, shown
from pellucid.core.facts import Normalization

CIFAR10 = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # as most projects round it
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def arguments(prefix: str, args: Mapping[str, Any], allowed: Mapping[str, str]) -> dict[str, Any]:
    """`args` as a dict, if all of them are in `allowed`, a table from names to their meaning.

    Raises:
        InputError: another argument; the message lists those that the project `prefix` takes.
    """
    for name in args:
        if name not in allowed:
            takes = ", ".join(f"{key} ({meaning})" for key, meaning in allowed.items()) or "no arguments"
            raise InputError(f"{prefix} has no argument {shown(name, 40)}: it takes {takes}.")
    return dict(args)


def image_side(prefix: str, name: str, size: tuple[int, int], smallest: int) -> None:
    """Raise InputError for images that are smaller than `smallest` pixels a side."""
    if min(size) < smallest:
        raise InputError(f"{prefix}:{name} needs images of at least {smallest} pixels a side, not {size[0]}x{size[1]}.")


def described(
    title: str, state: Mapping[str, Tensor], stem: str, head: str, image_size: tuple[int, int]
) -> dict[str, Any]:
    """Classes and channels of a published network, read from the shapes of its first and last weight.

    Raises:
        InputError: there is no such tensor.
    """
    for name in (stem, head):
        if name not in state or state[name].ndim < 2:
            raise InputError(f"These weights are not a {title}: they have no tensor {name!r} of the right kind.")
    return {
        "num_classes": state[head].shape[0],
        "in_channels": state[stem].shape[1],
        "image_size": list(image_size),
    }


def renamed(state: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """`state` with each rule, a pattern and its replacement, applied to the names in turn."""
    found = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        found[key] = value
    return found
