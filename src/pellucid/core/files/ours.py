"""What a command may write over: nothing but what the same command wrote before, unless the user says --overwrite.

A file tells by its content which command wrote it: a table in safetensors, the keys of a JSON object, a text chunk of a
PNG, a tag of a page. Never replaced are folders, devices and the like, and what a network or data are read from.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.core.errors import InputError, shown

LONGEST = 255  # bytes of a name, on most disks
LARGEST = 2**26  # bytes of a JSON file that is read to see whose it is
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Output:
    """A file that a command is about to write.

    Attributes:
        path: where.
        ours: whether what is there already was written by the same command.
        flag: the flag that names it, or its folder.
    """

    path: Path
    ours: Callable[[Path], bool]
    flag: str = "--out"


def outputs(folder: str | os.PathLike[str], ours: Mapping[str, Callable[[Path], bool]]) -> list[Output]:
    """Files in one folder: the `ours` of each by its name.

    Raises:
        InputError: `folder` is a file.
    """
    path = Path(folder)
    if os.path.lexists(path) and not path.is_dir():
        raise InputError(f"--out {_quoted(path)} is a file: name a folder.")
    return [Output(path / name, one) for name, one in ours.items()]


def check_outputs(
    files: Sequence[Output], overwrite: bool, *, command: str, sources: Sequence[str | None] = ()
) -> None:
    """Refuse to write over what is not ours; call it before anything is computed.

    Args:
        files: all that will be written.
        overwrite: whether the user gave --overwrite.
        command: that writes, for the sentence.
        sources: names of networks and data, as the user gave them, that the command reads; none of their files is ever
            replaced, except what the same command wrote into a run folder.

    Raises:
        InputError: a file is in the way, or cannot be written where it should be.
    """
    read = [path for name in sources if name is not None for path in _paths(name)]
    if len({os.path.realpath(file.path) for file in files}) < len(files):
        raise InputError(f"{' and '.join(file.flag for file in files)} name the same file: name two.")
    for file in files:
        path, name = file.path, _quoted(file.path)
        _check_place(file)
        if not os.path.lexists(path):
            continue
        if path.is_dir():
            raise InputError(
                f"{file.flag} {name} is a folder: name a file, such as {_quoted(path / 'network.safetensors')}."
            )
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{file.flag} {name} is no regular file and is never replaced: name another file.")
        ours = path.is_file() and file.ours(path)
        for source in read:
            if path.exists() and (_same(path, source) or (source.is_dir() and not ours and _within(path, source))):
                raise InputError(
                    f"{file.flag} {name} belongs to what pellucid {command} reads, and is never replaced: name another "
                    "file."
                )
        if not ours and not overwrite:
            raise InputError(
                f"{name} exists, and pellucid {command} did not write it: name another place with {file.flag}, or "
                "replace it with --overwrite."
            )


def _check_place(file: Output) -> None:
    """Refuse a file in a folder that can neither be written nor made, and a name that a disk cannot hold."""
    if len(os.fsencode(file.path.name)) > LONGEST:
        raise InputError(f"{file.flag} {_quoted(file.path)} is too long a name: give a shorter one.")
    folder = file.path.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(
            f"{file.flag} {_quoted(file.path)} cannot be made, because {_quoted(folder)} is not a folder: name another "
            "place."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"{file.flag} {_quoted(file.path)}: {_quoted(folder)} may not be written to: name another place."
        )


def _paths(name: str) -> list[Path]:
    """The existing files and folders that the name of a network or of data may mean, such as FILE in MODEL=FILE."""
    parts = {name, name.partition("=")[2], name.partition(":")[2]} - {""}
    found = []
    for part in parts:
        try:
            found += [path for path in (Path(part), Path(part).expanduser()) if path.exists()]
        except (OSError, RuntimeError, ValueError):
            continue  # no path at all
    return found


def _quoted(path: Path) -> str:
    return shown(str(path), 200)


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and os.path.samefile(one, other)


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


# --- whose a file is ---


def nobodys(path: Path) -> bool:
    """Never ours."""
    return False


def holds(*keys: str) -> Callable[[Path], bool]:
    """JSON with at least these keys: an object, or a list of which every row is one."""

    def ours(path: Path) -> bool:
        if path.stat().st_size > LARGEST:
            return False
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return False
        rows = content if isinstance(content, list) else [content]
        return bool(rows) and all(isinstance(row, dict) and set(keys) <= set(row) for row in rows)

    return ours


def network_of(command: str) -> Callable[[Path], bool]:
    """A safetensors file of `command`, as the table in its header says."""

    def ours(path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header: Any = json.loads(file.read(length)) if length <= LARGEST else {}
            return json.loads(header["__metadata__"]["pellucid"])["command"] == command
        except (struct.error, ValueError, KeyError, TypeError, RecursionError):
            return False

    return ours


def exported(path: Path) -> bool:
    """An ONNX file or a `torch.export` program of this package, as its maker or a record in it says."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head.startswith(b"PK"):
        return head[:1] == b"\x08" and b"\x12\x08pellucid" in head
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/extra/pellucid.json") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def picture_of(command: str) -> Callable[[Path], bool]:
    """A PNG of `command`, as its text says; see `png_text`."""

    def ours(path: Path) -> bool:
        wanted = b"Software\0" + _software(command).encode()
        with open(path, "rb") as file:
            if file.read(8) != _PNG:
                return False
            while len(head := file.read(8)) == 8:
                length, kind = struct.unpack(">I4s", head)
                if kind in (b"IDAT", b"IEND") or length > LARGEST:
                    return False
                if file.read(length) == wanted and kind == b"tEXt":
                    return True
                file.seek(4, 1)
        return False

    return ours


def page(path: Path) -> bool:
    """An HTML page of this package."""
    with open(path, "rb") as file:
        return b'<meta name="generator" content="pellucid ' in file.read(4096)


def begins(line: str) -> Callable[[Path], bool]:
    """A text file with this first line."""

    def ours(path: Path) -> bool:
        with open(path, "rb") as file:
            return file.read(len(line.encode()) + 1) == f"{line}\n".encode()

    return ours


def png_text(command: str) -> Any:
    """The text that says which command drew a PNG, for the `pnginfo` of Pillow's `save`."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Software", _software(command))
    return text


def _software(command: str) -> str:
    return f"pellucid {command}"
