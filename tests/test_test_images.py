"""`test:PATH`: images that are measured on, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import pellucid
from pellucid import cli
from pellucid.core.data.dataset import load_data
from pellucid.core.data.folder import FolderSplit
from pellucid.core.data.splits import MemorySplit
from pellucid.core.errors import InputError
from pellucid.core.facts import declare
from pellucid.core.train.run import Run

HALF = {"mean": [0.5] * 3, "std": [0.25] * 3}


def fill(root, classes, size=(8, 8), suffix=".png"):
    """A folder of random images: class -> number of images."""
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}{suffix}")
    return root


@pytest.fixture
def stored(tmp_path):
    """A network of three classes that records its normalisation and classes, and a folder of test images for it."""
    torch.manual_seed(0)
    model = pellucid.build("resnet8", 3, 3, 8)
    pellucid.save(declare(model, classes=["ant", "bee", "cat"], normalization=HALF), tmp_path / "net.safetensors")
    fill(tmp_path / "images", {"ant": 3, "bee": 2, "cat": 4})
    return str(tmp_path / "net.safetensors"), f"test:{tmp_path / 'images'}"


# ---- reading


def test_a_folder_of_test_images_has_these_alone(tmp_path):
    fill(tmp_path, {"b": 3, "a": 2})
    found = load_data(f"test:{tmp_path}")
    assert (found.classes, found.kind) == (("a", "b"), "test")
    assert [len(found.part(name)) for name in ("train", "val", "test")] == [0, 0, 5]
    assert found.test.role == "test" and found.test.labels.tolist() == [0, 0, 1, 1, 1]
    assert found.mean == found.std == () and found.channels == 3 and found.image_size == (8, 8)
    with pytest.raises(InputError, match="no training images to take a mean and standard deviation from: give --mean"):
        found.normalization  # noqa: B018


def test_images_are_the_same_as_in_a_folder_with_training_images(tmp_path):
    """In memory, resized and streamed."""
    fill(tmp_path / "train", {"a": 10, "b": 10}, (40, 30))
    fill(tmp_path / "test", {"a": 2, "b": 3}, (40, 30))
    every = torch.arange(5)
    for size, kind in ((None, MemorySplit), (16, MemorySplit), (100, FolderSplit)):
        both = load_data(f"folder:{tmp_path}", image_size=size), load_data(f"test:{tmp_path}/test", image_size=size)
        assert all(type(one.test) is kind for one in both)
        assert torch.equal(both[0].test.fetch(every), both[1].test.fetch(every))


def test_large_images_get_the_side_of_the_network(tmp_path):
    fill(tmp_path / "a", {"x": 1}, (150, 120))
    fill(tmp_path / "b", {"x": 1}, (50, 50))
    assert load_data(f"test:{tmp_path / 'a'}", large_side=100).image_size == (100, 100)
    assert load_data(f"test:{tmp_path / 'b'}", large_side=100).image_size == (50, 50)
    assert load_data(f"test:{tmp_path / 'a'}", large_side=100, image_size=64).image_size == (64, 64)
    assert load_data(f"test:{tmp_path / 'a'}").image_size == (150, 120)


@pytest.mark.parametrize("prefix", ["test_", ""])
def test_an_npz_file_of_test_images(tmp_path, prefix):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", **{f"{prefix}images": pixels, f"{prefix}labels": np.array([7, 2, 2, 7, 9])})
    found = load_data(f"test:{tmp_path / 'x.npz'}")
    assert found.classes == ("2", "7", "9") and found.test.labels.tolist() == [1, 0, 0, 1, 2]
    assert not len(found.train) and found.test.fetch(torch.tensor([1])).permute(0, 2, 3, 1).numpy().tolist() == [
        pixels[1].tolist()
    ]
    assert load_data(f"test:{tmp_path / 'x.npz'}", image_size=12).image_size == (12, 12)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, "is no folder; test:PATH takes one with a folder of images per class"),
        (lambda root: root.mkdir(), "holds no class folder"),
        (lambda root: fill(root, {"a": 0}), "holds no image in any of its class folders"),
        (lambda root: fill(root / "test", {"a": 1}), r"holds test, not classes; name .* test:.*/test"),
    ],
)
def test_what_is_no_such_folder_is_a_sentence(tmp_path, make, said):
    make(tmp_path / "x")
    with pytest.raises(InputError, match=said):
        load_data(f"test:{tmp_path / 'x'}")


# ---- what measures, and what refuses


def test_it_is_evaluated(stored, capsys):
    assert cli.main(["evaluate", stored[0], "--data", stored[1], "--json"]) == 0
    assert '"n": 9' in capsys.readouterr().out
    assert pellucid.evaluate(pellucid.load(stored[0]), stored[1]).n == 9


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "--model", "resnet8", "--data"], "A network is trained on training images"),
        (["decompose", "{net}", "--out", "{out}", "--data"], "Filters are found and fitted on training images"),
        (["decompose", "{net}", "--out", "{out}", "--split", "val", "--data"], "fitted on training images"),
        (["decompose", "{net}", "--out", "{out}", "--split", "test", "--data"], "fitted on training images"),
        (
            ["convert", "{net}", "--layers", "deconv", "--out", "{out}.safetensors", "--data"],
            "Whitening is calibrated",
        ),
        (["robust", "{net}", "--lam", "adaptive", "--data"], "Lambda is calibrated on training images"),
        (["evaluate", "{net}", "--split", "train", "--data"], "has no images to evaluate on in its split 'train'"),
    ],
)
def test_what_fits_or_selects_refuses_in_one_sentence(stored, tmp_path, monkeypatch, capsys, command, said):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(net=stored[0], out=tmp_path / "out") for word in command]
    assert cli.main([*words, stored[1]]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    if "evaluate" not in command:
        assert "these data have none: name data that have, such as cifar10 or folder:PATH" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_student_is_tested_on_it(stored, tmp_path, capsys):
    fill(tmp_path / "made", {"ant": 8, "bee": 8, "cat": 8})
    words = ["distill", stored[0], "resnet8", str(tmp_path / "made"), "--epochs", "1", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--no-controls", "--data", stored[1], "--quiet"]) == 0, capsys.readouterr().err
    run = Run(tmp_path / "out" / "student")
    assert run.result()["test"]["n"] == 9


def test_a_folder_of_images_is_assessed_with_it(stored, tmp_path, capsys):
    fill(tmp_path / "made", {"ant": 8, "bee": 8, "cat": 8})
    assert cli.main(["assess", stored[0], str(tmp_path / "made"), "--data", stored[1], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["real"] == 9 and found["leaks"] == []


def test_it_is_opened_and_measured_under_corruptions(stored, tmp_path, capsys):
    report = pellucid.open(stored[0], stored[1], tmp_path / "page")
    assert report.audit["accuracy"]["n"] == 9 and report.audit["data"]["images"] == {"train": 0, "val": 0, "test": 9}
    kinds = ["--kinds", "gaussian_noise", "--severities", "1", "--json"]
    assert cli.main(["robust", stored[0], "--data", stored[1], *kinds]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 9
