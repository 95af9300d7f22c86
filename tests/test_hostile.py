"""Whatever a stranger's file holds: exit status 2, one sentence, nothing run or changed, little memory and time."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from forked import SECONDS, Commands, Ended
from hostile import CASES, Case, make_base

MEMORY = 2**30  # bytes


def content(folder: Path) -> dict[str, bytes]:
    """What a folder holds: files with their content, other things with their type."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        regular = stat.S_ISREG(mode)
        found[str(path.relative_to(folder))] = path.read_bytes() if regular else str(stat.S_IFMT(mode)).encode()
    return found


def check_refused(ended: Ended, about: str) -> None:
    """One plain sentence, and no more."""
    assert ended.status == 2, (ended.status, ended.err[-3000:])
    lines = ended.err.strip().split("\n")
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("pellucid: ") and len(lines[0]) <= 1000, ended.err
    assert lines[0].isprintable(), ended.err
    assert about in ended.err and ended.out == ""
    assert ended.peak < MEMORY and ended.seconds < SECONDS, (ended.peak, ended.seconds)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as started:
        yield started


def test_there_are_enough_of_them():
    kinds = Counter(one.kind for one in CASES)
    assert len(CASES) >= 150 and len(kinds) >= 12
    assert len({(one.kind, one.name) for one in CASES}) == len(CASES)


@pytest.mark.parametrize("one", CASES, ids=lambda one: f"{one.kind}: {one.name}")
def test_a_hostile_file_is_refused_in_one_sentence(one: Case, base, commands, tmp_path):
    one.make(tmp_path, base)
    before = content(tmp_path)
    check_refused(commands.run(one.words, tmp_path), one.about)
    assert content(tmp_path) == before
