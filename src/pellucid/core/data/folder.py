"""`folder:PATH`, `test:PATH`: image files in class folders, in memory when they are small and alike, else streamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import Self

from pellucid.core.data.augment import Augment, send
from pellucid.core.data.pictures import centre_view, decode, probe, random_view, suffixes, whole_view
from pellucid.core.data.policy import apply_policy, policy_seeds
from pellucid.core.data.splits import MemorySplit, Parts, Role, holdout
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of
from pellucid.core.terminal import track

T = TypeVar("T")
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
LARGEST_RESIZED = 96  # pixels; up to this side, images are resized once, at load
STREAM_SIDE = 224
SMALL = 96 * 96  # pixels; below, decoding is mostly Python, and threads slow it down (1.6 times at 32x32)
TEST_FRACTION = 0.2
Files = tuple[list[Path], torch.Tensor]  # paths and labels of a split


def read(path: Path, *, image_size: int | None, budget: int, large_side: int | None = None) -> Parts:
    """Read `train/` with `val/`, `test/` or both, each with one folder per class; or the class folders themselves, of
    which a fixed stratified 20 % become the test set. If only `val/` is there, it is the test set.

    Images are grey if all files are, else RGB. They are decoded into memory if they fit into `budget` bytes and either
    all have one size or `image_size` is at most 96 (shorter side resized, centre cut out). Otherwise they are streamed
    at `image_size`, by default 224. `large_side` takes the place of `image_size` for images that are larger or differ
    in size.
    """
    classes, files = _layout(path)
    parts = _splits(path, files, image_size, budget, large_side)
    return Parts(classes, parts["train"], parts.get("val"), parts["test"])


def read_test(path: Path, *, image_size: int | None, budget: int, large_side: int | None = None) -> Parts:
    """Read a folder that holds one folder per class, at least one, of test images alone; sizes as in `read`."""
    if not path.is_dir():
        raise InputError(f"{path} is no folder; test:PATH takes one with a folder of images per class, or an .npz file")
    classes = _folders(path)
    if not classes:
        raise InputError(f"{path} holds no class folder; test:PATH takes a folder with a folder of images per class")
    if {name.lower() for name in classes} <= SPLIT_NAMES:
        raise InputError(
            f"{path} holds {', '.join(classes)}, not classes; name the folder of test images, as in "
            f"test:{path / classes[-1]}, or all of them as folder:{path}"
        )
    files = {"test": _files(path, classes, complete=False)}
    test = _splits(path, files, image_size, budget, large_side)["test"]
    none = test.take(torch.arange(0))
    return Parts(classes, none, none, test)


def _splits(
    path: Path, files: dict[str, Files], image_size: int | None, budget: int, large_side: int | None
) -> dict[str, MemorySplit | FolderSplit]:
    every = [file for paths, _ in files.values() for file in paths]
    headers = threaded(probe, every, "reading image headers")
    channels = 1 if all(grey for _, _, grey in headers) else 3
    sizes = {(height, width) for height, width, _ in headers}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    if image_size is None and large_side is not None and (size is None or min(size) > large_side):
        image_size = large_side
    if image_size is not None and size != (image_size, image_size):
        size = (image_size, image_size) if image_size <= LARGEST_RESIZED else None
    if size is not None and len(every) * channels * size[0] * size[1] <= budget:
        whole = len(sizes) == 1 and size in sizes

        def pixels(file: Path) -> np.ndarray:
            image = decode(file, channels)
            return whole_view(image) if whole else centre_view(image, size[0], size[0])

        return {
            kind: MemorySplit(_decoded(paths, pixels, (channels, *size)), labels, budget)
            for kind, (paths, labels) in files.items()
        }
    side = image_size or min((STREAM_SIDE, *(size or ())))
    return {kind: FolderSplit(path, tuple(paths), labels, channels, side) for kind, (paths, labels) in files.items()}


def resized_side(side: int) -> int:
    """The length to which the shorter side is resized before `side` x `side` pixels are cut out of the centre."""
    return round(side * 256 / 224)


@dataclass(eq=False)
class FolderSplit:
    """Images that worker processes decode when they are needed, `side` x `side`.

    In training: a random resized crop, then the policy, each with a seed from (seed, epoch, index), so that the number
    of workers changes nothing. In evaluation: the shorter side is resized to `side * 256 / 224`, and the centre is cut
    out.
    """

    root: Path
    paths: tuple[Path, ...]
    labels: torch.Tensor
    channels: int
    side: int
    role: Role | None = None
    streamed: bool = field(default=True, init=False)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.side, self.side

    def take(self, indices: torch.Tensor) -> Self:
        paths = tuple(self.paths[index] for index in indices.tolist())
        return replace(self, paths=paths, labels=self.labels[indices])

    def marked(self, role: Role) -> Self:
        return replace(self, role=role)

    def relabelled(self, places: torch.Tensor) -> Self:
        return replace(self, labels=places[self.labels])

    def fetch(self, indices: torch.Tensor) -> torch.Tensor:
        paths = [self.paths[index] for index in indices.tolist()]
        return _decoded(paths, self._centre, (self.channels, self.side, self.side))

    def _centre(self, path: Path) -> np.ndarray:
        return centre_view(decode(path, self.channels), self.side, resized_side(self.side))

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
        # Without a generator of its own, a loader would seed its workers from the global one; nothing here draws from
        # it.
        loader = DataLoader(
            _Chunks(self, chunks, augment, seed, epoch),
            batch_size=None,
            num_workers=workers,
            generator=torch.Generator().manual_seed(0),
        )
        for images in loader:
            if isinstance(images, InputError):
                raise images
            yield send(images, device)


@dataclass(eq=False)
class _Chunks(Dataset[torch.Tensor | InputError]):
    """Item k: the images of chunk k, or the error as a value, since a loader would bury its message in a traceback."""

    split: FolderSplit
    chunks: Sequence[torch.Tensor]
    augment: Augment | None
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> torch.Tensor | InputError:
        try:
            chunk = self.chunks[number]
            images = torch.from_numpy(np.stack([self._view(index) for index in chunk.tolist()]))
            if self.augment is None:
                return images
            return apply_policy(images, self.augment.policy, policy_seeds(chunk, self.seed, self.epoch))
        except InputError as error:
            return error

    def _view(self, index: int) -> np.ndarray:
        split = self.split
        if self.augment is None:
            return split._centre(split.paths[index])
        rng = np.random.default_rng(seed_of("view", self.seed, self.epoch, index))
        return random_view(decode(split.paths[index], split.channels), split.side, rng)


def threaded(work: Callable[[Path], T], paths: Sequence[Path], note: str) -> list[T]:
    """Apply `work` to each path in threads, keeping the order; the first error ends it."""
    groups = [paths[begin : begin + 64] for begin in range(0, len(paths), 64)]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        done = pool.map(lambda group: [work(path) for path in group], groups)
        return [result for group in track(done, len(groups), note) for result in group]


def _decoded(paths: Sequence[Path], pixels: Callable[[Path], np.ndarray], shape: tuple[int, ...]) -> torch.Tensor:
    """uint8 (N, *shape) of `pixels` of each path."""
    images = np.empty((len(paths), *shape), dtype=np.uint8)
    rows = dict(zip(paths, images, strict=True))

    def fill(path: Path) -> None:
        found = pixels(path)
        if found.shape != shape:
            raise InputError(
                f"{path} decodes to {_by(found.shape)} pixels where its header says {_by(shape)}; save it again"
            )
        rows[path][...] = found

    if shape[1] * shape[2] < SMALL:
        for path in track(paths, len(paths), "decoding images"):
            fill(path)
    else:
        threaded(fill, paths, "decoding images")
    return torch.from_numpy(images)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape[1:])


def _layout(root: Path) -> tuple[tuple[str, ...], dict[str, Files]]:
    """Class names in sorted order, and paths and labels of "train", "test" and, if present, "val"."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; folder:PATH takes one with a folder of images per class")
    names = _folders(root)
    others = [name for name in ("val", "test") if name in names]
    if "train" in names and others:
        kinds = {"train": "train", "test": others[-1]} | ({"val": "val"} if len(others) == 2 else {})
        classes = _classes(root / "train")
        for kind in kinds.values():
            if (found := _classes(root / kind)) != classes:
                missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
                told = [f"{', '.join(x)} only in {where}" for x, where in ((missing, "train"), (extra, kind)) if x]
                raise InputError(f"{root}: the classes differ, {' and '.join(told)}; give every split the same folders")
        return classes, {part: _files(root / kind, classes, complete=part == "train") for part, kind in kinds.items()}
    if names and {name.lower() for name in names} <= SPLIT_NAMES:
        raise InputError(
            f"{root} holds {', '.join(names)}; name its splits train and val or test, or give the folder "
            "that holds the classes to have it split"
        )
    classes = _classes(root)
    paths, labels = _files(root, classes, complete=True)
    kept, held = holdout(labels, TEST_FRACTION, str(root))
    return classes, {
        kind: ([paths[index] for index in rows.tolist()], labels[rows])
        for kind, rows in (("train", kept), ("test", held))
    }


def _folders(root: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."))
    except OSError as error:
        raise InputError(f"{root} cannot be read ({error.strerror}); change its permissions") from error


def _classes(root: Path) -> tuple[str, ...]:
    classes = _folders(root)
    if len(classes) < 2:
        found = f"only the class {classes[0]}" if classes else "no class folder"
        raise InputError(f"{root} holds {found}; it needs a folder of images for each of at least two classes")
    return classes


def _files(root: Path, classes: tuple[str, ...], *, complete: bool) -> Files:
    """All images under the class folders, without hidden and foreign files; `complete`: every class must have some."""
    known = suffixes()
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        before = len(paths)
        for folder, folders, files in os.walk(root / name):
            folders[:] = sorted(entry for entry in folders if entry[0] != ".")
            paths += [
                Path(folder, file)
                for file in sorted(files)
                if file[0] != "." and os.path.splitext(file)[1].lower() in known
            ]
        if complete and len(paths) == before:
            raise InputError(f"{root / name} holds no image; add some or remove the folder")
        labels += [label] * (len(paths) - before)
    if not paths:
        raise InputError(f"{root} holds no image in any of its class folders; add some or remove the folder")
    return paths, torch.tensor(labels)
