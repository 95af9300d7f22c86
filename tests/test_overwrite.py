"""Commands write over what they wrote themselves, and over nothing else unless they are told to."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path

import pytest
import torch
import yaml

import pellucid
from pellucid import cli
from pellucid.core.errors import InputError
from pellucid.core.files.ours import Output, begins, check_outputs, holds, network_of, nobodys, page, picture_of
from pellucid.core.registry import place
from pellucid.ideas import COMMANDS
from strategies import check_command_line, sandbox

WRITES_NOTHING = {"evaluate"}
HAS_A_GUARD = {"train", "synthesize"}  # continue their own folder, and refuse any other

# What each command writes, the words that make it write, and the files that must be its own.
WRITERS = {
    "convert": (["convert", "bn.safetensors", "--layers", "deconv", "--out", "out/x"], ["x"]),
    "fold": (["fold", "bn.safetensors", "--out", "out/x"], ["x"]),
    "export": (["export", "bn.safetensors", "--out", "out/x.pt2"], ["x.pt2"]),
    "pack": (["pack", "subnet.safetensors", "--out", "out/x", "--plain", "out/y"], ["x", "y"]),
    "open": (["open", "bn.safetensors", "--data", "digits", "--max-images", "20", "--out", "out"],
             ["index.html", "audit.json"]),
    "decompose": (["decompose", "bn.safetensors", "--data", "digits", "--out", "out"],
                  ["filters.json", "result.json", "decomposed.safetensors"]),
    "visualize": (["visualize", "sparse.safetensors", "--data", "digits", "--max-images", "2", "--out", "out"],
                  ["overview.png", "visualize.json", "conv1-atoms.png", "conv1-reconstruction.png", "conv1-uses.png"]),
    "robust": (["robust", "bn.safetensors", "--data", "digits", "--max-images", "4", "--kinds", "contrast",
                "--severities", "1", "--out", "out/x"], ["x"]),
    "invert": (["invert", "bn.safetensors", "--count", "1", "--steps", "1", "--out", "out"],
               ["grid.png", "invert.json", "0_00000_seed0.png"]),
    "assess": (["assess", "bn.safetensors", "images", "--data", "digits", "--max-images", "30", "--out", "out"],
               ["assess.json", "leaks.png"]),
    "distill": (["distill", "bn.safetensors", "conv2", "images", "--epochs", "1", "--no-controls", "--data", "digits",
                 "--out", "out"], ["distill.json"]),
    "search": (["search", "evaluate", "--grid", "grid.yaml", "--out", "out"], ["best-evaluate.yaml"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Small networks, a folder of images, and a plan."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("networks")
    norm = {"mean": [0.5], "std": [0.25]}
    digits = tuple(map(str, range(10)))
    for name, model, layers in (
        ("bn", "resnet8", "plain"),
        ("sparse", "resnet8", "csc"),
        ("subnet", "conv2", "subnet"),
    ):
        network = pellucid.declare(pellucid.build(model, 10, 1, 8, layers), classes=digits, normalization=norm)
        pellucid.save(network.eval(), folder / f"{name}.safetensors")
    pixels = torch.Generator().manual_seed(0)
    for label in digits:
        (folder / "images" / label).mkdir(parents=True)
        for number in range(3):
            image = torch.randint(256, (8, 8), generator=pixels, dtype=torch.uint8)
            Image.fromarray(image.numpy()).save(folder / "images" / label / f"{number}.png")
    (folder / "grid.yaml").write_text("grid: {seed: [0]}\nfixed: {checkpoint: nowhere}\nscore: x.json:a\n")
    return folder


@pytest.fixture
def box(networks, tmp_path):
    """A folder with links to those networks, and an empty folder `out`."""
    for path in networks.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "out").mkdir()
    return tmp_path


def test_every_command_that_writes_is_here():
    assert set(COMMANDS) == set(WRITERS) | WRITES_NOTHING | HAS_A_GUARD
    for name in WRITERS:
        assert "overwrite" in inspect.signature(place(COMMANDS[name])).parameters, name


@pytest.mark.parametrize("command", WRITERS)
def test_nothing_is_written_over_a_file_of_others(command, box):
    """Text, JSON and pictures of others, a link to one, and a link that leads nowhere."""
    words, names = WRITERS[command]
    for name in names:
        file = box / "out" / name
        for make in (
            lambda file: file.write_text("my notes"),
            lambda file: file.write_text('{"mine": 1}'),
            lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n"),
            lambda file: (box / "elsewhere").write_text("mine") and file.symlink_to(box / "elsewhere"),
            lambda file: file.symlink_to(box / "nothing"),
        ):
            make(file)
            status, err = check_command_line(words, box)
            assert status == 2 and "--overwrite" in err and repr(f"out/{name}") in err, err
            file.unlink()
        file.mkdir()
        for flags in ([], ["--overwrite"]):
            status, err = check_command_line([*words, *flags], box)
            assert status == 2 and "is a folder" in err, err
        file.rmdir()
        os.mkfifo(file)
        status, err = check_command_line([*words, "--overwrite"], box)
        assert status == 2 and "no regular file" in err, err
        file.unlink()


@pytest.mark.parametrize("command", [name for name in WRITERS if name != "search"])
def test_what_a_command_wrote_itself_it_replaces(command, box, monkeypatch, capsys):
    monkeypatch.chdir(box)
    words, names = WRITERS[command]
    assert cli.main([*words, "--quiet"]) == 0, capsys.readouterr().err
    for name in names:
        assert (box / "out" / name).is_file(), (name, os.listdir(box / "out"))
    before = {name: (box / "out" / name).stat().st_ino for name in names}
    assert cli.main([*words, "--quiet"]) == 0, capsys.readouterr().err
    assert all((box / "out" / name).stat().st_ino != inode for name, inode in before.items())
    for name in names:
        (box / "out" / name).write_text("mine")
    assert cli.main([*words, "--quiet"]) == 2
    assert cli.main([*words, "--quiet", "--overwrite"]) == 0, capsys.readouterr().err
    assert all((box / "out" / name).read_bytes() != b"mine" for name in names)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--model", "conv2", "--epochs", "1", "--out", "out"],
        ["synthesize", "bn.safetensors", "--per-class", "1", "--steps", "1", "--out", "out"],
        ["distill", "bn.safetensors", "conv2", "images", "--epochs", "1", "--no-controls", "--out", "out"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("name", ["notes.txt", "settings.yaml", "synthesis.json", "student"])
def test_what_can_be_continued_is_not_begun_in_a_folder_of_others(words, name, box):
    """Nothing changes there, not even by a lock."""
    if name == "student":
        (box / "out" / name).mkdir()
        (box / "out" / name / "settings.yaml").write_text("mine: 1")
    else:
        (box / "out" / name).write_text("mine")
    if words[0] == "distill" and name != "student":
        return  # which writes only into folders below
    status, err = check_command_line(words, box)
    assert status == 2, err


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "run", "--layers", "deconv", "--out", "run/best.safetensors"],
        ["convert", "run", "--layers", "deconv", "--out", "link"],
        ["convert", "resnet8=run/best.safetensors", "--layers", "deconv", "--out", "run/best.safetensors"],
        ["fold", "run", "--out", "run/settings.yaml"],
        ["fold", "run/best.safetensors", "--out", "run/best.safetensors"],
        ["fold", "run/best.safetensors", "--out", "run/../run/best.safetensors"],
        ["pack", "run", "--out", "x", "--plain", "run/best.safetensors"],
        ["decompose", "run", "--out", "run"],
        ["robust", "run", "--out", "run/settings.yaml"],
        ["robust", "resnet8", "--data", "digits", "--baseline", "run", "--out", "run/best.safetensors"],
        ["robust", "resnet8", "--data", "npz:data.npz", "--out", "data.npz"],
        ["open", "run", "--out", "run"],
    ],
    ids=" ".join,
)
def test_a_source_is_never_replaced(words, box):
    """Not even with --overwrite."""
    from pellucid.core.train.run import Run

    Run.start(box / "run", pellucid.TrainSettings(model="resnet8")).release()
    (box / "run" / "best.safetensors").write_bytes((box / "bn.safetensors").read_bytes())
    for name in ("result.json", "index.html"):
        (box / "run" / name).write_text("{}")
    (box / "data.npz").write_bytes(b"")
    (box / "link").symlink_to("run/best.safetensors")
    for flags in ([], ["--overwrite"]):
        status, err = check_command_line([*words, *flags], box)
        assert status == 2 and "never replaced" in err, err


def test_a_folded_file_is_not_replaced_by_a_converted_one(box, monkeypatch, capsys):
    monkeypatch.chdir(box)
    assert cli.main(["fold", "bn.safetensors", "--out", "f.safetensors", "--quiet"]) == 0
    words = ["convert", "bn.safetensors", "--layers", "deconv", "--out", "f.safetensors", "--quiet"]
    assert cli.main(words) == 2
    assert "pellucid convert did not write it" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0


def test_the_best_flags_of_a_search_are_its_own(tmp_path):
    from pellucid.search import commands
    from pellucid.search.plan import Plan

    plan = Plan(("train",), {"lr": [1]}, {"epochs": 2}, (("result.json", ("a",)),), "maximize")
    commands._write_best(plan, {"point": {"lr": 1}, "folder": "t"}, tmp_path)
    assert begins(commands.WRITTEN)(tmp_path / "best-train.yaml")
    assert yaml.safe_load((tmp_path / "best-train.yaml").read_text()) == {"epochs": 2, "lr": 1}


def test_a_page_tells_who_wrote_it(box, monkeypatch):
    monkeypatch.chdir(box)
    assert cli.main([*WRITERS["open"][0], "--quiet"]) == 0
    assert page(box / "out" / "index.html")
    (box / "out" / "other.html").write_text('<meta name="generator" content="Hugo">')
    assert not page(box / "out" / "other.html")


def test_damaged_files_are_nobodys(tmp_path):
    sandbox(tmp_path / "box")
    (tmp_path / "box" / "long.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\xff\xff\xff\xfftEXt" + bytes(100))
    (tmp_path / "box" / "short.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "box" / "deep.json").write_text("[" * 100_000)
    (tmp_path / "box" / "list.json").write_text("[]")
    (tmp_path / "box" / "length.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    (tmp_path / "box" / "odd.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    (tmp_path / "box" / "text.safetensors").write_bytes(
        len(text := json.dumps({"__metadata__": {"pellucid": "[1]"}}).encode()).to_bytes(8, "little") + text
    )
    files = [path for path in (tmp_path / "box").iterdir() if path.is_file()]
    assert len(files) > 10
    for path in files:
        for ours in (nobodys, page, holds("a"), network_of("fold"), picture_of("invert"), begins("# mine")):
            assert ours(path) is False


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path, said in (("file/x/y", "is not a folder"), ("new/x", "")):
        if said:
            with pytest.raises(InputError, match=said):
                check_outputs([Output(tmp_path / path, nobodys)], True, command="fold")
        else:
            check_outputs([Output(tmp_path / path, nobodys)], False, command="fold")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="may not be written to"):
        check_outputs([Output(tmp_path / "new" / "x", nobodys)], True, command="fold")
    assert not Path(tmp_path / "new").exists()
