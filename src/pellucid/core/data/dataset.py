"""Data sets by name: `digits`, `cifar10[:PATH]`, `cifar100[:PATH]`, `folder:PATH`, `npz:PATH`, `test:PATH`."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pellucid.core.data import cifar, folder, npz
from pellucid.core.data.digits import read_digits
from pellucid.core.data.folder import FolderSplit
from pellucid.core.data.splits import ROLES, MemorySplit, Split, for_fitting, holdout, moments
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization
from pellucid.core.seeds import seed_of

GIVEN = "given"  # how settings record a `Dataset` that Python code handed over: given:NAME@FINGERPRINT
FORMS = ("digits", "cifar10[:PATH]", "cifar100[:PATH]", "folder:PATH", "npz:PATH", "test:PATH")
SAMPLE = 2000  # images from which the mean and deviation of a streamed training set are estimated


@dataclass(frozen=True)
class Dataset:
    """A data set with its three splits, each of which knows its role from here on.

    A split that has a role already keeps it, so that part of a test split remains one.

    Attributes:
        name: as the user typed it.
        classes: names in label order.
        channels: channels of the images.
        image_size: (H, W) of the images that `batches` yields.
        train, val, test: the splits.
        mean, std: of the training split's pixels in [0, 1], per channel; a constant channel has std 1. Empty without
            training images.
        flip: whether a horizontal flip keeps the label; False for digits and for grey arrays.
        fingerprint: SHA-256 over the splits' pixels and labels; for a streamed folder, over its files' relative paths,
            sizes and labels.

    Raises:
        InputError: `train` or `val` is part of a test split.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    train: Split
    val: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    fingerprint: str

    def __post_init__(self) -> None:
        for role in ROLES:
            split = getattr(self, role)
            if split.role is None:
                object.__setattr__(self, role, split.marked(role))
            elif role != "test" and split.role == "test":
                for_fitting(split, "A network is trained" if role == "train" else "The best epoch is chosen")

    @property
    def normalization(self) -> Normalization:
        """`mean` and `std`, as one value.

        Raises:
            InputError: there are no training images to take them from.
        """
        if not self.mean:
            raise InputError(
                f"It is not known how the network's input is normalised, and {self.name} has no training images to "
                "take a mean and standard deviation from: give --mean and --std."
            )
        return Normalization(self.mean, self.std)

    @property
    def absent(self) -> tuple[int, ...]:
        """The labels of classes without an image in any split, as of a network that has more classes than its data."""
        counts = torch.cat([self.part(role).labels for role in ROLES]).bincount(minlength=len(self.classes))
        return tuple((counts == 0).nonzero().flatten().tolist())

    @property
    def kind(self) -> str:
        """What its name begins with, before a colon: "digits", "folder", "test", ..."""
        return self.name.partition(":")[0]

    def part(self, split: str) -> Split:
        """The split called "train", "val" or "test".

        Raises:
            InputError: another name.
        """
        if split not in ROLES:
            raise InputError(f"There is no split {split!r}: choose train, val or test.")
        return getattr(self, split)


