"""Files are written whole or not at all, and several that belong together all or none."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
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


def test_a_set_may_have_more_files_than_a_process_may_open(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, old[1]))
    try:
        write_together({tmp_path / f"{i}": b"1" for i in range(400)})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    assert content(tmp_path) == {f"{i}": b"1" for i in range(400)}


DRAFT = """
import sys
from pellucid.core.files.atomic import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    print(flush=True)
    sys.stdin.read()
"""


def drafting(path: Path) -> subprocess.Popen[bytes]:
    """A process in the middle of writing `path`."""
    command = [sys.executable, "-c", DRAFT, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path):
    file, other = tmp_path / "audit.json", tmp_path / "audit.json.gz"
    dead, elsewhere, living = drafting(file), drafting(other), drafting(file)
    foreign = tmp_path / ".audit.json.mine.tmp"
    foreign.write_text("not ours")
    for process in (dead, elsewhere):
        process.kill()
        process.communicate()
    before = {path.name for path in tmp_path.iterdir()}
    write_atomic(file, "whole")
    left = {path.name for path in tmp_path.iterdir()}
    assert len(before - left) == 1 and left - before == {"audit.json"}
    assert living.communicate()[0] == b"" and living.returncode == 0  # its draft is still there, and gets its name
    assert file.read_bytes() == b"half"
    assert sorted(name.startswith(".audit.json.gz.") for name in left if name.endswith(".tmp")) == [False, False, True]
    assert foreign.exists()
