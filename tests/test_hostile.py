"""Whatever a stranger's file holds: exit status 2, one sentence, nothing run or changed, little memory and time."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path

import pytest

from forked import SECONDS, Ended, content
from hostile import CASES, Case, make_base, png

MEMORY = 2**30  # bytes


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


def test_there_are_enough_of_them():
    kinds = Counter(one.kind for one in CASES)
    assert len(CASES) >= 150 and len(kinds) >= 12
    assert len({(one.kind, one.name) for one in CASES}) == len(CASES)


def each(cases: list[Case]) -> list:
    """All of them as parameters; two in three are marked, for their time."""
    return [
        pytest.param(one, id=f"{one.kind}: {one.name}", marks=[pytest.mark.slow] * bool(number % 3))
        for number, one in enumerate(cases)
    ]


@pytest.mark.parametrize("one", each(CASES))
def test_a_hostile_file_is_refused_in_one_sentence(one: Case, base, commands, tmp_path):
    one.make(tmp_path, base)
    before = content(tmp_path)
    check_refused(commands.run(one.words, tmp_path), one.about)
    assert content(tmp_path) == before


@pytest.mark.slow
def test_names_from_files_are_printed_without_control_characters_and_cut(base, commands, tmp_path):
    names = ("\x1b[31mred\x1b[0m\n\r", "\x1b]0;title\x07" + "x" * 230, "\u202eevil")
    for label, name in enumerate(names):
        for number in range(30):
            picture = tmp_path / "d" / name / f"{number}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(png(8, 8, zlib.compress((bytes(2) + bytes([label * 60] * 7)) * 8), depth=8))
    runs = (
        "train --data folder:d --model conv2 --epochs 1 --batch-size 16 --out run",
        "evaluate run",
        "decompose run --out filters",
        "robust run --kinds gaussian_noise --levels 0.1",
        "open run --out page",
        "invert run --weight 0 --steps 1 --count 3 --out images",
    )
    for words in runs:
        ended = commands.run([*words.split(), "--device", "cpu"], tmp_path, 120)
        assert ended.status == 0, ended.err
        assert (ended.out + ended.err).replace("\n", "").isprintable(), (words, ended.out, ended.err)
        assert max(map(len, ended.out.split("\n"))) < 400, (words, ended.out)
    ended = commands.run(("evaluate", "run", "--data", "digits"), tmp_path)
    check_refused(ended, "trained on the classes")