def load_data(
    name: str,
    *,
    image_size: int | None = None,
    val_fraction: float = 0.1,
    download: bool = False,
    memory_budget: int = 2 * 2**30,
    large_side: int | None = None,
) -> Dataset:
    """Read a data set; its splits never depend on the seed of a training run.

    Args:
        name: "digits" (8x8 grey, from scikit-learn, 1347 + 450 images), "cifar10[:PATH]" or "cifar100[:PATH]" (default
            PATH: $PELLUCID_DATA or ./data), "folder:PATH" (class folders), "npz:PATH" (MedMNIST's keys), or "test:PATH"
            (class folders or an .npz file of test images alone, to which nothing is fitted).
        image_size: resize the shorter side to this many pixels and cut out the centre; None keeps small images as they
            are and streams large ones at 224.
        val_fraction: fraction of the training images to hold out, in the classes' proportions, if the source has no
            validation split of its own; above 0 and below 0.5.
        download: fetch a missing CIFAR archive.
        memory_budget: bytes up to which a folder is decoded into memory and a split is kept on the device.
        large_side: without `image_size`, the side that a folder's images are resized to if they are larger or differ
            in size; default 224, and only for images that are streamed.

    Raises:
        InputError: anything that cannot be used; the message names the file or value.
    """
    if not 0 < val_fraction < 0.5:
        raise InputError(f"val_fraction is {val_fraction:g}; it must be above 0 and below 0.5")
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is {image_size}; it counts pixels and must be at least 1")
    kind, _, text = name.partition(":")
    if kind == GIVEN:
        raise InputError(
            f"The data {text.rpartition('@')[0]!r} were handed over in Python and cannot be read by name: pass the "
            "same Dataset again with data=, or name other data with --data."
        )
    path = Path(text or os.environ.get("PELLUCID_DATA") or "data").expanduser()
    if name == "digits":
        parts = read_digits(memory_budget)
    elif kind in cifar.SOURCES:
        parts = cifar.read(kind, path, download=download, budget=memory_budget)
    elif kind == "folder" and text:
        parts = folder.read(path, image_size=image_size, budget=memory_budget, large_side=large_side)
    elif kind == "npz" and text:
        parts = npz.read(path, memory_budget)
    elif kind == "test" and text and path.suffix == ".npz":
        parts = npz.read_test(path, memory_budget)
    elif kind == "test" and text:
        parts = folder.read_test(path, image_size=image_size, budget=memory_budget, large_side=large_side)
    else:
        raise _unknown(name, kind)

    if len(parts.classes) < 2 and kind != "test":
        raise InputError(f"{name} has only the class {parts.classes[0]}; a classifier needs at least two")
    train, val, test, flip = parts.train, parts.val, parts.test, parts.flip
    if val is None:
        kept, held = holdout(train.labels, val_fraction, name)
        train, val = train.take(kept), train.take(held)
    if image_size is not None and train.image_size != (image_size, image_size):
        train, val, test = (_resized(split, image_size, name) for split in (train, val, test))
    mean, std = moments(_sample(train)) if len(train) else ((), ())
    return Dataset(
        name, parts.classes, test.channels, test.image_size, train, val, test, mean, std, flip,
        _fingerprint(parts.classes, (train, val, test)),
    )  # fmt: skip


def _unknown(name: str, kind: str) -> InputError:
    kinds = [form.split("[")[0].split(":")[0] for form in FORMS]
    near = difflib.get_close_matches(kind.lower(), kinds, n=1)
    if Path(name).expanduser().exists():
        hint = f" (did you mean {'npz' if Path(name).suffix == '.npz' else 'folder'}:{name}?)"
    elif near:
        hint = f" (did you mean {FORMS[kinds.index(near[0])]}?)"
    else:
        hint = ""
    return InputError(f"data set {name!r} is unknown{hint}; give one of {', '.join(FORMS)}")


def _resized(split: Split, side: int, name: str) -> MemorySplit:
    """Resize the shorter side to `side`, bilinear with antialiasing, and cut out the centre."""
    assert isinstance(split, MemorySplit)
    if (size := len(split) * split.channels * side * side) > split.budget:
        raise InputError(
            f"{name} at {side}x{side} pixels takes {size} bytes and the memory budget is {split.budget}; "
            "give a smaller image_size"
        )
    height, width = split.image_size
    scale = side / min(height, width)
    size_ = (max(side, round(height * scale)), max(side, round(width * scale)))
    top, left = (size_[0] - side) // 2, (size_[1] - side) // 2
    images = torch.empty(len(split), split.channels, side, side, dtype=torch.uint8)
    for out, chunk in zip(images.split(1024), split.images.split(1024), strict=True) if len(split) else ():
        wide = torch.nn.functional.interpolate(chunk, size_, mode="bilinear", antialias=True)
        out.copy_(wide[:, :, top : top + side, left : left + side])
    return MemorySplit(images, split.labels, split.budget, split.role)


def _sample(split: Split) -> Iterator[torch.Tensor]:
    """The pixels from which the mean and deviation are computed: all that are in memory, or a seeded sample."""
    if isinstance(split, MemorySplit):
        yield split.images
    else:
        rng = np.random.default_rng(seed_of("moments"))
        rows = np.sort(rng.permutation(len(split))[:SAMPLE])
        yield split.fetch(torch.from_numpy(rows))


def _fingerprint(classes: tuple[str, ...], splits: tuple[Split, ...]) -> str:
    digest = hashlib.sha256(repr((classes, splits[0].image_size)).encode())
    for split in splits:
        digest.update(split.labels.numpy().tobytes())
        if isinstance(split, MemorySplit):
            digest.update(repr(tuple(split.images.shape)).encode())
            digest.update(split.images.numpy().data)
        elif isinstance(split, FolderSplit):
            listing = [f"{path.relative_to(split.root).as_posix()} {path.stat().st_size}" for path in split.paths]
            digest.update("\n".join(listing).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
