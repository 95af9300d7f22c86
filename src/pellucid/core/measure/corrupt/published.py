"""The published sets of corrupted images: CIFAR-10-C's arrays and ImageNet-C's folders (Hendrycks and Dietterich 2019).

CIFAR-10-C and CIFAR-100-C are a folder of `KIND.npy`, uint8 (5 N, H, W, 3) with the N images of severity s in rows
N (s - 1) to N s, and `labels.npy` (5 N,). ImageNet-C is `KIND/SEVERITY/CLASS/FILE`, possibly inside one folder per
family, with images that are already cropped.
"""

from __future__ import annotations

import os
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

from pellucid.core.data.folder import FolderSplit
from pellucid.core.data.matching import full_names, match
from pellucid.core.data.pictures import centre_view, decode, probe, suffixes
from pellucid.core.data.splits import MemorySplit, Split
from pellucid.core.errors import InputError, first_line
from pellucid.core.files.structured import check_regular

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class CorruptedSet:
    """A published set on disk.

    Attributes:
        path: its folder.
        places: kind -> its file or folder, in alphabetical order.
        arrays: whether kinds are .npy files.
    """

    path: Path
    places: dict[str, Path]
    arrays: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.places)

    def split(self, kind: str, severity: int, classes: Sequence[str]) -> Split:
        """The images of one kind and severity, labelled by position in `classes`; of arrays only these are read.

        Raises:
            InputError: no such kind or severity, classes that are not among `classes`, or a file that violates the
                format.
        """
        if kind not in self.places:
            raise InputError(f"{self.path} has no {kind!r}: it holds {', '.join(self.places)}.")
        if severity not in SEVERITIES:
            raise InputError(f"Severity {severity!r} is not one of 1, 2, 3, 4, 5.")
        if self.arrays:
            return _rows(self.places[kind], self.path / "labels.npy", severity, classes)
        return _folder(self.places[kind] / str(severity), classes)


def read_corrupted(path: str | os.PathLike[str]) -> CorruptedSet:
    """Open a published set of corrupted images, in either form. Nothing is unpickled.

    Raises:
        InputError: the folder holds neither form.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: name the unpacked CIFAR-10-C or ImageNet-C.")
    arrays = {file.stem: file for file in sorted(root.glob("*.npy")) if file.name != "labels.npy"}
    if arrays:
        if not (root / "labels.npy").is_file():
            raise InputError(f"{root} has arrays but no labels.npy: unpack the whole set.")
        return CorruptedSet(root, arrays, True)
    folders = [folder for folder in (*root.iterdir(), *root.glob("*/*")) if (folder / "1").is_dir()]
    if not folders:
        raise InputError(f"{root} holds neither KIND.npy with labels.npy nor KIND/SEVERITY/CLASS folders of images.")
    return CorruptedSet(root, {folder.name: folder for folder in sorted(folders, key=lambda f: f.name)}, False)


# --- arrays ---


def _rows(file: Path, labels_file: Path, severity: int, classes: Sequence[str]) -> MemorySplit:
    images, labels = _mapped(file), _mapped(labels_file)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise InputError(f"{file} holds {images.dtype} of shape {images.shape}: it needs uint8 (5 N, H, W, 3).")
    if len(images) % 5:
        raise InputError(f"{file} holds {len(images)} images, which is not a multiple of five severities.")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise InputError(
            f"{labels_file} holds {labels.dtype} of shape {labels.shape}, which does not fit {len(images)} images."
        )
    n = len(images) // 5
    part = slice(n * (severity - 1), n * severity)
    chosen = np.asarray(labels[part]).astype(np.int64)
    if chosen.min() < 0 or chosen.max() >= len(classes):
        raise InputError(
            f"{labels_file} holds labels from {chosen.min()} to {chosen.max()}, but the model has {len(classes)} "
            "classes: is it the set for another data set?"
        )
    pixels = np.ascontiguousarray(images[part].transpose(0, 3, 1, 2))
    return MemorySplit(torch.from_numpy(pixels), torch.from_numpy(chosen), role="test")


def _mapped(file: Path) -> np.ndarray:
    """The array in a .npy file, memory-mapped after a check that its header fits the size of the file."""
    check_regular(file)
    try:
        with open(file, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"its format {version} is for named fields")
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(stream)
            held = os.fstat(stream.fileno()).st_size - stream.tell()
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which could run code when read")
        if min(shape, default=1) < 0 or prod(shape) * dtype.itemsize != held:
            raise ValueError(f"it declares shape {shape} of {dtype} and holds {held} bytes")
        if not held:
            raise ValueError("it holds nothing")
        mapped: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        return mapped
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, RecursionError, tokenize.TokenError) as error:
        raise InputError(f"{file} is not an array of the published form: {first_line(error)}.") from None


# --- folders ---


class _Cropped(FolderSplit):
    """Images of `side` pixels that are used as they are."""

    def _centre(self, path: Path) -> np.ndarray:
        return centre_view(decode(path, self.channels), self.side, self.side)


def _folder(root: Path, classes: Sequence[str]) -> _Cropped:
    if not root.is_dir():
        raise InputError(f"{root} does not exist: unpack the whole set.")
    known = suffixes()
    paths: list[Path] = []
    labels: list[int] = []
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    places = match([folder.name for folder in folders], len(classes), listed=full_names(classes), data=str(root)).places
    for place, folder in zip(places, folders, strict=True):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in known)
        paths += files
        labels += [place] * len(files)
    if not paths:
        raise InputError(f"{root} holds no image: unpack the whole set.")
    height, width, grey = probe(paths[0])
    return _Cropped(root, tuple(paths), torch.tensor(labels), 1 if grey else 3, min(height, width), "test")
