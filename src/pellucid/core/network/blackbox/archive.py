"""The records of a .pt2 file: a zip archive as torch writes it, or none at all."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.core.errors import InputError, shown

MOST_JSON = 2**28  # bytes of a program's text
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


class Archive:
    """The records of a .pt2 file by their names inside its one folder.

    Args:
        path: of the file.
        what: begins the sentence of every error: the file's name, quoted.

    Raises:
        InputError: it is no zip file, or one that torch does not write: compressed, with a record twice, or claiming
            more bytes than it has.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._what = what
        try:
            self._zip = zipfile.ZipFile(path)
            entries = self._zip.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise InputError(f"{what} is truncated or damaged: copy it again.") from error
        names = [entry.filename for entry in entries]
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries
        ):
            raise InputError(f"{what} is refused: its records are compressed, which torch never writes.")
        if len(set(names)) < len(names) or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise InputError(f"{what} is refused: its records claim more bytes than the file has.")
        folders = {name.partition("/")[0] for name in names}
        if len(folders) != 1:
            raise InputError(f"{what} is a zip file, but not of torch.export: export the network again.")
        self._folder = f"{folders.pop()}/"
        self._entries = {entry.filename.removeprefix(self._folder): entry for entry in entries}

    def names(self) -> list[str]:
        """All names."""
        return list(self._entries)

    def read(self, name: str, most: int | None = None) -> bytes:
        """The content of a record.

        Raises:
            InputError: it is not there, is damaged, or has more than `most` bytes.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise InputError(f"{self._what} is damaged: it has no record {shown(name, 80)}.")
        if most is not None and entry.file_size > most:
            raise InputError(f"{self._what} is refused: its record {shown(name, 80)} has {entry.file_size} bytes.")
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError, RuntimeError) as error:
            raise InputError(f"{self._what} is damaged in its record {shown(name, 80)}: copy it again.") from error

    def close(self) -> None:
        self._zip.close()


def tensors_of(archive: Archive, folder: str, config: Mapping[str, Any], what: str) -> dict[str, Tensor]:
    """The tensors that a table of weights or constants names, each from a record of raw numbers.

    Raises:
        InputError: one is stored as a pickle, or is not within its record.
    """
    stored: dict[str, Tensor] = {}
    found = {}
    for key, entry in config.items():
        record = entry["path_name"]
        if entry.get("use_pickle") or not record.startswith(("weight_", "tensor_")):
            raise InputError(
                f"{what} holds {shown(key, 60)} as a pickle, which could run code and is never read: export the "
                "network with torch 2.9 or newer, or to ONNX."
            )
        dtype, sizes, strides, offset = _layout(entry.get("tensor_meta"), what)
        if record not in stored:
            content = bytearray(archive.read(f"{folder}{record}"))
            stored[record] = (
                torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
            )
        raw = stored[record]
        count = 0 if 0 in sizes else 1 + offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        whole = raw[: len(raw) // dtype.itemsize * dtype.itemsize].view(dtype)
        if count > len(whole):
            raise InputError(f"{what} is damaged: its tensor {shown(key, 60)} claims more numbers than are stored.")
        number = 1
        for size in sizes:
            number *= size
        if number > len(whole):
            raise InputError(f"{what} is damaged: its tensor {shown(key, 60)} claims more numbers than are stored.")
        found[key] = torch.as_strided(whole, sizes, strides, offset)
    return found


def dtype_of(number: Any, what: str) -> torch.dtype:
    """torch's type for the number that the format has for it.

    Raises:
        InputError: a type that no network here has.
    """
    if not isinstance(number, int) or number not in _DTYPES:
        raise InputError(f"{what} has tensors of the type {shown(number, 40)}, which is not known here.")
    return _DTYPES[number]


def _layout(meta: Any, what: str) -> tuple[torch.dtype, list[int], list[int], int]:
    try:
        numbers = [[int(one["as_int"]) for one in meta[key]] for key in ("sizes", "strides")]
        offset = int(meta["storage_offset"]["as_int"])
        sizes, strides = numbers
        if len(sizes) != len(strides) or any(not 0 <= one < 2**48 for one in (*sizes, *strides, offset)):
            raise ValueError("sizes out of range")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"{what} is damaged: a tensor's shape cannot be read.") from error
    return dtype_of(meta.get("dtype"), what), sizes, strides, offset
