"""What a reader of data returns: splits of labelled images, and how part of one is held out.

A split knows its role. What fits, selects or tunes takes its images through `for_fitting`, which refuses test splits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from pellucid.core.data.augment import Augment, send
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

PIECE = 2**22  # pixels summed at once

Role = Literal["train", "val", "test"]  # learned from; chosen on; measured on, and nothing else
ROLES: tuple[Role, ...] = ("train", "val", "test")
S = TypeVar("S", bound="Split")


class Split(Protocol):
    """Labelled images; a `MemorySplit` holds the pixels, a `FolderSplit` the paths.

    Attributes:
        streamed: whether images are decoded when they are needed.
        role: what the images may be used for; None until they are part of a `Dataset`. A part of a split keeps it.
    """

    streamed: bool
    role: Role | None

    @property
    def labels(self) -> torch.Tensor:
        """LongTensor (N,) on the CPU."""

    @property
    def channels(self) -> int: ...

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of every image."""

    def __len__(self) -> int: ...

    def take(self, indices: torch.Tensor) -> Split:
        """The split of these items, in this order, with the same role."""

    def marked(self: S, role: Role) -> S:
        """The same images with this role."""

    def relabelled(self: S, places: torch.Tensor) -> S:
        """The same images with the label `places[i]` in place of i."""

    def fetch(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at `indices` as they are evaluated: uint8 (B, C, H, W) on the CPU."""

    def read(
        self,
        chunks: Sequence[torch.Tensor],
        *,
        device: torch.device,
        augment: Augment | None = None,
        seed: int = 0,
        epoch: int = 0,
        workers: int = 0,
    ) -> Iterator[torch.Tensor]:
        """Yield the images of each chunk of indices, uint8 (b, C, H, W) on `device`."""


class Parts(NamedTuple):
    """A data set as its reader found it; `val` is None if it has to be held out from `train`."""

    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split
    flip: bool = True


@dataclass(eq=False)
class MemorySplit:
    """uint8 images (N, C, H, W) and labels (N,) on the CPU, copied once to each device that asks for them.

    A split of more than `budget` bytes stays on the CPU, and its batches are sent one by one.
    """

    images: torch.Tensor
    labels: torch.Tensor
    budget: int = 2 * 2**30
    role: Role | None = None
    streamed: bool = field(default=False, init=False)
    _on: dict[torch.device, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    def take(self, indices: torch.Tensor) -> MemorySplit:
        return MemorySplit(self.images[indices], self.labels[indices], self.budget, self.role)

    def marked(self, role: Role) -> MemorySplit:
        return replace(self, role=role)

    def relabelled(self, places: torch.Tensor) -> MemorySplit:
        return replace(self, labels=places[self.labels])

    def fetch(self, indices: torch.Tensor) -> torch.Tensor:
        return self.images[indices]

    def read(
        self,
        chunks: Sequence[torch.Tensor],
        *,
        device: torch.device,
        augment: Augment | None = None,
        seed: int = 0,
        epoch: int = 0,
        workers: int = 0,
    ) -> Iterator[torch.Tensor]:
        """Yield plain rows: the caller augments a split in memory batch by batch."""
        if device not in self._on and self.images.nbytes <= self.budget:
            self._on[device] = self.images.to(device)
        for chunk in chunks:
            if device in self._on:
                yield self._on[device][send(chunk, device)]
            else:
                yield send(self.images[chunk], device)


def for_fitting(split: S, what: str) -> S:
    """`split`, if something may be fitted to it, selected on it or tuned on it.

    Everything that does so takes its images from here. Images without a role, as in a split that belongs to no
    `Dataset`, are taken for what the caller says they are. Data with test images alone have an empty
    training split.

    Args:
        split: the images.
        what: what is done with them, as the beginning of a sentence: "Filters are chosen".

    Raises:
        InputError: it is a test split, or part of one, or the empty training split of data that have test images
            alone.
    """
    if split.role == "test":
        raise InputError(
            f"{what} on images that accuracy is then measured on, the test split: use the training images (train) or "
            "the held-out ones (val)."
        )
    if split.role == "train" and not len(split):
        raise InputError(
            f"{what} on training images, and these data have none: name data that have, such as cifar10 or folder:PATH."
        )
    return split


def holdout(labels: torch.Tensor, fraction: float, what: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Split into sorted indices (kept, held), with round(fraction * N) held out in the classes' proportions.

    Images are assigned by largest remainder; every class keeps at least one, so that a class of one image is never held
    out. The choice depends on the labels alone, never on a training seed.

    Raises:
        InputError: nothing can be held out; the message names `what`.
    """
    rng = np.random.default_rng(seed_of("holdout"))
    sizes = np.unique(labels.numpy(), return_counts=True)[1]
    rows = np.split(np.argsort(labels.numpy(), kind="stable"), np.cumsum(sizes)[:-1])
    quota = sizes * fraction
    taken = np.minimum(np.floor(quota + 1e-9).astype(int), sizes - 1)
    tie = rng.random(len(rows))
    for index in np.lexsort((tie, taken - quota)):
        if taken.sum() < round(fraction * len(labels)) and taken[index] < sizes[index] - 1:
            taken[index] += 1
    if not taken.sum():
        raise InputError(
            f"{what}: {len(labels)} images in {len(rows)} classes are too few to hold out {fraction:g} of them; "
            "add images or give a larger fraction"
        )
    held = np.concatenate([rng.permutation(row)[:count] for row, count in zip(rows, taken, strict=True)])
    mask = np.zeros(len(labels), dtype=bool)
    mask[held] = True
    return torch.from_numpy(np.flatnonzero(~mask)), torch.from_numpy(np.flatnonzero(mask))


def moments(chunks: Iterable[torch.Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images (b, C, H, W), on the scale [0, 1].

    Sums are exact integers, so the result does not depend on how the images are divided into chunks. A constant channel
    gets the deviation 1.0, so that it is zero after normalisation.
    """
    count, total, square = 0, np.zeros(0, dtype=object), np.zeros(0, dtype=object)
    for piece in (piece for chunk in chunks for piece in chunk.split(max(1, PIECE // max(1, chunk[0].numel())))):
        wide = piece.to(torch.int32)
        first = np.array(wide.sum(dim=(0, 2, 3), dtype=torch.int64).tolist(), dtype=object)
        second = np.array((wide * wide).sum(dim=(0, 2, 3), dtype=torch.int64).tolist(), dtype=object)
        total, square = (total + first, square + second) if count else (first, second)
        count += piece.shape[0] * piece.shape[2] * piece.shape[3]
    spread = [math.sqrt(count * b - a * a) / (255 * count) for a, b in zip(total, square, strict=True)]
    return tuple(a / (255 * count) for a in total), tuple(value or 1.0 for value in spread)
