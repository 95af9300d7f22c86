"""`npz:PATH`: arrays in one file, by MedMNIST's convention (https://medmnist.com)."""

from __future__ import annotations

import zipfile
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch

from pellucid.core.data.splits import MemorySplit, Parts
from pellucid.core.errors import InputError

# Deflate cannot shrink anything more than this, so a member that claims to is lying about its size.
DEFLATE_LIMIT = 1040


def read(path: Path, budget: int) -> Parts:
    """Read `train_images` (N, H, W), (N, H, W, 1) or (N, H, W, 3), uint8, and `train_labels` (N,) or (N, 1), integers
    0..K-1; the same for `test_*` and, if present, `val_*`. Nothing is unpickled, and no array is allocated whose
    declared size exceeds what the file really holds or the memory has room for.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            kinds = ["train", "test"] + ["val"] * any(name.startswith("val_") for name in members)
            keys = [f"{kind}_{what}" for kind in kinds for what in ("images", "labels")]
            for key in keys:
                if f"{key}.npy" not in members:
                    found = ", ".join(name.removesuffix(".npy") for name in list(members)[:12]) or "nothing"
                    raise InputError(f"{path} has no array {key} (it holds {found}); add it or rename one")
            declared = {key: _declared(archive, members[f"{key}.npy"], f"{path}: {key}") for key in keys}
            free = _free_memory()
            if free is not None and sum(declared.values()) > free:
                raise InputError(
                    f"{path} declares {sum(declared.values())} bytes of arrays and {free} bytes of memory are free; "
                    "use a smaller set or folder:PATH, which streams"
                )
            arrays = {key: _array(archive, f"{key}.npy") for key in keys}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; npz:PATH takes a .npz file") from None
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
    ) as error:
        raise InputError(f"{path} is not a readable .npz file ({error}); write it with numpy.savez") from error

    images = {kind: _images(arrays[f"{kind}_images"], f"{path}: {kind}_images") for kind in kinds}
    shape = images["train"].shape[1:]
    labels = {}
    for kind in kinds:
        if images[kind].shape[1:] != shape:
            raise InputError(
                f"{path}: {kind}_images are {_by(images[kind].shape[1:])} and train_images {_by(shape)} "
                "(channels x height x width); all splits need one size"
            )
        labels[kind] = _labels(arrays[f"{kind}_labels"], len(images[kind]), f"{path}: {kind}_labels")
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


def _declared(archive: zipfile.ZipFile, info: zipfile.ZipInfo, what: str) -> int:
    """Bytes of the array that the header of a member declares, which must be the bytes the member holds."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{what} is compressed in a way numpy does not write; save it with numpy.savez_compressed")
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
    declared = prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or declared != info.file_size - start:
        raise InputError(
            f"{what} declares shape {shape} of {dtype}, {declared} bytes, and holds {info.file_size - start}; "
            "the file is damaged or hostile"
        )
    if info.file_size > DEFLATE_LIMIT * info.compress_size + 1024:
        raise InputError(f"{what} claims {info.file_size} bytes from {info.compress_size} compressed ones; not loaded")
    return declared


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


def _images(array: np.ndarray, what: str) -> torch.Tensor:
    if array.dtype != np.uint8:
        raise InputError(f"{what} has type {array.dtype}; store pixels as uint8 (0 to 255)")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise InputError(f"{what} has shape {array.shape}; it needs (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    if not array.size:
        raise InputError(f"{what} has shape {array.shape}, which holds no pixel; every split needs images")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _labels(array: np.ndarray, count: int, what: str) -> torch.Tensor:
    if array.dtype.kind not in "iu":
        raise InputError(f"{what} has type {array.dtype}; store class numbers as integers")
    if array.shape not in ((count,), (count, 1)):
        raise InputError(f"{what} has shape {array.shape} for {count} images; it needs one class number per image")
    if array.min() < 0 or array.max() >= 2**31:
        raise InputError(f"{what} runs from {array.min()} to {array.max()}; number the classes from 0")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))
