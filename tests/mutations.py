"""Random damage to the files of a run, a synthesis and data, and what must hold of the commands that read them.

`damages` draws one change to one file; `check_damage` applies it in a copy and runs a command on it.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

from forked import SECONDS, Commands, Ended, content

RESUME = "train --resume run"
EVALUATE = "evaluate run"
AGAIN = "synthesize run --out synthesis --per-class 5 --steps 2 --batch-size 25 --device cpu --weight 0"
DISTILL = "distill run conv2 synthesis --out student --epochs 1 --device cpu"

# file -> how it is damaged, and the commands that read it
TABLES = {
    "run/settings.yaml": (RESUME, EVALUATE),
    "run/environment.json": (RESUME,),
    "run/metrics.jsonl": (RESUME,),
    "run/last.ckpt/checkpoint.json": (RESUME,),
    "run/result.json": (RESUME,),
    "run/best.safetensors": (EVALUATE, "convert run --layers deconv --out c.safetensors"),
    "filters.json": ("evaluate run --decomposed filters.json",),
    "synthesis/synthesis.json": (AGAIN, DISTILL),
}
BYTES = {
    **TABLES,
    "x.pth": ("evaluate x.pth --model conv2 --data digits",),
    "old.pth": ("evaluate old.pth --model conv2 --data digits",),
    "x.npz": ("evaluate vgg11 --data npz:x.npz",),
    "d/a/0.png": ("evaluate vgg11 --data folder:d --image-size 8",),
    "d/a/1.jpg": ("evaluate vgg11 --data folder:d --image-size 8",),
    "d/a/2.tiff": ("evaluate vgg11 --data folder:d --image-size 8",),
    "d/a/3.gif": ("evaluate vgg11 --data folder:d --image-size 8",),
    "d/a/4.webp": ("evaluate vgg11 --data folder:d --image-size 8",),
    "d/a/5.bmp": ("evaluate vgg11 --data folder:d --image-size 8",),
    "statistics.safetensors": ("invert run --statistics statistics.safetensors --steps 1 --count 2 --out images",),
    "synthesis/labels.safetensors": (AGAIN, DISTILL),
    "run/last.ckpt/STATE": (RESUME,),
    "batch/synthesis.json": (AGAIN.replace("--out synthesis", "--out batch"),),
    "config.yaml": ("train --config config.yaml --epochs 1 --limit-batches 1 --out new",),
    "plan.yaml": ("search train --grid plan.yaml --out study",),
}

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.sampled_from([0, -1, 1, 2**31, 2**53, 10**400]),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
        st.sampled_from(["", "../x", "x" * 5000, "\x1b[31m", "\0", "/etc/passwd", "resnet20", "NaN", "digits"]),
    ),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=8), below, max_size=4),
    max_leaves=12,
)


@dataclass(frozen=True)
class Damage:
    """A change to one file, and a command that reads it."""

    file: str
    words: str
    change: Callable[[bytes], bytes]
    text: str


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Another value in a table, or other bytes anywhere."""
    if draw(st.booleans()):
        file = draw(st.sampled_from(sorted(TABLES)))
        place, value = draw(st.lists(st.integers(0, 30), min_size=1, max_size=5)), draw(VALUES)
        how = draw(st.sampled_from(["replace", "delete", "add", "whole"]))
        words, text = draw(st.sampled_from(TABLES[file])), f"{how} at {place}: {value!r}"[:200]
        return Damage(file, words, lambda content: _in_table(file, content, place, value, how), text)
    file = draw(st.sampled_from(sorted(BYTES)))
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "cut", "insert", "repeat", "end"]),
                st.floats(0, 1),
                st.binary(min_size=1, max_size=8),
                st.booleans(),
            ),
            min_size=1,
            max_size=6,
        )
    )
    return Damage(file, draw(st.sampled_from(BYTES[file])), lambda content: _in_bytes(content, edits), str(edits)[:200])


def _in_bytes(content: bytes, edits: Sequence[tuple[str, float, bytes, bool]]) -> bytes:
    for how, where, new, early in edits:
        reach = min(len(content), 600) if early else len(content)  # headers are at the beginning
        at = int(where * reach)
        if how == "flip":
            content = content[:at] + new + content[at + len(new) :]
        elif how == "cut":
            content = content[:at] + content[at + len(new) :]
        elif how == "insert":
            content = content[:at] + new + content[at:]
        elif how == "repeat":
            content = content[:at] + content[max(0, at - 64) : at] + content[at:]
        else:
            content = content[:at]
    return content


