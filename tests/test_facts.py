"""What is known of a network is what was declared: a module's own attributes may have any name and type."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pellucid
from pellucid.audit.commands import open as open_command
from pellucid.core.errors import InputError
from pellucid.core.facts import ModelFacts, Normalization, declare, facts
from pellucid.core.flags import SourceSettings


class Homonyms(nn.Module):
    """A classifier of 8x8 digits whose attributes have the names of our facts and mean something else."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(),
        )  # fmt: skip
        self.classes = nn.Linear(12, 10)
        self.normalization = 3.0
        self.description = {"model": nn.ReLU, "image_size": "large"}
        self.changes = "none"
        self.image_size = nn.Identity()
        self.side = "left"
        self.register_buffer("difference", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classes(self.features(x).mean((2, 3)))


NORM = Normalization((0.3,), (0.4,))


def digits(split: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    part = pellucid.load_data("digits").part(split)
    return NORM.apply(part.fetch(torch.arange(n)).float() / 255), part.labels[:n]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = Homonyms()
    x, y = digits("train", 600)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for step in range(40):
        rows = slice(100 * (step % 6), 100 * (step % 6) + 100)
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


@pytest.fixture
def declared(model) -> nn.Module:
    return declare(copy.deepcopy(model), normalization=NORM)


# --- a module with homonyms, through everything ---


def test_nothing_is_believed_for_its_name(model, declared):
    assert facts(model) == ModelFacts()
    assert facts(declared) == ModelFacts(normalization=NORM)
    assert isinstance(declared.classes, nn.Linear) and declared.normalization == 3.0
    assert facts(copy.deepcopy(declared)).normalization == NORM


def test_it_is_evaluated_and_decomposed(declared):
    images, labels = digits("test", 300)
    found = pellucid.evaluate(declared, "digits")
    with torch.no_grad():
        declared.eval()
        wanted = int((declared(images).argmax(1) == labels).sum())
    declared.train()
    given = pellucid.evaluate(declared, (images, labels))
    assert given.correct == wanted and given.classes == tuple("0123456789")
    assert found.n == 450 and found.top1 > 0.2 and declared.training
    filters = pellucid.decompose(declared, "digits", k=3)
    assert filters.layer == "classes" and filters.classes == tuple(map(str, range(10)))


def test_its_statistics_are_read_and_images_are_inverted_and_visualized(declared):
    assert list(pellucid.statistics(declared)) == ["features.1"]
    made = pellucid.invert(declared, [3, 7], shape=(1, 8, 8), steps=2, quiet=True)
    assert made.images.shape == (2, 1, 8, 8)
    seen = pellucid.visualize(declared, digits("test", 10)[0], layer="features")
    assert list(seen.layers) == ["features"] and seen.normalization == NORM


def test_it_is_converted_and_folded(declared):
    for made in (pellucid.convert(declared, "deconv"), pellucid.fold(declared.eval(), digits("test", 8)[0])):
        assert facts(made).changes and facts(made).normalization == NORM
        assert isinstance(made.classes, nn.Linear | pellucid.FastDeconvLinear) and made.changes == "none"
    assert facts(made).difference < 1e-5


def test_it_is_saved_and_loaded_into_its_like(declared, tmp_path):
    pellucid.save(declared, tmp_path / "m.safetensors")
    loaded = pellucid.load(tmp_path / "m.safetensors", Homonyms())
    x = digits("test", 5)[0]
    assert torch.equal(loaded.eval()(x), declared.eval()(x))
    assert facts(loaded).normalization == NORM and loaded.normalization == 3.0


# --- the page, for every form of data ---


def test_the_page_opens_for_every_form_of_data(declared, tmp_path):
    images, labels = digits("test", 450)
    forms = {
        "name": "digits",
        "dataset": pellucid.load_data("digits"),
        "pair": (images, labels),
        "loader": DataLoader(TensorDataset(images, labels), batch_size=64),
    }
    found = {name: pellucid.open(declared, data, tmp_path / name).audit for name, data in forms.items()}
    assert found["name"]["accuracy"] == found["dataset"]["accuracy"]
    for name in ("pair", "loader"):
        assert found[name]["accuracy"]["correct"] == found["name"]["accuracy"]["correct"]
        assert found[name]["noise"]["severities"] == found["name"]["noise"]["severities"]
        assert found[name]["data"]["images"] == {"train": 0, "val": 0, "test": 450}
        # Without training images, filters are found on one half and measured on the other.
        page = (tmp_path / name / "index.html").read_text()
        assert "on half of the images, 225 that are kept apart for this; accuracy is measured on the other 225" in page
        assert found[name]["filters"]["images"] == 225 and found["name"]["filters"]["images"] == 450


def test_images_of_unknown_normalisation_are_refused(model, tmp_path):
    with pytest.raises(InputError, match="pellucid.declare"):
        pellucid.open(model, digits("test", 20), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sparse_networks_open_without_training_images(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(pellucid.CSC2d(1, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    report = pellucid.open(declare(net, normalization=NORM), digits("test", 40), tmp_path)
    assert report.audit["accuracy"]["n"] == 40
    assert "calibrated on training images" in report.path.read_text()


def test_the_models_own_image_size_is_heeded(tmp_path):
    torch.manual_seed(0)
    net = pellucid.build("conv2", 10, 1, 16)
    assert pellucid.open(net, "digits", tmp_path).audit["data"]["image_size"] == [16, 16]


# --- the state that a call leaves behind ---


def state() -> list[object]:
    return [
        torch.random.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 (the global state that users seed)
        random.getstate(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.is_grad_enabled(),
    ]


def test_modes_and_random_state_are_as_before(declared, tmp_path):
    from pellucid.robust.measure import measure
    from pellucid.robust.subject import subject_of
    from pellucid.robust.trial import Trial
    from pellucid.robust.under_attack import under_attack

    dataset = pellucid.load_data("digits")
    declared.train()
    declared.features[1].eval()  # as where batch norm is frozen
    trial = Trial(subject_of(declared, dataset))
    calls = {
        "open": lambda: pellucid.open(declared, dataset, tmp_path / "page"),
        "visualize": lambda: pellucid.visualize(declared, digits("test", 4)[0], layer="features"),
        "measure": lambda: measure(trial, dataset, ["gaussian_noise"], severities=[1], images=20),
        "attack": lambda: under_attack(trial, dataset, images=20, eps=0.1, norm="linf", steps=2),
    }
    modes = [module.training for module in declared.modules()]
    weights = copy.deepcopy(declared.state_dict())
    for name, call in calls.items():
        before = state()
        call()
        assert [module.training for module in declared.modules()] == modes, name
        assert state() == before, name
        assert all(torch.equal(value, weights[key]) for key, value in declared.state_dict().items()), name


# --- the command ---


def test_the_command_prints_json_or_nothing_and_gates_decide(declared, tmp_path, capsys):
    torch.manual_seed(0)
    pellucid.save(pellucid.build("conv2", 10, 1, 8), tmp_path / "m.safetensors")
    source = SourceSettings(data="digits")
    words = {"source": source, "out": str(tmp_path / "page"), "max_images": 50, "device": "cpu"}
    assert open_command(str(tmp_path / "m.safetensors"), json=True, gate=["accuracy.top1 > 2"], **words) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "page" / "audit.json").read_text())
    assert printed["accuracy"]["n"] == 50 and printed["data"]["images"]["test"] == 450 and printed["passed"] is False
    assert "50 of the 450 test images" in (tmp_path / "page" / "index.html").read_text()
    assert open_command(str(tmp_path / "m.safetensors"), quiet=True, **words) == 0
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="max_images=0 is out of range"):
        open_command(str(tmp_path / "m.safetensors"), **{**words, "max_images": 0})


@pytest.mark.parametrize(
    "value", [5, "x", [0.5], {}, {"mean": [0.5]}, {"mean": None, "std": [1]}, {"mean": ["x"], "std": [1]},
              {"mean": [10**400], "std": [1]}],
)  # fmt: skip
def test_a_table_of_another_form_is_no_normalisation(value):
    with pytest.raises(InputError, match="is not a normalisation: give a table"):
        declare(nn.Identity(), normalization=value)
