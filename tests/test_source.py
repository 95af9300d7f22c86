"""Models and data as a command line names them."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

import pellucid
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization, facts
from pellucid.core.flags import SourceSettings
from pellucid.core.source import open_source


def test_an_architectures_name_is_a_network_for_the_data():
    found = open_source("resnet18", data="digits", seed=3)
    assert found.title == "resnet18 (random weights)" and found.run is None and found.device == "cpu"
    description = facts(found.model).description
    assert (description["model"], description["num_classes"], description["in_channels"]) == ("resnet18", 10, 1)
    assert description["image_size"] == [8, 8] and not found.model.training
    assert facts(found.model).classes == found.dataset.classes
    weights = found.model.state_dict()
    again, other = (open_source("resnet18", data="digits", seed=seed).model.state_dict() for seed in (3, 4))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not torch.equal(weights["conv1.weight"], other["conv1.weight"])
    assert open_source("resnet18", SourceSettings(data="digits", image_size=12)).dataset.image_size == (12, 12)
    settings = SourceSettings(data="digits", mean=[0.1], std=[0.5])
    norm = facts(open_source("resnet18", settings).model).normalization
    assert norm == Normalization((0.1,), (0.5,))


def test_a_file_comes_before_an_architecture_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pellucid.save(pellucid.build("conv2", 10, 1, 8), "resnet20")
    found = open_source("resnet20", data="digits")
    assert facts(found.model).description["model"] == "conv2" and found.title == "resnet20"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "name data with --data"),
        ({"data": "digits", "model": "resnet20"}, "leave out --model"),
        ({"data": "digits", "mean": [0.5]}, "give both"),
        ({"data": "digits", "mean": [0.5], "std": [0.0]}, "above 0"),
        ({"data": "digits", "mean": [0.5] * 3, "std": [1.0] * 3}, "need 1 numbers each"),
        ({"data": "digits", "device": "cuda:99"}, "no device 'cuda:99'"),
    ],
)
def test_what_does_not_fit_is_a_sentence(options, said):
    settings = SourceSettings(**{name: value for name, value in options.items() if name != "device"})
    with pytest.raises(InputError, match=said):
        open_source("resnet20", settings, device=options.get("device", "cpu"))


@pytest.mark.parametrize("name", ["=run", "resnet20="])
def test_half_a_pair_of_model_and_file_is_called_so(name):
    with pytest.raises(InputError, match="is not MODEL=FILE: name both"):
        open_source(name, SourceSettings(data="digits"))


def test_settings_open_and_repeat_themselves(tmp_path):
    settings = SourceSettings(data="digits", image_size=10, mean=[0.25], std=[0.5])
    assert settings.flags() == ["--data", "digits", "--image-size", "10", "--mean", "0.25", "--std", "0.5"]
    assert SourceSettings().flags() == []
    found = open_source("resnet20", settings, seed=1)
    assert found.dataset.image_size == (10, 10) and facts(found.model).normalization.mean == (0.25,)


def test_a_foreign_checkpoint_is_given_the_images_as_they_are(tmp_path):
    """Its weights do not tell the size of its images, however it is named."""
    torch.save(pellucid.build("resnet8", 10, 1, 8).state_dict(), tmp_path / "a.pth")
    for named, settings in (
        (f"resnet8={tmp_path / 'a.pth'}", SourceSettings(data="digits")),
        (tmp_path / "a.pth", SourceSettings(data="digits", model="resnet8")),
    ):
        found = open_source(named, settings)
        assert found.dataset.image_size == (8, 8) and not found.model.training
        assert open_source(named, dataclasses.replace(settings, image_size=12)).dataset.image_size == (12, 12)


@pytest.mark.vision
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_zoos_architecture_says_its_image_size():
    found = open_source("torchvision:resnet18", SourceSettings(data="digits", image_size=32))
    assert facts(found.model).description["image_size"] == [32, 32]
    assert found.model(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    assert open_source("timm:levit_128s", data="digits").dataset.image_size == (224, 224)
