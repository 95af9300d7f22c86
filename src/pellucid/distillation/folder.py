"""A folder of synthesised images: class folders that any tool reads, and a record of how they were made.

synthesis.json          settings, classes in the order of the labels, the network's fingerprint and normalisation
<class>/<class>_<index>_seed<seed>.png
labels.safetensors      the network's `logits` (N, K), float32, and the `labels` (N,), in the order of the index
.batches/               until it is complete: one file per finished batch, with its pixels and logits

A batch is finished once its file is complete; pictures and `labels.safetensors` are made from these files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.core.data.folder import SPLIT_NAMES, FolderSplit, threaded
from pellucid.core.data.pictures import decode, probe, suffixes, whole_view
from pellucid.core.data.splits import MemorySplit
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
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
    return ImageFolder(path, tuple(files), _split(path, files, labels, budget), classes, _logits(path, files), manifest)


def _split(path: Path, files: list[Path], labels: list[int], budget: int) -> MemorySplit | FolderSplit:
    headers = threaded(probe, files, "reading image headers")
    channels = 1 if all(grey for _, _, grey in headers) else 3
    sizes = {(height, width) for height, width, _ in headers}
    height, width = min(sizes)
    if len(sizes) == 1 and len(files) * channels * height * width <= budget:
        pixels = [whole_view(decode(file, channels)) for file in track(files, len(files), "decoding images")]
        return MemorySplit(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), budget)
    return FolderSplit(path, tuple(files), torch.tensor(labels), channels, min(min(size) for size in sizes))


def _logits(path: Path, files: Sequence[Path]) -> Tensor | None:
    """Stored logits (N, K) in the order of `files`; None unless every file has its own."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (path / LABELS).is_file():
        return None
    try:
        logits = load_file(path / LABELS)["logits"]
        return logits[torch.tensor([index_of(file) for file in files])]
    except (SafetensorError, KeyError, OSError) as error:
        raise InputError(f"{str(path / LABELS)!r} is damaged ({type(error).__name__}): delete it.") from None
    except (ValueError, IndexError):  # pictures that somebody added or renamed
        return None


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
    try:
        manifest = json.loads(file.read_text())
        classes = manifest["classes"]
        if not all(isinstance(name, str) and is_folder_name(name) for name in classes):
            raise ValueError("its classes cannot be names of folders")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{str(file)!r} is damaged ({error}): delete the folder and synthesise again.") from None
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
