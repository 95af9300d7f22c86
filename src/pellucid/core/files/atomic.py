"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

_Drafts = dict[str | os.PathLike[str], str]  # path -> temporary file next to it
_together: contextvars.ContextVar[_Drafts | None] = contextvars.ContextVar("together", default=None)


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`: a reader sees the old file or the new one, never a part of it.

    The content goes to a temporary file in the same folder, which is synced and renamed. If anything fails (a full
    disk, a kill), the old file is unchanged; the temporary file is removed unless the process was killed.

    Raises:
        OSError: the file cannot be written; `filename` is `path`.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_together(contents: Mapping[str | os.PathLike[str], bytes | str]) -> None:
    """Write several files of which none is of use without the others; see `together`.

    Raises:
        OSError: a file cannot be written; `filename` is its path.
    """
    with together():
        for path, content in contents.items():
            write_atomic(path, content)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Files that `write_atomic` and `replacing` write in the block get their names when it ends without an error.

    So a full disk leaves all old files, or none where there were none.
    """
    drafts: _Drafts = {}
    token = _together.set(drafts)
    try:
        yield
        for path in list(drafts):
            _publish(path, drafts)
    finally:
        _together.reset(token)
        _discard(drafts)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends without an error."""
    waiting = _together.get()
    if waiting is not None:
        with _drafted(path, waiting) as file:
            yield file
        return
    drafts: _Drafts = {}
    try:
        with _drafted(path, drafts) as file:
            yield file
        _publish(path, drafts)
    finally:
        _discard(drafts)


@contextlib.contextmanager
def _drafted(path: str | os.PathLike[str], drafts: _Drafts) -> Iterator[IO[bytes]]:
    """Open a temporary file next to `path`, enter it into `drafts`, and sync it when the block ends."""
    target = Path(path)
    with _naming(path):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        _discard({path: drafts.pop(path)} if path in drafts else {})
        descriptor, drafts[path] = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


def _publish(path: str | os.PathLike[str], drafts: _Drafts) -> None:
    """Give a draft its name."""
    with _naming(path):
        os.chmod(drafts[path], 0o666 & ~_umask())
        os.replace(drafts[path], path)
    del drafts[path]
    sync_folder(Path(path).parent)


def _discard(drafts: _Drafts) -> None:
    for temporary in drafts.values():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError in the block names `path`, not a temporary file or nothing at all."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = os.fspath(path), None
        raise


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames in `folder` durable (a no-op where folders cannot be opened, as on Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # The mask can be read only by setting it; mkstemp's 0600 would otherwise make runs unreadable to a group.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def remove_temporaries(folder: str | os.PathLike[str]) -> None:
    """Delete what `replacing` left in `folder` when a process was killed."""
    for stray in Path(folder).glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            stray.unlink()
