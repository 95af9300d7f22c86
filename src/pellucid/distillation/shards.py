"""The files of a synthesis: one per finished batch while the folder grows, and what they become in the end."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.files.atomic import write_atomic
from pellucid.distillation.features import logits_of
from pellucid.distillation.folder import BATCHES, LABELS, stored
from pellucid.inversion import export
from pellucid.inversion.optimize import Inversion

# What the file of a batch holds: type and number of axes.
BATCH = {
    "pixels": (torch.uint8, 4),
    "logits": (torch.float32, 2),
    "labels": (torch.int64, 1),
    "indices": (torch.int64, 1),
}


def shard(path: Path, number: int) -> Path:
    """The file of a batch; the batch is finished once the file is there."""
    return path / BATCHES / f"{number:06d}.safetensors"


def keep(
    path: Path,
    number: int,
    made: Inversion,
    labels: Tensor,
    names: Sequence[str],
    seed: int,
    model: nn.Module,
    *,
    weights: Tensor | None,
) -> None:
    """Write a finished batch: first its file, which decides, then the pictures.

    Args:
        path: the folder.
        number: of the batch.
        made: its images.
        labels: their classes (B,).
        names: of all classes.
        seed: as in `synthesize`.
        model: the network that they came from, whose logits are stored.
        weights: of the generator that drew them, where further batches start from it.
    """
    from safetensors.torch import save

    pixels = (255 * made.images.clamp(0, 1)).round().byte().cpu()
    content = {"pixels": pixels, "logits": logits_of(model, pixels), "labels": labels, "indices": made.numbers}
    if weights is not None:
        content["weights"] = weights
    write_atomic(shard(path, number), save(content))
    _write_pictures(path, pixels, labels, made.numbers, names, seed)


def generator_weights(path: Path) -> Tensor:
    """The generator's weights that were found for the first batch."""
    return stored(shard(path, 0), {"weights": (torch.float32, 1)})["weights"]


def finish(path: Path, count: int, targets: Tensor, names: Sequence[str], seed: int) -> None:
    """Complete the folder from the files of all `count` batches, which are removed.

    Pictures that a killed process left out are written first, then the soft labels.
    """
    from safetensors.torch import save

    logits: list[Tensor] = []
    for number in range(count):
        file = shard(path, number)
        batch = stored(file, BATCH)
        if len(batch["labels"]) and not 0 <= int(batch["labels"].min()) <= int(batch["labels"].max()) < len(names):
            raise InputError(f"{str(file)!r} is damaged: its labels are not classes. Delete it.")
        _write_pictures(path, batch["pixels"], batch["labels"], batch["indices"], names, seed)
        logits.append(batch["logits"])
    write_atomic(path / LABELS, save({"logits": torch.cat(logits), "labels": targets}))
    shutil.rmtree(path / BATCHES)


def stored_labels(path: Path) -> tuple[Tensor, Tensor]:
    """The logits (N, K) and labels (N,) of a complete folder."""
    kept = stored(path / LABELS, {"logits": (torch.float32, 2), "labels": (torch.int64, 1)})
    return kept["logits"], kept["labels"]


def _write_pictures(
    path: Path, pixels: Tensor, labels: Tensor, indices: Tensor, names: Sequence[str], seed: int
) -> None:
    for image, label, index in zip(pixels, labels.tolist(), indices.tolist(), strict=True):
        file = path / names[label] / export.file_name(names[label], index, seed)
        if not file.is_file():
            write_atomic(file, export.png(image / 255))
