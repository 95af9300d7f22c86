"""Lambda at test time, batch norm estimated again, and the command that measures both."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import cli
from pellucid.audit.audit import make_audit
from pellucid.audit.cards.noise import noise as noise_card
from pellucid.audit.cards.robust import robust as card
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.measure.corrupt import KINDS, corrupt_images
from pellucid.core.measure.corrupt.kind import strengths_for
from pellucid.core.network.reestimate import reestimated
from pellucid.robust.measure import drawn, measure, summary
from pellucid.robust.subject import Subject, subject_of
from pellucid.robust.trial import Trial
from pellucid.robust.under_attack import under_attack
from pellucid.sparse import adapt
from pellucid.sparse.layers import CSC2d
from processes import run, sentence


def images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    split = pellucid.load_data("digits").train
    return split.fetch(torch.arange(n)).float() / 255, split.labels[:n]


def train(first: nn.Module, after: nn.Module, steps: int = 42) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        first, nn.BatchNorm2d(16), after, nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip
    x, y = images(768)
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    for step in range(steps):
        part = slice(128 * (step % 6), 128 * (step % 6 + 1))
        loss = F.cross_entropy(model((x[part] - 0.3) / 0.4), y[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    declare(model, normalization={"mean": (0.3,), "std": (0.4,)})
    return model.eval()


@pytest.fixture(scope="module")
def sparse() -> nn.Module:
    torch.manual_seed(1)
    return train(CSC2d(1, 16, 3, padding=1), nn.Identity())


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    torch.manual_seed(1)
    return train(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.ReLU())


# --- batch norm ---


@pytest.mark.parametrize("sizes", [(70,), (30, 25, 15), (1, 69)])
def test_statistics_are_those_of_all_images_as_one_batch(plain, sizes):
    x = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(plain.state_dict())
    with reestimated(plain, x.split(sizes)) as order:
        assert order == ["1", "4"]
        assert not plain.training
        made = plain(x)
        first = plain[0](x)
        assert torch.allclose(plain[1].running_mean, first.mean((0, 2, 3)), atol=1e-5)
        assert torch.allclose(plain[1].running_var, first.var((0, 2, 3), correction=0), atol=1e-5)
    twin = copy.deepcopy(plain).train()  # training normalises by the batch
    assert torch.allclose(made, twin(x), atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


def test_everything_is_restored_after_an_error_and_in_any_mode(plain):
    before = copy.deepcopy(plain.state_dict())
    plain[4].train()
    with pytest.raises(RuntimeError, match="stop"), reestimated(plain, torch.rand(9, 1, 8, 8)):
        raise RuntimeError("stop")
    assert plain[4].training and not plain[1].training
    plain[4].eval()
    with pytest.raises(RuntimeError), reestimated(plain, torch.rand(9, 3, 8, 8)):
        pass
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    assert not plain[1]._forward_pre_hooks
    with pytest.raises(InputError, match="no batch norm"), reestimated(nn.Linear(3, 3), torch.rand(2, 3)):
        pass
    with pytest.raises(InputError, match="without images"), reestimated(plain, torch.rand(0, 1, 8, 8)):
        pass


# --- lambda ---


def test_noise_is_estimated_as_the_formula_says():
    x = torch.rand(3, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    operator = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    for image, found in zip(x.double().numpy(), adapt.estimate_noise(x), strict=True):
        total = sum(
            abs((operator * plane[i : i + 3, j : j + 3]).sum()) for plane in image for i in range(7) for j in range(5)
        )
        assert float(found) == pytest.approx(np.sqrt(np.pi / 2) * total / (6 * 2 * 7 * 5), rel=1e-5)
    flat = torch.full((40, 3, 32, 32), 0.5)
    for sigma in (0.02, 0.1):
        noisy = corrupt_images(flat, "gaussian_noise", level=sigma)
        assert adapt.estimate_noise(noisy).mean().item() == pytest.approx(sigma, rel=0.02)
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    assert adapt.estimate_noise(ramp).item() < 1e-6


def test_adaptive_lambda_follows_each_image_alone():
    policy = adapt.Adaptive((0.02, 0.1, 0.2), (0.1, 0.3, 0.3))
    flat = torch.full((6, 1, 32, 32), 0.5)
    noisy = torch.cat([corrupt_images(flat[:2], "gaussian_noise", level=s) for s in (0.01, 0.06, 0.4)])
    lams = policy(noisy)
    assert lams.shape == (6,)
    assert lams[:2].tolist() == pytest.approx([0.1, 0.1])
    assert 0.15 < lams[2] < 0.25
    assert lams[4:].tolist() == pytest.approx([0.3, 0.3])
    assert torch.equal(policy(noisy[3:4]), lams[3:4])


def test_calibration_asks_for_no_label_and_keeps_the_models_own_answers(sparse):
    x, _ = images(160)
    subject = Subject(sparse, facts(sparse).normalization)
    tried: list[float] = []

    def logits(batch, *, lam):
        tried.append(lam)
        return subject.logits(batch, lam=lam)

    policy = adapt.calibrate(logits, x, 0.1, sigmas=(0.0, 0.2, 0.4), factors=(1.0, 2.0, 4.0, 8.0))
    assert set(tried) == {0.1, 0.2, 0.4, 0.8}
    assert policy.lams[0] == 0.1
    assert list(policy.estimates) == sorted(policy.estimates)
    assert list(policy.lams) == sorted(policy.lams)
    own = subject.logits(x).argmax(1)
    for sigma, lam in zip((0.2, 0.4), policy.lams[1:], strict=True):
        noisy = corrupt_images(x, "gaussian_noise", level=sigma)
        agreed = {
            tried: int((subject.logits(noisy, lam=tried).argmax(1) == own).sum()) for tried in (0.1, 0.2, 0.4, 0.8)
        }
        best = max(agreed, key=agreed.get)
        assert lam == pytest.approx(best) or lam == max(policy.lams)


def test_the_line_is_least_squares_and_the_oracle_the_best():
    rng = np.random.default_rng(0)
    x, y = rng.random(6), rng.random(6)
    line = adapt.fit_line(x, y, 0.0)
    slope, intercept = np.polyfit(x, y, 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    assert line(0.4) == pytest.approx(max(0.0, slope * 0.4 + intercept))
    assert adapt.fit_line([1.0, 1.0], [0.2, 0.4], 0.1)(9.0) == pytest.approx(0.3)
    assert adapt.Line(-5.0, 0.0, 0.1)(1.0) == 0.1
    assert adapt.oracle([0.5, 0.7, 0.7], [0.1, 0.2, 0.4]) == (0.2, 0.7)


def test_lambda_and_residual_are_the_layers_own(sparse):
    layer = adapt.sparse_layer(sparse)
    assert layer is sparse[0]
    x = (images(5)[0] - 0.3) / 0.4
    code = layer(x)
    wanted = [(x[i] - layer.decode(code[i : i + 1], 8)[0]).square().mean().sqrt().item() for i in range(5)]
    assert adapt.residual(layer, x).tolist() == pytest.approx(wanted, rel=1e-4)
    with adapt.lam_at(layer, torch.linspace(0.1, 0.5, 5)):
        sparser = layer(x)
    assert layer.lam == 0.1
    assert (sparser[4] > 0).sum() < (code[4] > 0).sum()
    assert torch.allclose(sparser[0], code[0], atol=1e-6)
    with pytest.raises(InputError, match="no sparse-coding layer"):
        adapt.sparse_layer(nn.Linear(2, 2))


# --- what is measured ---


def test_conditions_are_what_they_say(sparse, plain):
    digits = pellucid.load_data("digits")
    subject, other = (subject_of(model, digits, batch=40) for model in (sparse, plain))
    clean = drawn(digits.train, 64, 0)[0]
    trial = Trial(subject, "adaptive", clean, other)
    result = measure(trial, digits, ["gaussian_noise"], levels=[0.2, 0.4], images=80)
    x, y, indices = drawn(digits.test, 80, 0)
    noisy = corrupt_images(x, "gaussian_noise", level=0.4, indices=indices)
    shares = result["kinds"]["gaussian_noise"][1]["shares"]

    def by_hand(model, batch, lam=None, again=False):
        right = 0
        for part, labels in zip(((batch - 0.3) / 0.4).split(40), y.split(40), strict=True):
            net = copy.deepcopy(model)
            if lam is not None:
                net[0].lam = lam
            for layer in net:
                if again and isinstance(layer, nn.BatchNorm2d):
                    layer.train()
            with torch.no_grad():
                right += int((net(part).argmax(1) == labels).sum())
        return right

    assert shares["none"]["correct"] == by_hand(sparse, noisy)
    assert shares["batch norm"]["correct"] == by_hand(sparse, noisy, again=True)
    assert shares["baseline"]["correct"] == by_hand(plain, noisy)
    assert shares["baseline, batch norm"]["correct"] == by_hand(plain, noisy, again=True)
    swept = [by_hand(sparse, noisy, lam=0.1 * factor) for factor in adapt.FACTORS]
    assert shares["oracle"]["correct"] == max(swept)
    row = result["kinds"]["gaussian_noise"][1]
    assert row["lam"]["oracle"] == pytest.approx(0.1 * adapt.FACTORS[int(np.argmax(swept))])
    assert row["lam"]["fitted"] == pytest.approx(max(0.1, row["line"][0] * row["residual"] + row["line"][1]))
    assert shares["fitted"]["correct"] == by_hand(sparse, noisy, lam=row["lam"]["fitted"])
    mean = summary(result)
    errors = {
        name: sum(1 - level["shares"][name]["accuracy"] for level in result["kinds"]["gaussian_noise"])
        for name in ("none", "baseline")
    }
    assert mean["none"]["mce"] == pytest.approx(errors["none"] / errors["baseline"])
    assert mean["baseline"]["mce"] == 1
    assert isinstance(trial.calibrated[True], adapt.Adaptive)
    lams = trial.calibrated[False].lams
    assert IsotonicRegression().fit_transform(range(len(lams)), lams) == pytest.approx(list(lams))
    assert sparse[0].lam == 0.1


def test_the_fitted_line_knows_the_held_out_images_alone(sparse):
    """Other test labels change what is best on the test images, and nothing that is fitted."""
    digits = pellucid.load_data("digits")
    test = replace(digits.test, labels=(digits.test.labels + 1) % 10)
    trial = Trial(subject_of(sparse, digits), "fitted", combined=False)

    def lams(data):
        found = measure(trial, data, ["gaussian_noise"], levels=[0.2, 0.5], images=60)["kinds"]["gaussian_noise"]
        return [row["lam"].get("fitted") for row in found], [row["lam"]["oracle"] for row in found]

    fitted, best = lams(digits)
    again, wrong = lams(replace(digits, test=test))
    assert fitted == again and best != wrong
    other, same = lams(replace(digits, val=replace(digits.val, labels=(digits.val.labels + 1) % 10)))
    assert other != fitted and same == best
    assert lams(replace(digits, val=digits.val.take(torch.arange(0)))) == ([None, None], best)


def test_attacks_know_the_lambda_they_meet(sparse, plain):
    digits = pellucid.load_data("digits")
    subject, other = (subject_of(model, digits) for model in (sparse, plain))
    trial = Trial(subject, 0.4, baseline=other)
    shares = under_attack(trial, digits, images=60, eps=0.1, norm="linf", steps=5)["shares"]
    count = {name: one["correct"] for name, one in shares.items()}
    assert count["fixed"] < count["clean"]
    assert count["baseline, fixed"] < count["baseline, clean"]
    assert count["adaptive, lambda raised"] < count["clean, lambda raised"]
    both = (count["fixed, lambda raised"], count["adaptive, lambda raised"])
    assert count["either, lambda raised"] <= min(both)
    assert "fixed, lambda raised" not in under_attack(Trial(other), digits, images=10, eps=0.1, norm="l2")["shares"]


def test_lambda_is_interpolated_as_numpy_does_and_its_slope_is_the_lines():
    rng = torch.Generator().manual_seed(0)
    curve = ((0.1, 0.3, 0.31, 0.7), (1.0, 1.0, 2.5, 9.0))
    for places, values in (curve, ((0.2, 0.2, 0.5, 0.5), (1, 2, 3, 4)), ((0.3,), (2,))):
        x = torch.cat([torch.rand(200, generator=rng, dtype=torch.float64), torch.tensor(places, dtype=torch.float64)])
        found = adapt._interpolated(x, places, values)
        expected = np.interp(x.numpy(), places, values)
        assert found.numpy() == pytest.approx(expected, abs=1e-12)
    x = torch.tensor([0.0, 0.2, 0.305, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(adapt._interpolated(x, *curve).sum(), x)
    assert slope.tolist() == pytest.approx([0, 0, 150, 6.5 / 0.39, 0])


@pytest.mark.parametrize("differentiate", ["unrolled", "implicit"])
def test_the_gradient_goes_through_the_estimate_of_lambda(sparse, differentiate):
    """Against central differences of the whole map, lambda included, in float64."""
    model = copy.deepcopy(sparse).double()
    model[0].differentiate = differentiate
    if differentiate == "implicit":  # right where the steps converge
        model[0].n_steps, model[0].cg_steps, model[0].mu = 1000, 300, 0.5
    declare(model, normalization={"mean": (0.3,), "std": (0.4,)})
    subject = subject_of(model, pellucid.load_data("digits"))
    policy = adapt.Adaptive((0.0, 0.5), (0.05, 1.0))  # steep, and no image is beyond it
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 8, 8, generator=rng, dtype=torch.float64) * 0.6 + 0.2
    weight, direction = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((2, 10), x.shape))

    def slopes(lam):
        run = subject.classifier(lam)
        at = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((weight * run(at)).sum(), at)
        with torch.no_grad():
            step = 1e-6 * direction
            moved = ((weight * (run(x + step) - run(x - step))).sum() / 2e-6).item()
        return (gradient * direction).sum().item(), moved

    found, moved = slopes(policy)
    assert found == pytest.approx(moved, rel=1e-4)
    held, _ = slopes(policy(x).detach())
    assert abs(held - moved) > 0.01 * abs(moved), "or it would not matter"
    assert model[0].lam == 0.1


def test_an_attack_on_adaptive_lambda_is_no_weaker_for_knowing_how_it_is_set(sparse):
    digits = pellucid.load_data("digits")
    subject = subject_of(sparse, digits)
    policy = adapt.Adaptive((0.0, 0.3), (0.1, 1.2))
    x, labels, indices = drawn(digits.test, 60, 0)
    how = {"eps": 0.1, "norm": "linf", "steps": 8}

    def loss(made):
        return F.cross_entropy(subject.logits(made, lam=policy), labels).item()

    whole = subject.attacked(x, labels, indices, policy, **how)
    blind = subject.attacked(x, labels, indices, None, **how)
    frozen = torch.cat([
        subject.attacked(*rows, float(policy(subject.attacked(*rows, None, **how))), **how)
        for rows in zip(x.split(1), labels.split(1), indices.split(1), strict=True)
    ])  # fmt: skip
    assert loss(whole) > max(loss(frozen), loss(blind))


@pytest.mark.slow
def test_the_card_shows_three_policies_and_is_silent_elsewhere(sparse, plain):
    digits = pellucid.load_data("digits")
    assert card(make_audit(plain, digits)) is None
    section = card(make_audit(sparse, digits))
    accuracy = section.data["accuracy"]
    assert {"none", "adaptive", "fitted", "oracle", "batch norm", "blur"} == set(accuracy)
    assert all(len(found) == 4 for found in accuracy.values())
    assert all(best >= other for best, other in zip(accuracy["oracle"][1:], accuracy["none"][1:], strict=True))
    assert json.loads(json.dumps(section.data)) == section.data
    assert sparse[0].lam == 0.1


# --- the command ---


def command(capsys, *words: str) -> tuple[int, str, str]:
    status = cli.main(["robust", *words])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two small networks of the zoo on digits, saved."""
    folder = tmp_path_factory.mktemp("models")
    made = []
    for layers in ("csc", "plain"):
        torch.manual_seed(0)
        model = pellucid.build("conv2", 10, 1, 8, layers=layers)
        made.append(folder / f"{layers}.safetensors")
        pellucid.save(model, made[-1])
    return tuple(map(str, made))


