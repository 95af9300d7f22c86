"""Images that are in two splits: exact copies, which a network may have learned by heart.

Two images in memory are equal if their pixels (uint8) and their shape are. Two image files of streamed folders are
equal if their bytes are, which is cheaper than to decode them and overlooks a picture stored anew; only files whose
size occurs in both splits are read. Of a split in memory and a streamed one, pixels are compared as they are evaluated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pellucid.core.data.dataset import Dataset
from pellucid.core.data.folder import FolderSplit
from pellucid.core.data.splits import MemorySplit, Split

CHUNK = 512  # images that are decoded at once


@dataclass(frozen=True, eq=False)
class Copies:
    """Which images of a split are exact copies of images of another.

    Attributes:
        indices: int64 (n,), their positions in the split, ascending.
        total: the number of images of the split.
    """

    indices: torch.Tensor
    total: int

    @property
    def number(self) -> int:
        """How many they are."""
        return len(self.indices)


def copies(split: Split, of: Split) -> Copies:
    """The images of `split` that are exact copies of images of the split `of`, whatever their labels.

    60,000 images of CIFAR take about half a second.
    """
    if not len(split) or not len(of):
        return Copies(torch.zeros(0, dtype=torch.int64), len(split))
    if isinstance(split, FolderSplit) and isinstance(of, FolderSplit):
        found = _equal_files(split, of)
    else:
        known = set(_digests(of))
        found = [digest in known for digest in _digests(split)]
    return Copies(torch.tensor(found).nonzero().flatten(), len(split))


def copies_in(dataset: Dataset) -> dict[str, int]:
    """How many images of the splits "val" and "test" are exact copies of training images."""
    return {name: copies(dataset.part(name), dataset.train).number for name in ("val", "test")}


def _digests(split: Split) -> Iterator[bytes]:
    """One per image, of its shape and pixels."""
    if isinstance(split, MemorySplit):
        chunks: Iterator[torch.Tensor] = iter([split.images])
    else:
        chunks = (split.fetch(rows) for rows in torch.arange(len(split)).split(CHUNK))
    for images in chunks:
        shape = hashlib.blake2b(repr(tuple(images.shape[1:])).encode(), digest_size=16)
        for image in images.contiguous().numpy():
            digest = shape.copy()
            digest.update(image.data)
            yield digest.digest()


def _equal_files(split: FolderSplit, of: FolderSplit) -> list[bool]:
    sizes, others = ([path.stat().st_size for path in part.paths] for part in (split, of))
    shared = set(sizes) & set(others)
    known = {_file_digest(of, row) for row, size in enumerate(others) if size in shared}
    return [size in shared and _file_digest(split, row) in known for row, size in enumerate(sizes)]


def _file_digest(split: FolderSplit, row: int) -> bytes:
    return hashlib.blake2b(split.paths[row].read_bytes(), digest_size=16).digest()
