"""Every kind of layers under every operation, as the table in docs says (`together.CELLS`)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pellucid
import together
from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.measure.evaluate import evaluate
from pellucid.core.network.models import rebuild
from pellucid.edgepopup.layers import masks
from pellucid.inversion.matching import Matching
from pellucid.robust.measure import drawn, measure
from pellucid.robust.subject import subject_of
from pellucid.robust.trial import Trial
from pellucid.sparse.layers import CSC
from pellucid.views import plain as plain_views
from pellucid.whiten.base import Whitening
from together import CELLS, KINDS, OPERATIONS, cell, refused

NORMS = nn.modules.batchnorm._BatchNorm


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def batch(digits):
    """60 training images, normalised, and their labels."""
    x = (digits.train.images[:60].float() / 255 - digits.mean[0]) / digits.std[0]
    return x, digits.train.labels[:60]


@pytest.fixture(scope="module")
def networks(digits, batch):
    """One network of each kind after two steps of training: its weights and statistics are not the fresh ones."""
    x, labels = batch
    made = {}
    for kind, options in KINDS.items():
        torch.manual_seed(0)
        net = pellucid.build("resnet8", 10, 1, 8, layers=kind, **options)
        declare(net, classes=digits.classes, normalization=digits.normalization)
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.05)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            optimizer.step()
        made[kind] = net.eval()
    return made


@pytest.fixture
def net(networks, kind):
    """The network of a kind, which nothing may change."""
    found = networks[kind]
    before = {key: value.clone() for key, value in found.state_dict().items()}
    yield found
    assert all(torch.equal(value, before[key]) for key, value in found.state_dict().items())
    assert not found.training and all(not parameter.grad_fn for parameter in found.parameters())


def with_slow(*slow):
    return [pytest.param(kind, marks=pytest.mark.slow if kind in slow else ()) for kind in KINDS]


def named(net, kind) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, kind)]


def test_the_table_in_docs_is_that_of_the_cells():
    assert together.DOCS.read_text(encoding="utf-8") == together.written(), "run python tests/together.py"
    assert CELLS.keys() == OPERATIONS.keys() and all(len(row) == len(KINDS) for row in CELLS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_statistics(net, kind, batch):
    table = pellucid.statistics(net)
    norms, whitened = named(net, NORMS), named(net, Whitening)
    assert set(table) == {*norms, *whitened}
    assert all(table[name].cov is not None and table[name].cov.isfinite().all() for name in whitened)
    assert all(torch.equal(table[name].var, net.get_submodule(name).running_var) for name in norms)
    said = cell("statistics", kind)
    assert said.startswith("covariances") == bool(whitened) and said.startswith("variances") == (len(norms) == 7)
    assert ("after the code" in said) == (norms == ["bn1"])
    recorded = pellucid.statistics(net, batch[0], covariance=True)
    assert {*named(net, nn.Conv2d), *named(net, nn.Linear), *norms} == set(recorded)
    x = batch[0].double()
    torch.testing.assert_close(recorded["conv1"].mean, x.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(recorded["conv1"].cov, x.var(correction=0).reshape(1, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fold(net, kind, batch):
    folded = pellucid.fold(net, batch[0])
    torch.testing.assert_close(folded(batch[0]), net(batch[0]), rtol=1e-4, atol=1e-4)
    assert not named(folded, Whitening) and not list(masks(folded))
    assert named(folded, CSC) == named(net, CSC) and bool(named(net, CSC)) == ("stay" in cell("fold", kind))
    # What is not followed by a code any more has no batch norm left.
    left = [name for name in named(folded, NORMS) if folded.get_submodule(name).running_mean is not None]
    assert len(left) == len(named(net, CSC))


@pytest.mark.parametrize("kind", KINDS)
def test_decompose_and_apply(net, kind, batch, tmp_path):
    found = pellucid.decompose(net, batch, 4)
    folded = pellucid.fold(net, batch[0])
    expected = pellucid.decompose(folded, batch, 4)
    assert found.indices == expected.indices
    new = found.apply(net)
    torch.testing.assert_close(new(batch[0]), expected.apply(folded)(batch[0]), rtol=1e-4, atol=1e-4)
    joined = "decomposed" if kind == "plain" else f"{kind}+decomposed"
    assert facts(new).description["layers"] == joined
    pellucid.save(new, tmp_path / "new.safetensors")
    assert torch.equal(pellucid.load(tmp_path / "new.safetensors")(batch[0]), new(batch[0]))


def inverted(net, **parts):
    return pellucid.invert(net, [3, 7], steps=2, seed=1, quiet=True, **parts)


@pytest.mark.parametrize("kind", KINDS)
def test_invert_by_variance(net, kind):
    found = inverted(net, matching=Matching(covariance=False))
    free = inverted(net, matching=None)
    assert found.images.shape == (2, 1, 8, 8) and found.images.isfinite().all()
    assert found.labels.tolist() == [3, 7] and not torch.equal(found.images, free.images)
    x = facts(net).normalization.apply(found.images)
    torch.testing.assert_close(found.logits, net(x).detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_invert_by_covariance(net, kind, batch):
    own = any(moments.cov is not None for moments in pellucid.statistics(net).values())
    assert own == (cell("covariance", kind) == "yes")
    table = None if own else pellucid.statistics(net, batch[0], covariance=True)
    by_cov, by_var = (
        inverted(net, statistics=table, matching=Matching(covariance=covariance)) for covariance in (True, False)
    )
    assert by_cov.images.isfinite().all() and not torch.equal(by_cov.images, by_var.images)
    # Variances are a part of covariances, which lack something more.
    assert by_cov.history[-1]["loss"] != by_var.history[-1]["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_visualize(net, kind, batch, monkeypatch):
    searched = []

    def few(*arguments, **more):
        searched.append(arguments[2])
        return reconstruct(*arguments, **more, steps=2)

    reconstruct = plain_views.reconstruct
    monkeypatch.setattr(plain_views, "reconstruct", few)
    seen = pellucid.visualize(net, batch[0][:8])
    codes = named(net, CSC)
    if cell("visualize", kind) == "by decoding":
        assert list(seen.layers) == codes and not searched
        layer, view = net.conv1, seen.layers["conv1"]
        x = batch[0][:8]
        with torch.no_grad():
            made = layer.decode(layer(x), (8, 8))
        torch.testing.assert_close(view.reconstruction, made, rtol=1e-4, atol=1e-5)
    else:
        assert not codes and list(seen.layers) == searched and searched[0] == "conv1"
        assert all(view.reconstruction.isfinite().all() for view in seen.layers.values())


@pytest.mark.parametrize("kind", with_slow("csc-all"))
def test_robust_with_lambda(net, kind, digits):
    subject, clean = subject_of(net, digits, batch=64), drawn(digits.train, 32, 0)[0]
    if refused(sentence := cell("robust", kind)):
        with pytest.raises(InputError) as caught:
            Trial(subject, "adaptive", clean)
        assert str(caught.value) == sentence
        return
    trial = Trial(subject, "adaptive", clean, sigmas=(0.0, 0.2))
    assert trial.trained == 0.05
    result = measure(trial, digits, ["gaussian_noise"], levels=[0.3], images=64)
    shares = result["kinds"]["gaussian_noise"][0]["shares"]
    assert {"none", "adaptive"} <= set(shares) and shares["adaptive"]["n"] == 64
    lam = trial.calibrated[False](clean)
    assert lam.shape == (32,) and (lam >= 0.05 - 1e-6).all()
    assert net.conv1.lam == 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(net, kind, batch, tmp_path):
    pellucid.save(net, tmp_path / "net.safetensors")
    back = pellucid.load(tmp_path / "net.safetensors")
    assert facts(back).description == facts(net).description and facts(back).classes == facts(net).classes
    state, loaded = net.state_dict(), back.state_dict()
    assert state.keys() == loaded.keys() and all(torch.equal(state[key], loaded[key]) for key in state)
    assert torch.equal(back(batch[0]), net(batch[0]))
    if "packed" in cell("save", kind):
        pellucid.pack(copy.deepcopy(net), tmp_path / "packed.safetensors")
        assert torch.equal(pellucid.load(tmp_path / "packed.safetensors")(batch[0]), net(batch[0]))
    else:
        with pytest.raises(InputError, match="no masks"):
            pellucid.pack(net, tmp_path / "packed.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", KINDS)
def test_convert(net, kind, to, batch):
    expected = cell(f"to {to}", kind)
    if refused(expected):
        with pytest.raises(InputError) as caught:
            pellucid.convert(net, to, **KINDS[to])
        assert str(caught.value) == expected
        return
    new = pellucid.convert(net, to, **KINDS[to])
    description = facts(new).description
    assert description["layers"] == expected and facts(new).changes
    assert description["options"] == {**({} if expected == to else KINDS[kind]), **KINDS[to]}
    # The description builds the same network: the same tensors, of which the same are trained.
    again = rebuild(description)
    assert {k: v.shape for k, v in new.state_dict().items()} == {k: v.shape for k, v in again.state_dict().items()}
    one, two = ({name for name, p in model.named_parameters() if p.requires_grad} for model in (new, again))
    assert one == two
    first = expected.split("+")
    assert isinstance(new.conv1, CSC) == ("csc" in first or "csc-all" in first)
    assert isinstance(new.fc, Whitening) == ("deconv" in first) and bool(list(masks(new))) == ("subnet" in first)
    loss = nn.functional.cross_entropy(new.train()(batch[0]), batch[1])
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in new.parameters())
    new.eval()
    folded = pellucid.fold(new, batch[0])
    torch.testing.assert_close(folded(batch[0]), new(batch[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_open(net, kind, digits, tmp_path):
    report = pellucid.open(net, digits, tmp_path / "page", max_images=60, device="cpu")
    page = report.path.read_text(encoding="utf-8")
    assert "</html>" in page and report.audit["accuracy"]["n"] == 60
    assert ("whitening" in report.audit) == bool(named(net, Whitening))
    assert ("sparse" in report.audit) == bool(named(net, CSC))
    assert ("subnet" in report.audit) == bool(list(masks(net)))
    assert report.audit["filters"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_distil(net, kind, digits, tmp_path):
    pellucid.save(net, tmp_path / "teacher.safetensors")
    made = pellucid.synthesize(net, tmp_path / "images", 2, steps=2, device="cpu", quiet=True)
    done = pellucid.distill(
        str(tmp_path / "teacher.safetensors"), "conv2", str(made.folder), data="digits", out=tmp_path / "out",
        real=(1,), epochs=1, batch_size=20, quiet=True,
    )  # fmt: skip
    expected = evaluate(net, digits).top1
    assert done["teacher"].accuracy == pytest.approx(expected)
    assert [row.name for row in done.rows] == ["teacher", "student", "noise", "real 1", "random"]
