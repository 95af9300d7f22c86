"""The networks that a user names: a run, a checkpoint, a foreign one as MODEL=FILE, or an architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pellucid.core.errors import InputError
from pellucid.core.network.checkpoint import load
from pellucid.core.source import build_fresh, is_architecture


def open_network(
    name: str,
    model: str | None = None,
    *,
    norm: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
) -> nn.Module:
    """The network `name`, in evaluation mode.

    Args:
        name: run folder, checkpoint, MODEL=FILE of a foreign checkpoint, or the name of an architecture, which gets
            random weights, ten classes and images of three channels.
        model: architecture of a foreign checkpoint, in place of MODEL=.
        norm: `mean` and `std` of its input, a number a channel, where it does not know its own.
        seed: of random weights.

    Raises:
        InputError: nothing there, or it does not say how its input is normalised, nor does `norm`.
    """
    architecture, given, path = name.partition("=")
    fresh = is_architecture(name)
    if given and not Path(name).exists():
        network = load(path, architecture)
    elif fresh:
        network = build_fresh(name, 10, 3, None, seed).eval()
    else:
        network = load(name, model)
    own: Any = getattr(network, "normalization", None)
    if own is None and norm is None and fresh:
        channels = vars(network)["description"]["in_channels"]
        own = {"mean": [0.5] * channels, "std": [0.25] * channels}  # random weights: any will do
    if own is None and norm is None:
        raise InputError(f"{name!r} does not say how its input is normalised: give --mean and --std.")
    vars(network)["normalization"] = own or dict(norm or {})
    return network


def built(
    name: str, model: str | None, mean: Sequence[float] | None, std: Sequence[float] | None, seed: int
) -> nn.Module | str:
    """The network that an architecture's name or MODEL=FILE stands for, as `open_network` has it; a path as it is."""
    if Path(name).exists() or not (is_architecture(name) or "=" in name):
        return name
    if model is not None:
        raise InputError(f"{name!r} names its architecture already: leave out the other, {model!r}.")
    norm = None if mean is None or std is None else {"mean": list(mean), "std": list(std)}
    return open_network(name, norm=norm, seed=seed)


def normalization(mean: list[float] | None, std: list[float] | None) -> dict[str, list[float]] | None:
    """What the flags --mean and --std say, checked."""
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: give both.")
    if mean is None or std is None:
        return None
    if len(mean) != len(std) or not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
        raise InputError(f"--mean {mean} and --std {std} must be as many finite numbers, and --std above 0.")
    return {"mean": mean, "std": std}
