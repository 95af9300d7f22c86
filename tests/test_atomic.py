"""Files are written whole or not at all, and several that belong together all or none."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from pellucid.core.files.atomic import replacing, write_atomic, write_together


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def little_room():
    """The system refuses files beyond 1000 bytes in the middle of writing them, as a full disk would."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("large", [0, 1, 2])
def test_files_that_belong_together_are_all_new_or_all_old(tmp_path, little_room, there, large):
    old = {f"{i}": b"old" for i in range(3)} if there else {}
    for name, data in old.items():
        (tmp_path / name).write_bytes(data)
    new: dict[str | os.PathLike[str], bytes | str] = {tmp_path / f"{i}": "new" for i in range(3)}
    write_together(new)
    assert content(tmp_path) == {f"{i}": b"new" for i in range(3)}
    for name in ("0", "1", "2"):
        (tmp_path / name).unlink()
    for name, data in old.items():
        (tmp_path / name).write_bytes(data)
    new[tmp_path / f"{large}"] = b"x" * 2000
    with pytest.raises(OSError) as error:  # noqa: PT011 (its file name is checked)
        write_together(new)
    assert error.value.filename == str(tmp_path / f"{large}")
    assert content(tmp_path) == old


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, little_room):
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(OSError) as error, replacing(tmp_path / "a") as file:  # noqa: PT011
        file.write(b"x" * 5000)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path / "a"))
    assert content(tmp_path) == {"a": b"old"}


def test_folders_long_names_and_missing_folders(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        write_together({tmp_path / "a": b"1", tmp_path / "folder": b"2"})
    assert error.value.filename == str(tmp_path / "folder")
    assert content(tmp_path) == {}
    write_atomic(tmp_path / "new" / ("n" * 250), b"1")
    assert content(tmp_path / "new") == {"n" * 250: b"1"}
    many: dict[str | os.PathLike[str], bytes | str] = {tmp_path / "many" / f"{i}": b"1" for i in range(1500)}
    write_together(many)  # more files than a process may have open
    assert len(content(tmp_path / "many")) == 1500
