"""Test images that are copies of training images: found, said, and left out of a second accuracy."""

from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest
import torch

import pellucid
from pellucid.cli import main
from pellucid.core.data.copies import copies, copies_in
from pellucid.core.data.dataset import Dataset, load_data
from pellucid.core.data.splits import MemorySplit
from pellucid.core.measure.evaluate import evaluate
from pellucid.core.measure.share import wilson

PLANTED = 400


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Digits, with 400 training images among the test images, in any order and with labels that may differ."""
    digits, rng = load_data("digits"), torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(digits.train), generator=rng)[:PLANTED]
    images = torch.cat([digits.test.images, digits.train.images[chosen]])
    labels = torch.cat([digits.test.labels, torch.randint(10, (PLANTED,), generator=rng)])
    order = torch.randperm(len(images), generator=rng)
    return dataclasses.replace(digits, test=MemorySplit(images[order], labels[order]))


@pytest.fixture(scope="module")
def planted(data, tmp_path_factory) -> str:
    """The same as a file."""
    arrays = {}
    for name in ("train", "val", "test"):
        split = data.part(name)
        arrays |= {f"{name}_images": split.images[:, 0].numpy(), f"{name}_labels": split.labels.numpy()}
    file = tmp_path_factory.mktemp("data") / "planted.npz"
    np.savez(file, **arrays)
    return f"npz:{file}"


def by_comparing(split: MemorySplit, of: MemorySplit) -> torch.Tensor:
    """The positions of copies, from all pairs of images."""
    one, other = (part.images.flatten(1) for part in (split, of))
    return (torch.cdist(one.double(), other.double(), p=1) == 0).any(1).nonzero().flatten()


def test_planted_copies_are_found(data):
    found = copies(data.test, data.train)
    assert found.number == PLANTED and found.total == 850
    assert found.indices.tolist() == by_comparing(data.test, data.train).tolist()


def test_digits_have_none():
    digits = load_data("digits")
    assert copies_in(digits) == {"val": 0, "test": 0}
    assert not len(by_comparing(digits.test, digits.train))


def test_the_same_bytes_in_another_shape_are_another_image():
    images = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4)
    one, other = MemorySplit(images, torch.zeros(1)), MemorySplit(images.view(1, 1, 4, 3), torch.zeros(1))
    assert copies(one, one).number == 1 and copies(one, other).number == 0
    assert copies(one, one.take(torch.tensor([], dtype=torch.int64))).number == 0


def test_files_of_a_streamed_folder_are_compared_by_their_bytes(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for kind in "ab":
            (tmp_path / split / kind).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (120 + number, 110, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / kind / f"{number}.png")
    copied = (tmp_path / "train" / "a" / "2.png").read_bytes()
    (tmp_path / "test" / "b" / "1.png").write_bytes(copied)
    found = load_data(f"folder:{tmp_path}", memory_budget=1)
    assert found.test.streamed
    (row,) = copies(found.test, found.train).indices.tolist()
    assert found.test.paths[row] == tmp_path / "test" / "b" / "1.png"
    in_memory = MemorySplit(found.train.fetch(torch.arange(len(found.train))), found.train.labels)
    assert copies(found.test, in_memory).indices.tolist() == [row]


def test_the_accuracy_without_copies_is_that_of_the_others(data):
    torch.manual_seed(0)
    model, apart = pellucid.build("conv2", 10, 1, 8).eval(), copies(data.test, data.train)
    pellucid.declare(model, classes=data.classes, normalization=data.normalization)
    others = sorted(set(range(850)) - set(by_comparing(data.test, data.train).tolist()))
    with torch.no_grad():
        predicted = model(data.normalization.apply(data.test.images.float() / 255)).argmax(1)
    right = int((predicted == data.test.labels)[others].sum())
    for parts in (850, 100):
        found = evaluate(model, data, batch_size=parts, copies=apart)
        assert (found.copies, found.without_copies.correct, found.without_copies.n) == (PLANTED, right, 450)
        kept = found.to_json()["without_copies"]
        assert (kept["accuracy"], kept["interval"]) == (right / 450, list(wilson(right, 450)))
    assert evaluate(model, data).without_copies is None


def test_train_evaluate_and_open_say_so(planted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", planted, "--model", "conv2", "--epochs", "1", "--out", "run"]
    assert main(words) == 0
    sentence = "400 of 850 test images are exact copies of training images; on the 450 others the accuracy is "
    assert sentence in " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["copies"] == {"val": 0, "test": PLANTED}
    kept = result["test"]["without_copies"]
    assert kept["n"] == 450

    assert main(["evaluate", "run"]) == 0
    assert sentence in capsys.readouterr().out
    for split, expected in (("test", PLANTED), ("val", 0), ("train", None)):
        assert main(["evaluate", "run", "--split", split, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["copies"] == expected
        assert split != "test" or found["without_copies"] == kept

    assert main(["open", "run", "--out", "page"]) == 0
    assert sentence in capsys.readouterr().out
    card = json.loads((tmp_path / "page" / "audit.json").read_text())["accuracy"]
    assert (card["copies"], card["without_copies"]) == (PLANTED, kept)
    assert sentence in (tmp_path / "page" / "index.html").read_text()


def test_without_copies_nothing_is_said_but_the_zero_is_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--model", "conv2", "--epochs", "1", "--limit-batches", "1", "--out", "run"]) == 0
    assert "copies" not in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["copies"] == {"val": 0, "test": 0} and result["test"]["copies"] == 0
    assert result["test"]["without_copies"]["n"] == 450


def test_an_audit_without_training_images_cannot_know(data, tmp_path):
    model = pellucid.build("conv2", 10, 1, 8)
    pellucid.declare(model, classes=data.classes, normalization=data.normalization)
    images = data.normalization.apply(data.test.images.float() / 255)
    report = pellucid.open(model, (images, data.test.labels), tmp_path / "page")
    assert report.audit["accuracy"]["copies"] is None and report.audit["accuracy"]["without_copies"] is None


def test_as_many_images_as_cifar_take_about_a_second():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (60_000, 3, 32, 32), np.uint8))
    train, test = (MemorySplit(part, torch.zeros(len(part))) for part in images.split([50_000, 10_000]))
    began = time.process_time()
    assert copies(test, train).number == 0
    assert time.process_time() - began < 5  # 0.5 s here; a busy machine gets time
