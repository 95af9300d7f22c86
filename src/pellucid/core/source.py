"""What a user names on a command line, a model and a data set, made into values that fit each other."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pellucid.core.checkpoint import load
from pellucid.core.data import Dataset
from pellucid.core.data import load as load_data
from pellucid.core.errors import InputError
from pellucid.core.run import Run
from pellucid.core.settings import TrainSettings


@dataclass(frozen=True)
class Source:
    """A model in evaluation mode, on the CPU, the data to look at it with, and the run it comes from, if any."""

    model: nn.Module
    dataset: Dataset
    run: Run | None


def open_source(
    path: str | os.PathLike[str],
    data: str | None = None,
    *,
    model: str | None = None,
    image_size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Source:
    """Load the model at `path` (run folder or checkpoint) and its data.

    Args:
        path: as in `checkpoint.load`.
        data: a name as in `data.load`; default what the run was trained on.
        model: architecture of a foreign checkpoint.
        image_size: side in pixels that images are resized to; default what the model was trained on, or for a foreign
            checkpoint the data's own size.
        mean, std: normalisation of the input for a checkpoint that does not know its own, one number a channel.

    Raises:
        InputError: nothing there, no data named, or a normalisation given twice or not fitting.
    """
    network = load(path, model)
    run = Run(path) if (Path(path) / "settings.yaml").is_file() else None
    if data is None and run is None:
        raise InputError(f"{os.fspath(path)!r} does not say what it was trained on: name data with --data.")
    settings = run.settings if run is not None and data in (None, run.settings.data) else TrainSettings()
    if image_size is None and model is None:
        trained_on = (getattr(network, "description", None) or {}).get("image_size")
        if trained_on and trained_on[0] == trained_on[1]:
            image_size = trained_on[0]
    dataset = load_data(
        data or settings.data,
        image_size=image_size,
        val_fraction=settings.val_fraction,
        memory_budget=int(settings.memory_gb * 2**30),
    )
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: give both.")
    if mean is not None and std is not None:
        if getattr(network, "normalization", None):
            raise InputError(f"{os.fspath(path)!r} knows its own mean and std: leave out --mean and --std.")
        if len(mean) != dataset.channels or len(std) != dataset.channels:
            raise InputError(f"--mean and --std need {dataset.channels} numbers each, one a channel of {dataset.name}.")
        if not all(math.isfinite(v) for v in [*mean, *std]) or min(std) <= 0:
            raise InputError(f"--mean {mean} and --std {std} must be finite, and --std above 0.")
        network.normalization = {"mean": mean, "std": std}  # type: ignore[assignment]
    return Source(network, dataset, run)
