"""What a file of weights seems to be, judging by its first bytes, so that an error can name the mistake."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal, cast

from pellucid.core.errors import InputError

_SIGNATURES = {
    b"version https://git-lfs": "a git-lfs pointer (git lfs pull fetches the file itself)",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x1f\x8b": "a gzip archive, to be unpacked first",
    b"BZh": "a bzip2 archive, to be unpacked first",
    b"\xfd7zXZ": "an xz archive, to be unpacked first",
    b"\x28\xb5\x2f\xfd": "a zstd archive, to be unpacked first",
    b"\x93NUMPY": "a numpy array",
    b"GGUF": "a GGUF file",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
}


Kind = Literal["torch", "safetensors", "onnx", "pt2", "torchscript"]


def kind(path: Path) -> Kind:
    """Which reader `path` needs.

    Looks at 512 bytes and, in a zip file, at the names inside; what it calls by one of these names may still be
    damaged.

    Raises:
        InputError: neither; the message says what the file seems to be.
    """
    if not path.is_file():  # a pipe or a device would block
        raise InputError(f"{str(path)!r} does not exist or is no file: give a checkpoint or a run folder.")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    if not head:
        raise InputError(f"{str(path)!r} is empty: download or save it again.")
    seems = next((what for signature, what in _SIGNATURES.items() if head.startswith(signature)), None)
    if head.startswith(b"PK\x03\x04"):
        seems = _zip(path)
        if seems in ("torch", "pt2", "torchscript"):
            return cast(Kind, seems)
    elif seems is None:
        # The length of its header comes first, which may begin as a pickle does.
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
            return "safetensors"
        if head.startswith(b"\x80"):
            return "torch"
        if head[8:9] == b"{" and path.stat().st_size > 9:
            return "safetensors"
        # The first field of an ONNX file is its version, the second its maker or graph.
        if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a")):
            return "onnx"
        seems = _guess(head)
    raise InputError(
        f"{str(path)!r} seems to be {seems}, not a checkpoint: give a .safetensors, .pth, .th, .pt, .ckpt, .onnx or "
        ".pt2 file."
    )


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return "a truncated or damaged zip file (a PyTorch checkpoint is one)"
    if any(name.endswith("/archive_format") for name in names):
        return "pt2"
    if any(name.endswith("/data.pkl") for name in names):
        return "torchscript" if any(name.endswith("/constants.pkl") for name in names) else "torch"
    if "model.weights.h5" in names:
        return "a Keras model"
    return "a numpy .npz archive" if all(name.endswith(".npy") for name in names) else "a zip archive"


def _guess(head: bytes) -> str:
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, as a failed download leaves"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return "damaged or of an unknown format"
    return "a text file" if text.isprintable() or any(c in text for c in "\r\n\t") else "of an unknown format"
