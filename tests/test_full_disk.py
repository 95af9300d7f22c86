"""A disk that is full in the middle of a command: one sentence with the path and the remedy, and no half results."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from forked import Ended, content
from hostile import make_base

LEAST = 700  # bytes; the error itself is written to a file

# command, with a seed to be added, and what it writes below `out`
WRITERS = {
    "convert": "convert run --layers deconv --max-images 100 --out out/c.safetensors",
    "fold": "fold deconv.safetensors --out out/f.safetensors",
    "open": "open run --max-images 20 --out out",
    "decompose": "decompose run --k 3 --out out",
    "decompose and fit": "decompose run --k 3 --fit head --out out",
    "invert": "invert run --weight 0 --steps 1 --count 2 --out out",
    "robust": "robust run --max-images 20 --out out/r.json",
    "visualize": "visualize run --max-images 5 --out out",
    "pack": "pack hidden --out out/p.safetensors",
    "assess": "assess run synthesis --data digits --out out",
}
BEGUN = {
    "train": "train --model conv2 --epochs 1 --limit-batches 1 --out out",
    "synthesize": "synthesize run --weight 0 --per-class 2 --steps 1 --out out",
    "distill": "distill run conv2 synthesis --epochs 1 --out out",
    "search": "search train --grid plan.yaml --out out",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, commands) -> Path:
    folder = make_base(tmp_path_factory.mktemp("base"), model="conv2")
    made = (
        "convert run --layers deconv --out deconv.safetensors --max-images 100",
        "train --model conv2 --layers subnet --epochs 1 --limit-batches 1 --out hidden",
    )
    for words in made:
        ended = commands.run(words.split(), folder, 120)
        assert ended.status == 0, ended.err
    (folder / "plan.yaml").write_text(
        "grid: {lr: [0.1]}\nfixed: {model: conv2, epochs: 1, limit-batches: 1}\nscore: result.json:best.val_accuracy\n"
    )
    return folder


def check_full(ended: Ended) -> None:
    assert ended.status == (2 if "The database" in ended.err else 1), (ended.status, ended.err, ended.out)
    line = ended.err.strip()
    assert line.startswith("pellucid: ") and line.isprintable() and len(line) < 600, ended.err
    assert "out" in line and "no file named" not in line and ".tmp" not in line, line
    assert any(remedy in line for remedy in ("write elsewhere with --out", "free some space", "make room")), line


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_what_was_there_is_still_there_whole(base, commands, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(base, folder)
    words = [*WRITERS[name].split(), "--device", "cpu"]
    assert commands.run([*words, "--seed", "0"], folder, 120).status == 0
    before = content(folder)
    sizes = sorted(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file())
    for limit in {max(LEAST, int(0.9 * sizes[0])), int(0.9 * sizes[-1])}:  # nothing fits, or all but the largest file
        check_full(commands.run([*words, "--seed", "1"], folder, 120, largest=limit))
        assert content(folder) == before
    shutil.rmtree(folder / "out")
    check_full(commands.run([*words, "--seed", "0"], folder, 120, largest=int(0.9 * sizes[-1])))
    assert not [path for path in (folder / "out").rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("name", BEGUN)
def test_what_was_begun_goes_on_when_there_is_room(base, commands, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(base, folder)
    words = BEGUN[name].split()
    for limit in (LEAST, 3000, 30_000):
        ended = commands.run(words, folder, 120, largest=limit)
        if ended.status != 0:
            check_full(ended)
        assert not list((folder / "out").rglob("*.tmp"))
    assert commands.run(words, folder, 120).status == 0
