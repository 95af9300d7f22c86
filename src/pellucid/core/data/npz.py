"""`npz:PATH` and `test:PATH.npz`: arrays in one file, by MedMNIST's convention (https://medmnist.com)."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pellucid.core.data.splits import MemorySplit, Parts
from pellucid.core.errors import InputError, first_line, shown
from pellucid.core.files.structured import check_regular

# Deflate cannot shrink anything more than this, so a member that claims to is lying about its size.
DEFLATE_LIMIT = 1040
LONGEST_HEADER = 10_000  # bytes


def read(path: Path, budget: int) -> Parts:
    """Read `train_images` (N, H, W), (N, H, W, 1) or (N, H, W, 3), uint8, and `train_labels` (N,) or (N, 1), integers
    0..K-1; the same for `test_*` and, if present, `val_*`. Nothing is unpickled, and no array is allocated whose
    declared size exceeds what the file really holds or the memory has room for.
    """
    arrays = _read(path, lambda members: {k: f"{k}_" for k in ("train", "test", *["val"] * _has(members, "val_"))})
    kinds = list(arrays)
    images = {kind: _images(pixels) for kind, (pixels, _) in arrays.items()}
    shape = images["train"].shape[1:]
    labels = {}
    for kind in kinds:
        if images[kind].shape[1:] != shape:
            raise InputError(
                f"{path}: {kind}_images are {_by(images[kind].shape[1:])} and train_images {_by(shape)} "
                "(channels x height x width); all splits need one size"
            )
        labels[kind] = _labels(arrays[kind][1], f"{path}: {kind}_labels")
    present = labels["train"].unique()
    count = len(present)
    if int(present[-1]) != count - 1:
        raise InputError(
            f"{path}: train_labels has {count} different values up to {int(present[-1])}; "
            f"number the classes 0 to {count - 1}"
        )
    for kind in kinds:
        if int(labels[kind].max()) >= count:
            raise InputError(
                f"{path}: {kind}_labels holds {int(labels[kind].max())} and training knows the classes 0 to {count - 1}"
            )
    parts = {kind: MemorySplit(images[kind], labels[kind], budget) for kind in kinds}
    classes = tuple(str(label) for label in range(count))
    return Parts(classes, parts["train"], parts.get("val"), parts["test"], flip=shape[0] == 3)


def read_test(path: Path, budget: int) -> Parts:
    """Read test images alone: `test_images` and `test_labels` as in `read`, or else `images` and `labels`.

    The classes are the numbers that occur among the labels.
    """
    arrays = _read(path, lambda members: {"test": "test_" if _has(members, "test_") else ""})
    pixels, numbers = arrays["test"]
    present, labels = _labels(numbers, f"{path}: labels").unique(return_inverse=True)
    test = MemorySplit(_images(pixels), labels, budget)
    none = test.take(torch.arange(0))
    return Parts(tuple(map(str, present.tolist())), none, none, test)


Members = dict[str, zipfile.ZipInfo]


def _has(members: Members, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in members)


def _read(path: Path, prefixes: Callable[[Members], dict[str, str]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels, checked, of each split that `prefixes` finds among the file's members."""
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            kinds = prefixes(members)
            keys = [f"{prefix}{what}" for prefix in kinds.values() for what in ("images", "labels")]
            for key in keys:
                if f"{key}.npy" not in members:
                    found = ", ".join(name.removesuffix(".npy") for name in list(members)[:12]) or "nothing"
                    raise InputError(f"{path} has no array {key} (it holds {found}); add it or rename one")
            forms = {key: _declared(archive, members[f"{key}.npy"], f"{path}: {key}") for key in keys}
            free, declared = _free_memory(), sum(form.nbytes for form in forms.values())
            if free is not None and declared > free:
                raise InputError(
                    f"{path} declares {declared} bytes of arrays and {free} bytes of memory are free; "
                    "use a smaller set or folder:PATH, which streams"
                )
            for prefix in kinds.values():
                _check_forms(forms[f"{prefix}images"], forms[f"{prefix}labels"], f"{path}: {prefix}")
            arrays = {key: _array(archive, f"{key}.npy") for key in keys}
            return {kind: (arrays[f"{prefix}images"], arrays[f"{prefix}labels"]) for kind, prefix in kinds.items()}
    except InputError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        MemoryError,
        SyntaxError,
        TypeError,
        RecursionError,
        tokenize.TokenError,
    ) as error:
        raise InputError(
            f"{path} is not a readable .npz file ({first_line(error)}); write it with numpy.savez"
        ) from error


class Form(NamedTuple):
    """What the header of an array declares."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def _declared(archive: zipfile.ZipFile, info: zipfile.ZipInfo, what: str) -> Form:
    """What the header of a member declares, which must fill the bytes that the member holds."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{what} is compressed in a way numpy does not write; save it with numpy.savez_compressed")
    with archive.open(info) as member:
        head = member.read(12)  # magic and version in 8 bytes, then the length of the header in 2 or, since 2.0, in 4
    if (length := int.from_bytes(head[8 : 10 if head[6:7] == b"\x01" else 12], "little")) > LONGEST_HEADER:
        raise InputError(f"{what} has a header of {length} bytes, which plain numbers do not need; save it again")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        else:
            raise InputError(f"{what} is in .npy format {version}, which plain numbers do not need; save it again")
        start = member.tell()
    if dtype.hasobject:
        raise InputError(f"{what} holds Python objects, which could run code when read; save plain numbers")
    form = Form(shape, dtype)
    if min(shape, default=1) < 0 or form.nbytes != info.file_size - start:
        raise InputError(
            f"{what} declares shape {shown(shape)} of {dtype}, {shown(form.nbytes, 30)} bytes, and holds "
            f"{info.file_size - start}; the file is damaged or hostile"
        )
    if info.file_size > DEFLATE_LIMIT * info.compress_size + 1024:
        raise InputError(f"{what} claims {info.file_size} bytes from {info.compress_size} compressed ones; not loaded")
    return form


def _check_forms(images: Form, labels: Form, what: str) -> None:
    """Refuse arrays that cannot be images and their labels, before either is read."""
    if images.dtype != np.uint8:
        raise InputError(f"{what}images has type {images.dtype}; store pixels as uint8 (0 to 255)")
    if len(images.shape) not in (3, 4) or (len(images.shape) == 4 and images.shape[3] not in (1, 3)):
        raise InputError(
            f"{what}images has shape {shown(images.shape)}; it needs (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        )
    if not prod(images.shape):
        raise InputError(
            f"{what}images has shape {shown(images.shape)}, which holds no pixel; every split needs images"
        )
    if labels.dtype.kind not in "iu":
        raise InputError(f"{what}labels has type {labels.dtype}; store class numbers as integers")
    count = images.shape[0]
    if labels.shape not in ((count,), (count, 1)):
        raise InputError(
            f"{what}labels has shape {shown(labels.shape)} for {count} images; it needs one class number per image"
        )


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as member:
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        member.read(1)  # reaching the end checks the sum of the content
        return array


def _free_memory() -> int | None:
    """Bytes of memory available without swapping; None if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)


def _images(array: np.ndarray) -> torch.Tensor:
    """uint8 (N, C, H, W) of an array (N, H, W) or (N, H, W, C)."""
    channels_last = array if array.ndim == 4 else array[..., None]
    return torch.from_numpy(np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2)))


def _labels(array: np.ndarray, what: str) -> torch.Tensor:
    if array.min() < 0 or array.max() >= 2**31:
        raise InputError(f"{what} runs from {array.min()} to {array.max()}; number the classes from 0")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))
