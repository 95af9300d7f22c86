"""A folder of synthesised images: class folders that any tool reads, and a record of how they were made.

synthesis.json          settings, classes in the order of the labels, the network's fingerprint and normalisation
<class>/<class>_<index>_seed<seed>.png
labels.safetensors      the network's `logits` (N, K), float32, and the `labels` (N,), in the order of the index
.batches/               until it is complete: one file per finished batch, with its pixels and logits

A batch is finished once its file is complete; pictures and `labels.safetensors` are made from these files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.core.data.folder import SPLIT_NAMES, FolderSplit, threaded
from pellucid.core.data.pictures import decode, probe, suffixes, whole_view
from pellucid.core.data.splits import MemorySplit
from pellucid.core.errors import InputError, shown
from pellucid.core.facts import facts
from pellucid.core.files.structured import read_json
from pellucid.core.files.tensors import read_tensors
from pellucid.core.terminal import track

MANIFEST, LABELS, BATCHES = "synthesis.json", "labels.safetensors", ".batches"


@dataclass(frozen=True)
class ImageFolder:
    """All images of a folder.

    Attributes:
        path: the folder.
        files: paths of the images.
        split: reads them, with their labels.
        classes: names in label order.
        logits: (N, K) of the network that they were made from, where `synthesize` completed the folder; else None.
        manifest: what `synthesis.json` holds; empty in a folder of another tool.
    """

    path: Path
    files: tuple[Path, ...]
    split: MemorySplit | FolderSplit
    classes: tuple[str, ...]
    logits: Tensor | None
    manifest: dict[str, Any]

    @property
    def side(self) -> int | None:
        """Side in pixels of the images where they are square, to which real ones are resized; else None."""
        height, width = self.split.image_size
        return height if height == width else None

    def names(self) -> list[str]:
        """The images' paths below the folder, with `/` on every system."""
        return [file.relative_to(self.path).as_posix() for file in self.files]


def read(path: str | os.PathLike[str], *, budget: int = 2 * 2**30) -> ImageFolder:
    """Every image under the class folders of `path`, whether made by `synthesize` or by another tool.

    Args:
        path: the folder.
        budget: bytes up to which images of one size are kept in memory; others stream, resized to the smallest side.

    Raises:
        InputError: no folder, fewer than two class folders, no image, or a manifest that does not fit them.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if not path.is_dir():
        raise InputError(f"{str(path)!r} is not a folder: give one that holds a folder of images per class.")
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if names and set(names) <= SPLIT_NAMES:
        raise InputError(f"{str(path)!r} holds {', '.join(names)}: give the folder of the classes itself.")
    classes = tuple(manifest.get("classes", names))
    if len(classes) < 2:
        raise InputError(f"{str(path)!r} holds {len(classes)} class folders of images: it needs at least two.")
    if extra := sorted(set(names) - set(classes)):
        raise InputError(f"{str(path / extra[0])!r} is not a class of {str(path / MANIFEST)!r}: remove that folder.")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(file for file in (path / name).glob("**/*") if file.suffix.lower() in suffixes())
        files += [file for file in found if file.name[0] != "."]
        labels += [label] * (len(files) - len(labels))
    if not files:
        raise InputError(f"{str(path)!r} holds no image in any of its class folders: finish the synthesis first.")
    split, logits = _split(path, files, labels, budget), _logits(path, files, len(classes))
    return ImageFolder(path, tuple(files), split, classes, logits, manifest)


def _split(path: Path, files: list[Path], labels: list[int], budget: int) -> MemorySplit | FolderSplit:
    headers = threaded(probe, files, "reading image headers")
    channels = 1 if all(grey for _, _, grey in headers) else 3
    sizes = {(height, width) for height, width, _ in headers}
    height, width = min(sizes)
    if len(sizes) == 1 and len(files) * channels * height * width <= budget:
        pixels = [whole_view(decode(file, channels)) for file in track(files, len(files), "decoding images")]
        return MemorySplit(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), budget)
    return FolderSplit(path, tuple(files), torch.tensor(labels), channels, min(min(size) for size in sizes))


def _logits(path: Path, files: Sequence[Path], classes: int) -> Tensor | None:
    """Stored logits (N, K) in the order of `files`; None unless every file has its own."""
    if not (path / LABELS).is_file():
        return None
    logits = stored(path / LABELS, {"logits": (torch.float32, 2)})["logits"]
    if logits.shape[1] != classes:
        raise InputError(
            f"{str(path / LABELS)!r} holds logits of {logits.shape[1]} classes and the folder has {classes}: delete it."
        )
    try:
        rows = [index_of(file) for file in files]
    except (ValueError, IndexError):  # pictures that somebody added or renamed
        return None
    return logits[torch.tensor(rows)] if all(0 <= row < len(logits) for row in rows) else None


def stored(file: Path, form: Mapping[str, tuple[torch.dtype, int]]) -> dict[str, Tensor]:
    """The tensors of a safetensors file of ours.

    Args:
        file: its path.
        form: name of a tensor -> its type and number of axes; all have the same length.

    Raises:
        InputError: the file is damaged, or its tensors are others.
    """
    tensors, _ = read_tensors(file)
    for name, (dtype, axes) in form.items():
        if name not in tensors or tensors[name].dtype != dtype or tensors[name].ndim != axes:
            raise InputError(f"{str(file)!r} is damaged: it holds no {name} of the right form. Delete it.")
    if len({len(tensors[name]) for name in form}) > 1:
        raise InputError(f"{str(file)!r} is damaged: its tensors differ in length. Delete it.")
    return tensors


def index_of(file: Path) -> int:
    """The index in the file name of a synthesised image."""
    return int(file.stem.rsplit("_", 2)[1])


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `synthesis.json` in the folder `path` holds; empty where there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    file = Path(path) / MANIFEST
    if not file.is_file():
        return {}
    manifest = read_json(file, {"classes": list[str], "settings": dict[str, Any] | None})
    if odd := [name for name in manifest["classes"] if not is_folder_name(name)]:
        raise InputError(f"{str(file)!r} is damaged: its class {shown(odd[0])} cannot be the name of a folder.")
    if len(set(manifest["classes"])) < len(manifest["classes"]):
        raise InputError(f"{str(file)!r} is damaged: it names a class twice.")
    return manifest


def is_folder_name(name: str) -> bool:
    """Whether a class can be a folder of this name, as `folder:PATH` reads it too."""
    return bool(name) and name[0] != "." and not set(name) & {"/", "\\", "\0"} and name.lower() not in SPLIT_NAMES


def class_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """The model's class names, or else class numbers with leading zeros, so that sorting keeps their order."""
    names = facts(model).classes or tuple(f"{label:0{len(str(count - 1))}d}" for label in range(count))
    if odd := [name for name in names if not is_folder_name(name)]:
        raise InputError(f"The class {odd[0]!r} cannot be the name of a folder: rename it in the checkpoint.")
    return names


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names and values in the model's state dict."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
