"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass
class _Draft:
    """A temporary file, and a descriptor that keeps it locked as long as this process lives; None on Windows."""

    name: str
    lock: int | None

    def unlock(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


_Drafts = dict[str | os.PathLike[str], _Draft]
_together: contextvars.ContextVar[_Drafts | None] = contextvars.ContextVar("together", default=None)
LOCKED = 64  # files of a set that stay locked until they get their names; each takes a descriptor, and those are few
_STRAYS: dict[Path, list[str]] = {}  # temporary files of other processes, by folder, as first seen by this one


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`: a reader sees the old file or the new one, never a part of it.

    The content goes to a temporary file in the same folder, which is synced and renamed. If anything fails (a full
    disk, a kill), the old file is unchanged; the temporary file is removed, that of a killed process by the next one
    that writes to `path`.

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
        if len(waiting) > LOCKED:
            waiting[path].unlock()
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
        if path in drafts:  # written twice in one set
            _discard({path: drafts.pop(path)})
        _remove_strays(target)
        descriptor, drafts[path] = _new_draft(target)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


def _publish(path: str | os.PathLike[str], drafts: _Drafts) -> None:
    """Give a draft its name."""
    with _naming(path):
        os.chmod(drafts[path].name, 0o666 & ~_umask())
        os.replace(drafts[path].name, path)
    drafts.pop(path).unlock()
    sync_folder(Path(path).parent)


def _discard(drafts: _Drafts) -> None:
    for draft in drafts.values():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft.name)
        draft.unlock()


def _new_draft(target: Path) -> tuple[int, _Draft]:
    """A new temporary file for `target`, locked so that `_remove_strays` knows that its process lives."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.", suffix=".tmp")
        if fcntl is None:
            return descriptor, _Draft(name, None)
        with contextlib.suppress(OSError):  # a file system without locks: there, strays remain
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, _Draft(name, os.dup(descriptor))
        os.close(descriptor)  # removed as a stray before it was locked


def _remove_strays(target: Path) -> None:
    """Delete temporary files for `target` whose process was killed."""
    if fcntl is None:
        return
    folder = target.parent.absolute()
    if folder not in _STRAYS:
        _STRAYS[folder] = [file.name for file in folder.glob(".*.tmp")]
    pattern = re.compile(re.escape(f".{target.name[:100]}.") + r"[a-z0-9_]{8}\.tmp")
    for name in [name for name in _STRAYS[folder] if pattern.fullmatch(name)]:
        _STRAYS[folder].remove(name)
        with contextlib.suppress(OSError):  # it is gone, is locked by its process, or cannot be locked
            descriptor = os.open(folder / name, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(folder / name)
            finally:
                os.close(descriptor)


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