def test_the_command_prints_writes_and_refuses(files, tmp_path, capsys):
    sparse_file, plain_file = files
    few = ("--data", "digits", "--max-images", "40", "--kinds", "gaussian_noise", "contrast", "--severities", "2", "5")
    out = tmp_path / "result.json"
    status, printed, _ = command(
        capsys, sparse_file, *few, "--lam", "0.3", "--baseline", plain_file, "--out", str(out), "--attack", "fgsm"
    )
    assert status == 0
    found = json.loads(out.read_text())
    assert set(found["mean"]) == {"none", "lambda 0.3", "blur", "baseline", "baseline, blur"}
    for word in ("gaussian_noise", "contrast", "lambda 0.3", "mCE", "adaptive, lambda raised", "Next: pellucid open"):
        assert word in printed
    assert found["kinds"]["contrast"][0]["shares"]["none"]["n"] == 40
    status, printed, _ = command(capsys, plain_file, *few, "--json")
    assert status == 0
    assert set(json.loads(printed)["mean"]) == {"none", "blur"}
    for words, said in (
        ((plain_file, *few, "--lam", "adaptive"), "no sparse-coding layer"),
        ((plain_file, "--data", "digits", "--kinds", "fogg"), "'fogg' is unknown"),
        ((plain_file, "--data", "digits", "--severities", "7"), "--severities 7"),
        ((plain_file, "--data", "digits", "--kinds", "fog", "--levels", "0.1"), "fog has no --levels"),
        ((plain_file, "--data", "digits", "--levels", "0.1", "--severities", "1"), "leave out --severities"),
        ((plain_file, "--data", "digits", "--max-images", "0"), "--max-images 0"),
        ((plain_file, "--data", "digits", "--eps", "8"), "--eps 8"),
        ((plain_file, "--data", "digits", "--set", "nowhere"), "nowhere is not a folder"),
        ((plain_file, "--data", "digits", "--lam", "most"), "lam"),
    ):
        status, _, err = command(capsys, *words)
        assert status == 2
        assert said in err
        assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_sparse_network_from_the_command_line(tmp_path):
    done = run("train", "--data", "digits", "--model", "conv2", "--layers", "csc", "--epochs", "3", "--out", "sdnet",
               "--quiet", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = ("--lam", "adaptive", "--kinds", "gaussian_noise", "--levels", "0.2", "0.4", "--max-images", "100")
    done = run("robust", "sdnet", *words, "--attack", "pgd", "--steps", "3", "--out", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert {"none", "adaptive", "fitted", "oracle", "blur"} <= set(found["mean"])
    assert found["clean"]["none"]["accuracy"] > 0.15  # better than chance, after three epochs
    assert found["mean"]["oracle"]["accuracy"] >= found["mean"]["none"]["accuracy"]
    again = run("robust", "sdnet", *words, "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["kinds"] == found["kinds"]
    refused = run("robust", "sdnet", "--set", "r.json", cwd=tmp_path)
    assert refused.returncode == 2
    assert "not a folder" in sentence(refused)


class Nervous(nn.Module):
    """A network that sees fine detail enlarged, so that the least noise costs accuracy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x + 3 * (x - F.avg_pool2d(x, 3, 1, 1)))


def test_the_page_and_the_command_corrupt_alike_and_say_at_which_strengths(plain, files, tmp_path, capsys):
    """The same images at the same strengths: the accuracies are equal to the last image."""
    data, nervous = pellucid.load_data("digits"), Nervous(plain)
    data = replace(data, test=data.test.take(torch.arange(150)))
    declare(nervous, normalization=facts(plain).normalization)
    found = measure(Trial(subject_of(nervous, data)), data, ["gaussian_noise"], images=len(data.test))
    section = noise_card(make_audit(nervous, data, device="cpu"))
    noise = section.data
    own = [row["shares"]["none"]["accuracy"] for row in found["kinds"]["gaussian_noise"]]
    assert own == [row["accuracy"] for row in noise["severities"][1:]] and own[0] > own[-1] > 0.3, own
    assert [row["sigma"] for row in noise["severities"]] == [0, *KINDS["gaussian_noise"].small_levels]
    assert noise["strengths"] == strengths_for((8, 8)) == "cifar" and strengths_for((99, 97)) == "imagenet"
    assert "severities of CIFAR-10-C" in repr(section) and "ImageNet-C" not in repr(section)
    words = (files[1], "--data", "digits", "--kinds", "gaussian_noise", "--max-images", "9")
    out = tmp_path / "r.json"
    assert "severities 1 2 3 4 5 of CIFAR-10-C" in " ".join(command(capsys, *words, "--out", str(out))[1].split())
    assert json.loads(out.read_text())["strengths"] == "cifar"
    assert json.loads(command(capsys, *words, "--levels", "0.1", "--json")[1])["strengths"] == "levels"


def test_the_command_reads_a_published_set(tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8) for split in ("train", "test")}
    labels = {f"{split}_labels": np.arange(24) % 3 for split in ("train", "test")}
    np.savez(tmp_path / "data.npz", **arrays, **labels)
    stored = tmp_path / "set"
    stored.mkdir()
    np.save(stored / "fog.npy", np.tile(255 - arrays["test_images"], (5, 1, 1, 1)))
    np.save(stored / "labels.npy", np.tile(labels["test_labels"], 5))
    torch.manual_seed(0)
    model = pellucid.build("conv2", 3, 3, 16)
    pellucid.save(model, tmp_path / "m.safetensors")
    words = (str(tmp_path / "m.safetensors"), "--data", f"npz:{tmp_path / 'data.npz'}", "--set", str(stored))
    status, printed, _ = command(capsys, *words, "--severities", "1", "4", "--json")
    assert status == 0
    rows = json.loads(printed)["kinds"]["fog"]
    dataset = pellucid.load_data(f"npz:{tmp_path / 'data.npz'}")
    subject = subject_of(model, dataset)
    inverted = 1 - dataset.test.fetch(torch.arange(24)).float() / 255
    wanted = int(subject.correct(inverted, dataset.test.labels).sum())
    assert [row["shares"]["none"]["correct"] for row in rows] == [wanted, wanted]
    assert command(capsys, *words, "--kinds", "snow")[0] == 2
