"""`cifar10` and `cifar100` (Krizhevsky 2009): the binary files, their archive, or the Python pickles."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pellucid.core.data.splits import MemorySplit, Parts
from pellucid.core.errors import InputError, shown
from pellucid.core.files.pickles import unpickle
from pellucid.core.files.structured import read_bytes
from pellucid.core.terminal import track

PIXELS = 3 * 32 * 32
LARGEST = 256 * 2**20  # bytes; the largest published file has 154 million
CHUNK = 2**20


@dataclass(frozen=True)
class Source:
    """Where one of the two sets is found and how its files are laid out."""

    url: str
    md5: str
    binary: str  # folder of the binary distribution
    pickled: str  # folder of the Python distribution
    train: tuple[str, ...]  # file names without ".bin", the same in both
    test: str
    names: tuple[str, str]  # files of the class names, binary and pickled
    key: str  # of the labels in a pickle; the key of their names is f"{key[:-1]}_names"
    classes: int
    label_bytes: int  # the last one is the class

    @property
    def archive(self) -> str:
        return self.url.rsplit("/", 1)[-1]


SOURCES = {
    "cifar10": Source(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        binary="cifar-10-batches-bin",
        pickled="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        names=("batches.meta.txt", "batches.meta"),
        key="labels",
        classes=10,
        label_bytes=1,
    ),
    "cifar100": Source(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        binary="cifar-100-binary",
        pickled="cifar-100-python",
        train=("train",),
        test="test",
        names=("fine_label_names.txt", "meta"),
        key="fine_labels",
        classes=100,
        label_bytes=2,
    ),
}


def read(name: str, path: Path, *, download: bool, budget: int) -> Parts:
    """Read the set `name` from `path`: a folder that is or contains the binary or the Python distribution, or the
    binary archive, which is unpacked next to itself. With `download`, a missing archive is fetched.
    """
    source = SOURCES[name]
    path = path.parent if path.name == source.archive else path
    places = [path / source.binary, path / source.pickled, path / source.archive]
    if (path / f"{source.test}.bin").is_file():
        return _from_binary(source, path, budget)
    if (path / source.test).is_file():
        return _from_pickles(source, path, budget)
    if places[0].is_dir():
        return _from_binary(source, places[0], budget)
    if places[1].is_dir():
        return _from_pickles(source, places[1], budget)
    try:
        if not places[2].is_file():
            if not download:
                looked = ", ".join(str(place) for place in places)
                raise InputError(f"{name} was not found (looked for {looked}); --download fetches it from {source.url}")
            path.mkdir(parents=True, exist_ok=True)
            _download(source, places[2])
        elif (found := _md5(places[2])) != source.md5:
            raise InputError(f"{places[2]} has MD5 {found} instead of {source.md5}; delete it and use --download")
        _unpack(source, places[2], places[0])
    except OSError as error:
        raise InputError(f"{name} could not be stored in {path} ({error}); give another PATH: {name}:PATH") from error
    return _from_binary(source, places[0], budget)


def _from_binary(source: Source, folder: Path, budget: int) -> Parts:
    def records(name: str) -> tuple[np.ndarray, np.ndarray]:
        path = folder / f"{name}.bin"
        content = np.frombuffer(_content(path), dtype=np.uint8)
        length = source.label_bytes + PIXELS
        if not len(content) or len(content) % length:
            raise InputError(f"{path} has {len(content)} bytes, not a positive multiple of {length}; unpack it again")
        rows = content.reshape(-1, length)
        return rows[:, source.label_bytes :], rows[:, source.label_bytes - 1]

    path = folder / source.names[0]
    lines = _content(path).decode("utf-8", "replace").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    train = [(folder / f"{name}.bin", *records(name)) for name in source.train]
    return _parts(source, path, names, train, (folder / f"{source.test}.bin", *records(source.test)), budget)


def _from_pickles(source: Source, folder: Path, budget: int) -> Parts:
    def records(name: str) -> tuple[np.ndarray, np.ndarray]:
        path = folder / name
        table = unpickle(_content(path), path)
        pixels, labels = table.get(b"data"), table.get(source.key.encode())
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,):
            raise InputError(f"{path} has no uint8 array data of shape (N, {PIXELS}); unpack it again")
        if not isinstance(labels, list) or not 0 < len(labels) == len(pixels) or {type(x) for x in labels} != {int}:
            raise InputError(f"{path} has no list {source.key} of {len(pixels)} integers; unpack it again")
        if not -(2**31) <= min(labels) <= max(labels) < 2**31:
            raise InputError(f"{path} holds the label {shown(max(labels, key=abs), 30)}; unpack it again")
        return pixels, np.array(labels)

    path = folder / source.names[1]
    names = unpickle(_content(path), path).get(f"{source.key[:-1]}_names".encode())
    listed = names if isinstance(names, list) else []
    texts = [x.decode("utf-8", "replace") if isinstance(x, bytes) else shown(x) for x in listed]
    train = [(folder / name, *records(name)) for name in source.train]
    return _parts(source, path, texts, train, (folder / source.test, *records(source.test)), budget)


Records = tuple[Path, np.ndarray, np.ndarray]


def _parts(source: Source, meta: Path, names: list[str], train: list[Records], test: Records, budget: int) -> Parts:
    if len(names) != source.classes:
        raise InputError(f"{meta} names {len(names)} classes instead of {source.classes}; unpack it again")

    def split(files: list[Records]) -> MemorySplit:
        for path, _, labels in files:
            if labels.min() < 0 or labels.max() >= source.classes:
                wrong = int(labels.max()) if labels.max() >= source.classes else int(labels.min())
                raise InputError(f"{path} holds the label {wrong}; labels run from 0 to {source.classes - 1}")
        pixels = np.concatenate([pixels for _, pixels, _ in files]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([labels for _, _, labels in files]).astype(np.int64)
        return MemorySplit(torch.from_numpy(pixels), torch.from_numpy(labels), budget)

    return Parts(tuple(names), split(train), None, split([test]))


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path, LARGEST)
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}: unpack the set again.") from None


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _download(source: Source, archive: Path) -> None:
    """Fetch to a temporary file, check its sum, then rename it: `archive` is whole or absent."""
    handle, name = tempfile.mkstemp(dir=archive.parent, prefix=f".{archive.name}.")
    try:
        digest = hashlib.md5(usedforsecurity=False)
        with os.fdopen(handle, "wb") as file:
            try:
                with urllib.request.urlopen(source.url, timeout=60) as reply:  # the scheme is fixed in the table
                    length = int(reply.headers.get("Content-Length") or 0)
                    for chunk in track(_chunks(reply), max(1, -(-length // CHUNK)), f"downloading {archive.name}"):
                        digest.update(chunk)
                        file.write(chunk)
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                raise InputError(f"{source.url} could not be fetched ({error}); put {archive} there by hand") from error
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != source.md5:
            raise InputError(f"{source.url} gave MD5 {digest.hexdigest()} instead of {source.md5}; try again later")
        os.replace(name, archive)
    finally:
        Path(name).unlink(missing_ok=True)


def _chunks(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    received = 0
    while chunk := reply.read(CHUNK):
        received += len(chunk)
        if received > 4 * LARGEST:
            raise http.client.HTTPException("it sends more than the set can hold")
        yield chunk


def _unpack(source: Source, archive: Path, folder: Path) -> None:
    """Unpack the files of the set to `folder`, all or none; nothing else in the archive is written."""
    wanted = {f"{name}.bin" for name in (*source.train, source.test)} | {source.names[0]}
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                parts = Path(member.name).parts
                if member.name.startswith(("/", "\\")) or ".." in parts or not (member.isreg() or member.isdir()):
                    raise InputError(f"{archive} holds {member.name}, which is no plain file of the set; not unpacked")
                if member.size > LARGEST:
                    raise InputError(f"{archive}: {member.name} claims {member.size} bytes; not unpacked")
                if member.isdir() or parts[-1] not in wanted or parts[:-1] not in ((), (source.binary,)):
                    continue
                file = tar.extractfile(member)
                assert file is not None  # a regular member has content
                with file, (temporary / parts[-1]).open("wb") as out:
                    shutil.copyfileobj(file, out)
        missing = sorted(wanted - {path.name for path in temporary.iterdir()})
        if missing:
            raise InputError(f"{archive} holds no {missing[0]}; delete it and use --download")
        temporary.chmod(0o755)
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():  # there already: another process was faster
                raise
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{archive} cannot be unpacked ({error}); delete it and use --download") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
