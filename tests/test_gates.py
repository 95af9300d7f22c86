"""Objectives that make filters class-specific: gates, and the selectivity regulariser."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import pellucid
import reference_decompose as twin
from pellucid.classfilters.gates import ClassGates, class_gates, projected
from pellucid.classfilters.overlap import expected_jaccard
from pellucid.classfilters.responses import responses
from pellucid.classfilters.selectivity import class_selectivity
from pellucid.cli import main
from pellucid.core.errors import InputError
from pellucid.core.measure.pairs import open_data
from pellucid.core.train.loop import train
from pellucid.core.train.objective import objective
from pellucid.core.train.settings import TrainSettings

QUICK = TrainSettings(model="resnet20", epochs=2, lr=0.05, batch_size=100, limit_batches=3)


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """A run behind gates in its second epoch."""
    options = {"period": 2, "sparsity": 0.5, "density": 0.3}
    chosen = replace(QUICK, objective="class-gates", objective_options=options, momentum=0.0, warmup=0.0)
    return train(chosen, tmp_path_factory.mktemp("gates") / "run", quiet=True).run


def prepared(**options) -> tuple[ClassGates, nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    digits = pellucid.load_data("digits")
    model = pellucid.build("resnet20", 10, 1, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gates = objective("class-gates", **options)
    gates.prepare(model, digits, torch.device("cpu"))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        gates.gates.copy_(projected(torch.rand_like(gates.gates)))
    return gates, model, torch.randn(12, 1, 8, 8), torch.arange(12) % 10


def test_the_loss_behind_gates_is_the_papers():
    gates, model, images, labels = prepared(sparsity=0.01, density=0.1, period=1)
    gates.begin_epoch(0)
    loss, logits = gates(model, None, images, labels)
    with pellucid.tap(model, ["fc"]) as taps:
        model(images)
    fc = model.fc
    expected = twin.gated_loss(
        taps["fc"].input.detach().double(), labels, gates.gates.detach().double(), fc.weight.detach().double(),
        fc.bias.detach().double(), 0.01, 0.1,
    )  # fmt: skip
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert logits.shape == (12, 10)
    loss.backward()
    assert gates.gates.grad.abs().sum() > 0 and fc.weight.grad.abs().sum() > 0
    assert not fc._forward_pre_hooks


def test_between_the_gated_epochs_the_network_is_plain():
    gates, model, images, labels = prepared(period=3)
    gates.gates.grad = None
    for epoch, behind in enumerate([False, False, True, False, False, True]):
        gates.begin_epoch(epoch)
        loss, logits = gates(model.eval(), None, images, labels)
        plain = model(images)
        assert torch.equal(logits, plain) is not behind
        if not behind:
            assert torch.equal(loss, F.cross_entropy(plain, labels))


def test_mixed_images_pass_by_their_shares():
    gates, model, images, labels = prepared(period=1, sparsity=0.0)
    gates.begin_epoch(0)
    model.eval()
    shares = torch.zeros(12, 10)
    shares[range(12), labels] += 0.75
    shares[range(12), (labels + 1) % 10] += 0.25
    loss, logits = gates(model, None, images, shares)
    with pellucid.tap(model, ["fc"]) as taps:
        model(images)
    expected = model.fc(taps["fc"].input * (0.75 * gates.gates[labels] + 0.25 * gates.gates[(labels + 1) % 10]))
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(loss, F.cross_entropy(expected, shares))


def test_an_inner_layer_can_have_gates():
    gates, model, images, labels = prepared(layer="layer2.0.relu1", period=1, sparsity=0.0)
    assert gates.gates.shape == (10, 32)
    gates.begin_epoch(0)
    model.eval()
    _, logits = gates(model, None, images, labels)
    with torch.no_grad():
        gates.gates.fill_(1.0)
    _, open_ones = gates(model, None, images, labels)
    torch.testing.assert_close(open_ones, model(images))
    assert not torch.allclose(logits, open_ones, atol=1e-3)
    with pytest.raises(InputError, match="no layer 'layer9'"):
        prepared(layer="layer9")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6))
def test_gates_are_projected_as_published(classes, width, seed):
    gates = torch.rand(classes, width, generator=torch.Generator().manual_seed(seed)) * 1.5 - 0.3
    gates[0] = gates[0].abs() + 0.1  # some class of every filter is open
    found = projected(gates)
    torch.testing.assert_close(found.double(), twin.projected(gates), atol=1e-6, rtol=1e-6)
    assert (found.amax(0) == 1).all() and found.min() >= 0
    torch.testing.assert_close(projected(found), found)
    assert (projected(-gates.abs()) == 1).all()


def test_trained_gates_are_sets(gated):
    filters = class_gates(gated.path, 4)
    assert (filters.rule, filters.layer, filters.width) == ("gates", "fc", 64)
    assert filters.classes == tuple("0123456789")
    assert (filters.scores.amax(0) == 1).all() and filters.scores.min() >= 0
    assert filters.scores.min() < 1  # the penalty has closed some
    for row, chosen, shares in zip(filters.scores, filters.indices, filters.shares, strict=True):
        assert row[list(chosen)].min() >= row[[j for j in range(64) if j not in chosen]].max()
        assert list(shares) == pytest.approx((row[list(chosen)] / row.sum()).tolist(), rel=1e-5)
    assert sum(map(len, class_gates(gated, budget=7).indices)) == 7
    assert pellucid.class_gates is class_gates
    for arguments, said in (((gated, 0), "k=0"), ((gated, 65), "k=65")):
        with pytest.raises(InputError, match=said):
            class_gates(*arguments)
    with pytest.raises(InputError, match="budget of 641"):
        class_gates(gated, budget=641)


def test_the_command_sets_gates_beside_rules(gated, tmp_path, capsys):
    run, out = str(gated.path), str(tmp_path / "out")
    assert main(["decompose", run, "--out", out, "--k", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["what"].split(",")[0] for row in result["accuracy"]] == ["full model", "evidence", "gates", "random"]
    assert [row["what"] for row in result["sets"]] == ["evidence", "random", "gates"]
    for row in result["sets"]:
        assert 0 <= row["jaccard"] <= 1 and row["nats"] > 0
        assert row["chance"] == pytest.approx(expected_jaccard(3, 3, 64))
    assert main(["decompose", run, "--out", out, "--k", "3", "--rule", "gates"]) == 0
    said = capsys.readouterr().out
    assert "filters of fc by gates" in said and "mutual information" in said
    assert pellucid.ClassFilters.load(tmp_path / "out" / "filters.json").indices == class_gates(gated, 3).indices


def test_without_gates_there_are_none(gated, tmp_path, capsys):
    plain = train(replace(QUICK, epochs=1, model="conv2"), tmp_path / "plain", quiet=True).run
    with pytest.raises(InputError, match="without gates"):
        class_gates(plain)
    assert main(["decompose", str(plain.path), "--out", str(tmp_path / "out"), "--rule", "gates"]) == 2
    assert "--objective class-gates" in capsys.readouterr().err
    early = train(replace(QUICK, epochs=1, model="conv2", objective="class-gates"), tmp_path / "early", quiet=True).run
    words = ["decompose", str(early.path), "--out", str(tmp_path / "out")]
    assert main([*words, "--rule", "gates"]) == 2
    assert "train for longer" in capsys.readouterr().err
    assert main([*words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sets"]) == 2
    words = ["decompose", str(gated.path), "--out", str(tmp_path / "out"), "--rule", "gates", "--layer", "layer3"]
    assert main(words) == 2
    assert "are of 'fc'" in capsys.readouterr().err
    for options, said in (({"density": 2.0}, "density=2"), ({"sparsity": -1.0}, "sparsity"), ({"period": 0}, "period")):
        with pytest.raises(InputError, match=said):
            objective("class-gates", **options)


# --- selectivity ---


def test_the_regulariser_is_the_papers():
    torch.manual_seed(0)
    digits = pellucid.load_data("digits")
    model = pellucid.build("conv2", 10, 1, 8)
    names = ["features.1", "features.3", "classifier.1", "classifier.3"]
    images, labels = torch.randn(30, 1, 8, 8), torch.randint(0, 9, (30,))  # one class without images
    for layers in (None, ["features.3", "classifier.1"]):
        regularised = objective("selectivity", alpha=-0.7, layers=layers)
        regularised.prepare(model, digits, torch.device("cpu"))
        with pellucid.tap(model, names) as taps:
            loss, logits = regularised(model, None, images, labels)
        seen = [taps[name].output.detach().double() for name in (layers or names)]
        seen = [value.mean((2, 3)) if value.ndim == 4 else value for value in seen]
        expected = F.cross_entropy(logits, labels).item() + 0.7 * twin.selectivity(seen, labels)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    alone = torch.zeros(30, dtype=torch.int64)  # one class only: nothing to compare
    loss, logits = regularised(model, None, images, alone)
    assert torch.equal(loss, F.cross_entropy(logits, alone))
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(InputError, match="leave out --mixup"):
        regularised(model, None, images, torch.full((30, 10), 0.1))
    for layers, said in ((["features.0"], "below 0"), (["nowhere"], "no layer 'nowhere'")):
        with pytest.raises(InputError, match=said):
            objective("selectivity", layers=layers).prepare(model, digits, torch.device("cpu"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match="no ReLU"):
        objective("selectivity").prepare(net, digits, torch.device("cpu"))
    with pytest.raises(InputError, match="alpha"):
        objective("selectivity", alpha=float("nan"))


@pytest.mark.slow
def test_the_sign_decides(tmp_path):
    """After the same steps from the same weights filters are more selective with alpha above 0 than below."""
    found = []
    for alpha in (-2.0, 2.0):
        chosen = replace(QUICK, epochs=4, limit_batches=0, objective="selectivity", objective_options={"alpha": alpha})
        model = train(chosen, tmp_path / f"{alpha}", quiet=True).model
        features, labels, _ = responses(model, open_data(model, "digits", "test"))
        found.append(class_selectivity(features, labels, 10).mean().item())
    assert found[1] > found[0] + 0.1