def _in_table(file: str, content: bytes, place: Sequence[int], value: Any, how: str) -> bytes:
    """Go down a table along `place`, an index at each level, and change what is there."""
    head = b""
    if file.endswith(".safetensors"):
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        header["__metadata__"]["pellucid"] = json.dumps(
            _changed(json.loads(header["__metadata__"]["pellucid"]), place, value, how)
        )
        written = json.dumps(header).encode()
        return struct.pack("<Q", len(written)) + written + content[8 + length :]
    if file.endswith(".jsonl"):
        rows = [json.loads(line) for line in content.splitlines()]
        return "".join(json.dumps(row) + "\n" for row in _changed(rows, place, value, how) or []).encode()
    if file.endswith(".yaml"):
        return yaml.safe_dump(_changed(yaml.safe_load(content), place, value, how), allow_unicode=True).encode(
            "utf-8", "surrogatepass"
        )
    return head + json.dumps(_changed(json.loads(content), place, value, how)).encode()


def _changed(table: Any, place: Sequence[int], value: Any, how: str) -> Any:
    if how == "whole":
        return value if not isinstance(table, list) else [value]
    inside = table
    for index, step in enumerate(place):
        keys: list[Any] = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        if not keys:
            return table
        key = keys[step % len(keys)]
        last = index == len(place) - 1 or not isinstance(inside[key], dict | list) or not inside[key]
        if not last:
            inside = inside[key]
        elif how == "delete":
            del inside[key]
            break
        elif how == "add" and isinstance(inside, dict):
            inside[str(value)[:20]] = value
            break
        else:
            inside[key] = value
            break
    return table


def make_files(folder: Path) -> Path:
    """Sound files of every kind in `folder`: what is damaged, one at a time."""
    import pellucid
    from hostile import make_base
    from pellucid.cli import main

    make_base(folder, model="conv2")
    run = str(folder / "run")
    model = pellucid.load(run)
    torch.save({"state_dict": model.state_dict()}, folder / "x.pth")
    torch.save(model.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    words = ["--device", "cpu", "--quiet", "--k", "3", "--out", str(folder / "decomposed")]
    assert main(["decompose", run, *words]) == 0
    shutil.copy(folder / "decomposed" / "filters.json", folder / "filters.json")
    pellucid.statistics(model, torch.randn(20, 1, 8, 8)).save(folder / "statistics.safetensors")
    rng = np.random.default_rng(0)
    parts = {
        f"{part}_{what}": value
        for part in ("train", "test")
        for what, value in (
            ("images", rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)),
            ("labels", np.arange(20) % 2),
        )
    }
    np.savez_compressed(folder / "x.npz", **parts)
    for label in "ab":
        for number, suffix in enumerate(("png", "jpg", "tiff", "gif", "webp", "bmp")):
            (folder / "d" / label).mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            picture.save(folder / "d" / label / f"{number}.{suffix}")
    (folder / "config.yaml").write_text("model: conv2\nepochs: 1\nlimit_batches: 1\nlr: 0.1\nmilestones: [0.5]\n")
    (folder / "plan.yaml").write_text(
        "grid: {lr: [0.1]}\nfixed: {model: conv2, epochs: 1, limit_batches: 1}\nscore: result.json:best.val_accuracy\n"
    )
    shutil.copytree(folder / "synthesis", folder / "batch")
    return folder


def check_damage(damage: Damage, files: Path, commands: Commands) -> Ended:
    """Damage a copy of `files`, and run the command: it works, or it fails in one sentence, fast and in little memory.

    When it refuses the file, it has changed nothing.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in [*damage.words.split(), damage.file]:
            top = part.partition(":")[2] or part
            top = top.partition("/")[0]
            if (files / top).is_dir() and not (folder / top).exists():
                shutil.copytree(files / top, folder / top)
            elif (files / top).is_file():
                shutil.copy(files / top, folder / top)
        file = folder / damage.file
        if file.name == "STATE":
            (file,) = file.parent.glob("state-*.safetensors")
        if damage.words == RESUME and file.name != "result.json":
            (folder / "run" / "result.json").unlink()
        file.write_bytes(damage.change(file.read_bytes()))
        before = content(folder)
        ended = commands.run(damage.words.split(), folder)
        assert ended.status in (0, 1, 2), (ended.status, ended.err[-3000:])
        if ended.status:
            line = ended.err.strip()
            assert line.startswith("pellucid: ") and line.isprintable() and len(line) <= 1000, ended.err[-3000:]
        if ended.status == 2:
            assert content(folder) == before
        assert ended.peak < 2**30 and ended.seconds < SECONDS, (ended.peak, ended.seconds)
        return ended
