"""What fits, selects or tunes refuses the images that are then measured on: every public way of it, in one table."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

import pellucid
from pellucid.classfilters import evidence
from pellucid.classfilters.fit import fit, fit_heads
from pellucid.classfilters.gates import ClassGates
from pellucid.classfilters.rules import RULES
from pellucid.classfilters.selectivity import Selectivity
from pellucid.cli import main
from pellucid.core.data.dataset import Dataset, load_data
from pellucid.core.data.splits import for_fitting
from pellucid.core.errors import InputError
from pellucid.core.facts import declare
from pellucid.core.measure.corrupt.published import read_corrupted
from pellucid.core.train.inner import train_in_place
from pellucid.core.train.settings import TrainSettings
from pellucid.distillation.objective import Distillation

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="module")
def spoiled(digits) -> Dataset:
    """Digits whose training and held-out images are test images, which no constructor would let pass."""
    made = replace(digits)
    for name in ("train", "val"):
        object.__setattr__(made, name, getattr(digits, name).marked("test"))
    return made


@pytest.fixture(scope="module")
def model(digits) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
    return declare(made, classes=digits.classes, normalization=digits.normalization)


# --- a split knows its role, and so does each part of it ---


def test_every_split_of_a_data_set_knows_its_role_and_hands_it_to_its_parts(tmp_path, digits):
    for place in range(40):
        file = tmp_path / f"{place % 2}" / f"{place}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray((digits.train.images[place, 0]).numpy()).save(file)
    named = ["digits", f"folder:{tmp_path}"]
    read = [load_data(name) for name in named] + [
        load_data(named[1], memory_budget=1),
        load_data("digits", image_size=16),
    ]
    assert read[2].train.streamed
    for data in read:
        for role in ("train", "val", "test"):
            split = data.part(role)
            few = split.take(torch.arange(2)).take(torch.arange(1))
            assert split.role == few.role == role and few.marked("val").role == "val"
            assert torch.equal(few.marked("val").fetch(torch.arange(1)), split.fetch(torch.arange(1)))
            if role == "test":
                with pytest.raises(InputError, match=r"It learns on images that .* \(train\) or .* \(val\)"):
                    for_fitting(few, "It learns")
            else:
                assert for_fitting(few, "It learns") is few


@pytest.mark.parametrize("place", ["train", "val"])
def test_test_images_cannot_take_the_place_of_others(digits, place):
    with pytest.raises(InputError, match="the test split"):
        replace(digits, **{place: digits.test.take(torch.arange(100))})
    assert replace(digits, test=digits.val).test.role == "val"  # measured on, and still not learned from


def test_published_corrupted_images_are_test_images(tmp_path, digits):
    import numpy as np

    np.save(tmp_path / "fog.npy", np.zeros((10, 8, 8, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(10, np.uint8))
    (tmp_path / "folders" / "fog" / "1" / "0").mkdir(parents=True)
    Image.fromarray(digits.test.images[0, 0].numpy()).save(tmp_path / "folders" / "fog" / "1" / "0" / "a.png")
    for path in (tmp_path, tmp_path / "folders"):
        split = read_corrupted(path).split("fog", 1, digits.classes)
        assert split.role == split.take(torch.arange(1)).role == "test"


# --- whatever fits, selects or tunes ---

FITS = {
    **{f"decompose by {rule}": lambda m, d, rule=rule: pellucid.decompose(m, d, 2, rule) for rule in RULES},
    "decompose and refit": lambda m, d: pellucid.decompose(m, d, 2, refit=True),
    "evidence": lambda m, d: evidence.measure(m, d),
    "fit the head": lambda m, d: fit(_decomposed(m), d, "head", steps=1),
    "fit the network": lambda m, d: fit(_decomposed(m), d, "network"),
    "fit heads": lambda m, d: fit_heads(m, [], d),
    "remove_class, filters selected": lambda m, d: pellucid.remove_class(m, 0, d, 2),
    "remove_class, means taken": lambda m, d: pellucid.remove_class(m, 0, d, [1]),
    "class gates": lambda m, d: ClassGates().prepare(m, d, CPU),
    "class selectivity": lambda m, d: Selectivity(layers=["1"]).prepare(m, d, CPU),
    "train": lambda m, d: pellucid.train(model="conv2", data=d, epochs=1, limit_batches=1, quiet=True, out="run"),
    "train in place": lambda m, d: train_in_place(m, d, TrainSettings(crop=0)),
    "students of all real images": lambda m, d: Distillation(alpha=0.0).data(d, 0),
    "students of few real images": lambda m, d: Distillation(alpha=0.0, images=["real:1"]).data(d, 0),
    "students of random real images": lambda m, d: Distillation(alpha=0.0, images=["random:9"]).data(d, 0),
}
COMMANDS = {
    "decompose": "decompose net.safetensors --data digits --out out",
    "decompose --fit head": "decompose net.safetensors --data digits --fit head --out out",
    "decompose --fit network": "decompose net.safetensors --data digits --fit network --out out",
    "train": "train --data digits --model conv2 --epochs 1 --limit-batches 1 --out out",
    "robust": "robust sparse.safetensors --data digits --lam adaptive --kinds gaussian_noise --max-images 9",
    "convert": "convert plain.safetensors --layers deconv --data digits --out out.safetensors",
    "pack": "pack subnet.safetensors --out out.safetensors --plain p.safetensors --data digits --max-images 20",
    "open": "open net.safetensors --data digits --max-images 20 --out out",
}
# Public functions that take data, and what they do with them; a new one has to be sorted in.
FITTING = {"train", "decompose", "remove_class", "distill"}
MEASURING = {"evaluate", "reweight", "assess", "open"}


def _decomposed(model: nn.Module) -> nn.Module:
    return pellucid.decompose(model, "digits", 2).apply(model)


@pytest.mark.parametrize("how", FITS)
def test_what_fits_selects_or_tunes_refuses_test_images(how, model, digits, spoiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="measured on, the test split"):
        FITS[how](model, spoiled)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def files(tmp_path_factory, digits, model):
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    for name, layers in (("plain", "plain"), ("net", "plain"), ("sparse", "csc"), ("subnet", "subnet")):
        made = pellucid.build("conv2", 10, 1, 8, layers=layers).eval()
        pellucid.save(
            declare(made, classes=digits.classes, normalization=digits.normalization), folder / f"{name}.safetensors"
        )
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_fit_refuse_test_images(command, files, spoiled, monkeypatch, capsys):
    monkeypatch.chdir(files)
    before = sorted(files.rglob("*"))
    monkeypatch.setattr("pellucid.core.given.load_data", lambda *_, **__: spoiled)
    monkeypatch.setattr("pellucid.core.train.setup.load_data", lambda *_, **__: spoiled)
    assert main(COMMANDS[command].split()) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "measured on, the test split" in lines[0]
    assert sorted(files.rglob("*")) == before


@pytest.mark.parametrize("fitted", ["none", "head", "network"])
def test_decompose_refuses_split_test_and_takes_the_held_out_images(fitted, files, monkeypatch, capsys, model):
    monkeypatch.chdir(files)
    words = ["decompose", "net.safetensors", "--data", "digits", "--out", "out", "--fit", fitted, "--split"]
    assert main([*words, "test"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("pellucid: Filters are found and fitted on images that accuracy is then measured on")
    assert "use the training images (train) or the held-out ones (val)" in said and not (files / "out").exists()
    with pytest.raises(InputError, match="Filters are chosen on images that accuracy is then measured on"):
        pellucid.decompose(model, "digits", 2, split="test")
    if fitted == "none":
        assert len(pellucid.decompose(model, "digits", 2, split="val").indices) == 10


def test_controls_of_students_are_refused_before_anything_is_trained(model, digits, spoiled, tmp_path):
    for place in range(20):
        file = tmp_path / "images" / f"{place % 10}" / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.train.images[place, 0].numpy()).save(file)
    teacher = pellucid.build("conv2", 10, 1, 8).eval()
    declare(teacher, classes=digits.classes, normalization=digits.normalization)
    with pytest.raises(InputError, match="measured on, the test split"):
        pellucid.distill(teacher, "conv2", tmp_path / "images", data=spoiled, out=tmp_path / "students", quiet=True)
    assert not list(tmp_path.glob("students/*/settings.yaml"))


def test_public_functions_that_take_data_either_fit_or_measure():
    found = {
        name
        for name in [*pellucid.__all__, "open"]
        if inspect.isfunction(value := getattr(pellucid, name)) and "data" in inspect.signature(value).parameters
    }
    assert found == FITTING | MEASURING


def test_images_handed_over_have_no_role_and_what_both_fits_and_measures_wants_two_sets(digits, model):
    x = digits.normalization.apply(digits.test.images / 255)
    assert len(pellucid.decompose(model, (x, digits.test.labels), 2).indices) == 10
    with pytest.raises(InputError, match="selected_on="):
        pellucid.remove_class(model, 0, (x, digits.test.labels), 2)
