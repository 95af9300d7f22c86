"""Checkpoints are recognised by their tensors, and never taken for one of several networks in silence."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

import pellucid
from pellucid.cli import main
from pellucid.core.errors import InputError
from pellucid.core.network import models, recognize
from pellucid.core.network.projects import PROJECTS
from pellucid.core.network.skeleton import skeleton

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
FORMS = [(name, form) for name in models.names() for form in models.forms_of(name)]


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def built(name, classes=10, channels=3, size=32, **options):
    torch.manual_seed(0)
    return models.build(name, classes, channels, size, **options).eval()


def renamed(model, head="fc", to="linear", prefix=""):
    return {prefix + name.replace(f"{head}.", f"{to}."): value for name, value in model.state_dict().items()}


# --- the index ---


def test_the_index_is_small():
    assert recognize.INDEX.stat().st_size < 200_000


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_built_in_network_is_in_the_index(name, form):
    """The index is made by a script: what was changed since would not be recognised."""
    size = 32 if form == "small" or name in ("conv2", "conv4", "conv6", "conv8") else 224
    empty = skeleton(lambda: models.build(name, 17, 1, size, form=form))
    found = [meaning.names for meaning in recognize.meanings(empty.state_dict())]
    assert any(name in names for names in found), found


@pytest.mark.parametrize("project", PROJECTS.names())
def test_every_published_network_is_in_the_index(project):
    listed = {name for groups in recognize._index()["networks"].values() for names, _ in groups for name in names}
    assert {f"{project}:{name}" for name in PROJECTS[project].names()} <= listed


@pytest.mark.vision
@needs_timm
@pytest.mark.parametrize(
    "name", ["torchvision:mobilenet_v2", "timm:resnet26", "timm:convnext_atto", "torchvision:resnet50"]
)
def test_networks_of_libraries_are_in_the_index(name):
    from pellucid.core.network.described import usual_size

    empty = skeleton(lambda: models.build(name, 17, 3, usual_size(name)))
    assert name in [one for meaning in recognize.meanings(empty.state_dict()) for one in meaning.names]


# --- one fits ---


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.state_dict(),
        lambda model: {"state_dict": renamed(model, prefix="module.")},
        lambda model: (
            {f"net.backbone.{name}": value for name, value in model.state_dict().items()}
            | {"net.other.weight": torch.zeros(3)}
        ),
        lambda model: {name: value for name, value in model.state_dict().items() if "num_batches" not in name},
    ],
    ids=["own", "wrapped", "inside", "without counters"],
)
@pytest.mark.parametrize(("classes", "channels"), [(10, 3), (7, 1)])
def test_the_one_network_that_fits_is_taken_and_said(tmp_path, change, classes, channels):
    model = built("resnet20", classes, channels)
    torch.save(change(model), tmp_path / "x.pth")
    found = pellucid.load(tmp_path / "x.pth")
    images = torch.rand(2, channels, 32, 32)
    assert torch.equal(found(images), model(images))
    assert pellucid.facts(found).remarks == ("Recognised as resnet20 by the names and shapes of its tensors.",)


def test_the_command_line_recognises_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(built("resnet20", 10, 1).state_dict(), "x.pth")
    flags = ["--data", "digits", "--mean", "0.5", "--std", "0.5"]
    assert main(["evaluate", "x.pth", *flags]) == 0
    assert "Recognised as resnet20" in capsys.readouterr().out
    assert main(["evaluate", "x.pth", *flags, "--json"]) == 0
    assert "Recognised as resnet20" in json.loads(capsys.readouterr().out)["assumed"][0]


# --- several fit, or none ---


@pytest.fixture
def ambiguous(monkeypatch):
    """As if resnet20 were one of two networks with its tensors."""
    real = recognize.meanings

    def meanings(state):
        found = real(state)
        other = recognize.Meaning(("elsewhere:resnet20", "timm:x"), "stem of stride 2")
        return [recognize.Meaning(found[0].names, "stem of stride 1"), other] if found else []

    monkeypatch.setattr("pellucid.core.network.meaning.meanings", meanings)


def test_one_of_several_has_to_be_chosen(tmp_path, ambiguous):
    torch.save(built("resnet20").state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError) as error:
        pellucid.load(tmp_path / "x.pth")
    assert "2 networks that compute different things" in str(error.value)
    assert "resnet20 (stem of stride 1); elsewhere:resnet20 (stem of stride 2)" in str(error.value)
    (remark,) = pellucid.facts(pellucid.load(tmp_path / "x.pth", "resnet20")).remarks
    assert "also fit elsewhere:resnet20 (stem of stride 2)" in remark


def test_groups_of_the_index_differ_in_what_they_compute():
    """Where one fingerprint has several groups, each says how it differs."""
    for groups in recognize._index()["networks"].values():
        assert len(groups) == 1 or all(differs for _, differs in groups)


def test_where_none_fits_the_nearest_is_named_with_what_does_not_fit(tmp_path):
    state = built("resnet20").state_dict()
    state["layer2.0.conv1.weight"] = torch.zeros(33, 16, 3, 3)
    state["layer9.weight"] = torch.zeros(4)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError) as error:
        pellucid.load(tmp_path / "x.pth")
    text = str(error.value)
    assert "does not fit resnet20, the nearest known network" in text and "1 unexpected (layer9.weight)" in text
    assert "layer2.0.conv1.weight float32 [33, 16, 3, 3]" in text and "--model FILE.py:FACTORY" in text


def test_a_prefix_chooses_one_of_two_networks_in_a_file(tmp_path):
    one, two = built("resnet20"), built("resnet20", 4)
    state = {f"a.{k}": v for k, v in one.state_dict().items()} | {f"b.net.{k}": v for k, v in two.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(
        InputError, match=r"holds such a network 2 times, under 'a.', 'b.net.': choose one with --prefix"
    ):
        pellucid.load(tmp_path / "x.pth", "resnet20")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(pellucid.load(tmp_path / "x.pth", prefix="b.net")(images), two(images))
    assert torch.equal(pellucid.load(tmp_path / "x.pth", "resnet20", prefix="a.")(images), one(images))
    with pytest.raises(InputError, match="holds no tensors under the prefix 'c': choose a or b"):
        pellucid.load(tmp_path / "x.pth", prefix="c")


def test_what_does_not_fit_is_left_out_where_that_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = built("resnet20", 10, 1).state_dict() | {"extra.weight": torch.zeros(3)}
    torch.save(state, "x.pth")
    words = ["evaluate", "x.pth", "--model", "resnet20", "--data", "digits", "--mean", "0.5", "--std", "0.5", "--quiet"]
    assert main(words) == 2
    assert "--strict false" in capsys.readouterr().err
    assert main([*words, "--strict", "false"]) == 0 and main([*words, "--no-strict"]) == 0
