"""The loop beside a plain one, its options, and two processes beside one."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import cli
from pellucid.core.data.batches import batches
from pellucid.core.data.copies import copies
from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.files.tensors import read_tensors
from pellucid.core.measure.evaluate import evaluate
from pellucid.core.seeds import seed_of
from pellucid.core.train.loop import train
from pellucid.core.train.optimize import learning_rate, make_optimizer
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings
from pellucid.core.train.setup import make_augment
from processes import run

QUICK = {"model": "conv2", "epochs": 2, "lr": 0.05, "batch_size": 100}


def test_the_loop_is_the_plain_loop(tmp_path):
    """Weights, metrics and evaluation after training equal a loop of ten lines, bit for bit."""
    settings = TrainSettings(**{**QUICK, "model": "resnet20"})
    trained = train(settings, tmp_path / "run", quiet=True)
    digits = load_data("digits")
    norm = {"mean": digits.mean, "std": digits.std}
    torch.manual_seed(seed_of("weights", 0))
    model = pellucid.build("resnet20", 10, 1, 8)
    optimizer = make_optimizer(settings, model)
    rows, step = [], 0
    for epoch in range(2):
        model.train()
        total = correct = seen = 0
        for x, y in (
            (b.images, b.labels)
            for b in batches(
                digits.train,
                100,
                **norm,
                shuffle=True,
                drop_last=True,
                epoch=epoch,
                augment=make_augment(settings, digits),
            )
        ):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, 24)
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            total += loss.item() * len(y)
            correct += int((logits.argmax(1) == y).sum())
            seen += len(y)
        rows.append((epoch, step, total / seen, correct / seen, evaluate(model, digits, "val").top1))
    assert step == 24
    keys = ("epoch", "step", "train_loss", "train_accuracy", "val_accuracy")
    assert [tuple(row[k] for k in keys) for row in trained.run.metrics()] == rows
    tensors, _ = trained.run.load_state()
    for name, value in model.state_dict().items():
        assert torch.equal(tensors[f"model.{name}"], value), name


def test_a_run_holds_what_it_needs_to_be_read_again(tmp_path):
    settings = TrainSettings(**QUICK, layers="plain", seed=4)
    trained = train(settings, tmp_path / "run", quiet=True)
    again = Run(tmp_path / "run")
    assert again.settings == settings
    assert again.result() == trained.result
    digits = load_data("digits")
    model = pellucid.load(tmp_path / "run")
    assert facts(model).classes == digits.classes
    assert facts(model).normalization == digits.normalization
    apart = copies(digits.test, digits.train)
    assert evaluate(model, digits, "test", copies=apart).to_json() == json.loads(json.dumps(trained.result["test"])) | {
        "top1_interval": tuple(trained.result["test"]["top1_interval"]),
        "per_class": [{**e, "interval": tuple(e["interval"])} for e in trained.result["test"]["per_class"]],
    }
    environment = again.environment()
    assert environment["data"]["fingerprint"] == digits.fingerprint
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert environment["seed"] == 4
    events = [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith("events.out")]
    assert len(events) == 1
    best = max(again.metrics(), key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert trained.result["best"]["epoch"] == best["epoch"]


def test_a_finished_run_is_only_read(tmp_path):
    settings = TrainSettings(**QUICK)
    first = train(settings, tmp_path / "run", quiet=True)
    before = {p.name: p.stat().st_mtime_ns for p in first.run.path.iterdir() if p.is_file() and p.name != ".lock"}
    second = train(settings, tmp_path / "run", quiet=True)
    assert second.result == first.result
    assert before == {p.name: p.stat().st_mtime_ns for p in first.run.path.iterdir() if p.name in before}


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "lr": 3e-3, "schedule": "one-cycle", "warmup": 0.3},
        {"ema": 0.9, "clip": 1.0, "label_smoothing": 0.1},
        {"mixup": 0.2, "cutmix": 1.0, "schedule": "multistep"},
        {"precision": "bf16-mixed", "channels_last": True},
    ],
    ids=lambda o: "-".join(o),
)
def test_options_train_and_are_learned_from(tmp_path, options):
    settings = TrainSettings(**{**QUICK, "epochs": 8, **options})
    result = train(settings, tmp_path / "run", quiet=True).result
    assert result["test"]["top1"] > 0.85
    again = train(settings, tmp_path / "again", quiet=True)
    one, other = (read_tensors(tmp_path / name / "best.safetensors")[0] for name in ("run", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.result["test"] == result["test"]


def test_ema_is_the_average_of_the_weights(tmp_path):
    settings = TrainSettings(**{**QUICK, "epochs": 1, "ema": 0.5, "checkpoint_seconds": 0})
    seen = []
    original = Run.save_state

    def spy(self, tensors, info, **facts):
        seen.append({k: v.clone() for k, v in tensors.items()})
        original(self, tensors, info, **facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_state", spy)
        train(settings, tmp_path / "run", quiet=True)
    assert len(seen) == 12  # one a step
    key = "classifier.0.weight"
    average = seen[0][f"model.{key}"].double()
    for state in seen[1:]:
        average = 0.5 * average + 0.5 * state[f"model.{key}"].double()
    torch.testing.assert_close(seen[-1][f"ema.module.{key}"].double(), average, rtol=1e-5, atol=1e-6)
    best, _ = read_tensors(tmp_path / "run" / "best.safetensors")
    assert torch.equal(best[key], seen[-1][f"ema.module.{key}"])


def test_dropout_is_drawn_anew_each_step_but_alike_in_each_run(tmp_path, monkeypatch):
    draws: list[list[float]] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)
            self.description = None

        def forward(self, x):
            if self.training:
                draws[-1].append(torch.rand(()).item())
            return self.head(x.flatten(1))

    monkeypatch.setattr("pellucid.core.network.models.build", lambda *a, **k: Net())
    for place in ("loop", "scoring"):
        monkeypatch.setattr(f"pellucid.core.train.{place}.load", lambda path, code: _loaded(Net(), path))
    for name in ("a", "b"):
        draws.append([])
        train(TrainSettings(**QUICK), tmp_path / name, quiet=True)
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == len(draws[0]) == 24


def _loaded(net: nn.Module, path) -> nn.Module:
    net.load_state_dict(read_tensors(path)[0])
    return net


def test_a_split_smaller_than_a_batch_is_named(tmp_path):
    with pytest.raises(InputError, match="smaller batch"):
        train(TrainSettings(**{**QUICK, "batch_size": 5000}), tmp_path / "run", quiet=True)


def test_limit_batches_shortens_an_epoch(tmp_path):
    settings = TrainSettings(**{**QUICK, "epochs": 3, "limit_batches": 2})
    assert [row["step"] for row in train(settings, tmp_path / "run", quiet=True).run.metrics()] == [2, 4, 6]


@pytest.mark.slow
def test_two_processes_are_one_with_the_same_global_batch(tmp_path):
    """Real gloo processes, started by the command; conv2 has no batch norm, whose statistics differ by design."""
    common = ["train", "--model", "conv2", "--epochs", "2", "--batch-size", "100", "--lr", "0.05", "--mixup", "0.2"]
    one = run(*common, "--out", "one", cwd=tmp_path)
    two = run(*common, "--out", "two", "--devices", "2", cwd=tmp_path)
    assert one.returncode == two.returncode == 0, two.stderr
    first, second = Run(tmp_path / "one"), Run(tmp_path / "two")
    for a, b in zip(first.metrics(), second.metrics(), strict=True):
        assert a["step"] == b["step"]
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-4)
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-3)
    a, b = (read_tensors(r.best)[0] for r in (first, second))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)
    assert second.result()["test"]["n"] == 450


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--ema", "0"], pytest.param(["--ema", "0.5", "--layers", "deconv"], marks=pytest.mark.slow)]
)
def test_two_processes_validate_the_statistics_that_are_saved(tmp_path, flags):
    """Running statistics differ between processes: each has seen its own half of the batches."""
    words = ["train", "--model", "resnet20", "--epochs", "1", "--limit-batches", "3", "--batch-size", "20"]
    words += ["--val-fraction", "0.45"]  # more than 256 images, of which the second process gets the rest
    done = run(*words, *flags, "--devices", "2", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = Run(tmp_path / "run").metrics()
    found = evaluate(pellucid.load(tmp_path / "run"), load_data("digits", val_fraction=0.45), "val")
    assert row["val_loss"] == pytest.approx(found.loss, rel=1e-5)
    assert row["val_accuracy"] == found.top1


def test_training_starts_from_the_weights_of_another_run(tmp_path):
    first = train(TrainSettings(**{**QUICK, "epochs": 6}), tmp_path / "first", quiet=True)
    again = TrainSettings(**{**QUICK, "epochs": 1, "limit_batches": 1, "lr": 1e-6, "init": str(tmp_path / "first")})
    second = train(again, tmp_path / "second", quiet=True)
    assert abs(second.result["test"]["top1"] - first.result["test"]["top1"]) < 0.01
    with pytest.raises(InputError, match="does not fit"):
        train(TrainSettings(**{**QUICK, "model": "conv4", "init": str(tmp_path / "first")}), tmp_path / "x", quiet=True)
    assert again.name() != TrainSettings(**{**QUICK, "epochs": 1, "limit_batches": 1, "lr": 1e-6}).name()


@pytest.mark.parametrize(
    "other",
    [
        {"classes": tuple(f"digit {n}" for n in range(10))},
        {"mean": (0.9,), "std": (0.1,)},
    ],
)
def test_other_weights_bring_neither_their_classes_nor_their_normalisation(tmp_path, other):
    digits = load_data("digits")
    train(**{**QUICK, "epochs": 1, "out": tmp_path / "first", "quiet": True})
    data = dataclasses.replace(digits, **other)
    options = {**QUICK, "epochs": 1, "limit_batches": 1, "lr": 1e-6, "init": str(tmp_path / "first")}
    second = train(**options, data=data, out=tmp_path / "second", quiet=True)
    known = facts(second.model)
    assert known.classes == data.classes and known.normalization == data.normalization
    row = second.run.metrics()[0]
    assert row["val_accuracy"] == evaluate(second.model, data, "val").top1  # validated as it was trained
    assert second.result["test"]["top1"] == evaluate(second.model, data).top1


# --- settings and data as arguments ---


def test_settings_may_be_keyword_arguments(tmp_path):
    settings = TrainSettings(**QUICK, limit_batches=2)
    one = train(settings, tmp_path / "one", quiet=True)
    two = pellucid.train(data="digits", **QUICK, limit_batches=2, out=tmp_path / "two", quiet=True)
    three = pellucid.train(dataclasses.replace(settings, epochs=9), tmp_path / "three", quiet=True, epochs=2)
    assert one.run.settings == two.run.settings == three.run.settings == settings
    assert one.run.best.read_bytes() == two.run.best.read_bytes() == three.run.best.read_bytes()
    for wrong, said in (
        ({"epoch": 1}, "no training setting 'epoch': did you mean 'epochs'"),
        ({"colour": 1}, "--help"),
        ({"epochs": 0}, "epochs 0"),
        ({"data": 3}, "type int"),
        ({"data": (torch.zeros(2, 1, 8, 8), torch.zeros(2))}, "type tuple"),
    ):
        with pytest.raises(InputError, match=said):
            pellucid.train(out=tmp_path / "never", quiet=True, **wrong)
    assert not (tmp_path / "never").exists()


def test_data_may_be_an_object(tmp_path, monkeypatch, capsys):
    """Recorded by name and fingerprint; without the object the run is finished by nobody."""
    monkeypatch.chdir(tmp_path)
    digits = load_data("digits")
    few = dataclasses.replace(
        digits, name="few digits", train=digits.train.take(torch.arange(300)), fingerprint="0123456789abcdef"
    )
    options = {"model": "conv2", "epochs": 2, "batch_size": 100, "lr": 0.05}
    whole = pellucid.train(data=few, **options, quiet=True)
    assert whole.run.settings.data == "given:few digits@01234567"
    assert whole.run.path.name.startswith("given-few_digits_01234567-conv2-")
    assert whole.run.environment()["data"]["fingerprint"] == few.fingerprint
    assert whole.run.environment()["data"]["images"]["train"] == 300
    assert [row["step"] for row in whole.run.metrics()] == [3, 6]

    class Stop(Exception):
        pass

    def stop(*args, **kwargs):
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pellucid.core.train.loop.finish", stop)
        with pytest.raises(Stop):
            pellucid.train(data=few, **options, out="run", quiet=True)
    said = "pass the same Dataset again"
    for words in (["train", "--resume", "run"], ["evaluate", "run"]):
        assert cli.main(words) == 2
        err = capsys.readouterr().err
        assert said in err and "'few digits'" in err and len(err.strip().splitlines()) == 1
    with pytest.raises(InputError, match=said):
        pellucid.train(Run("run").settings, "run", quiet=True)
    other = dataclasses.replace(few, fingerprint="fedcba9876543210")
    with pytest.raises(InputError, match="another folder"):
        pellucid.train(data=other, **options, out="run", quiet=True)
    done = pellucid.train(Run("run").settings, "run", data=few, quiet=True)
    assert done.run.best.read_bytes() == whole.run.best.read_bytes()
    assert cli.main(["evaluate", "run", "--data", "digits", "--quiet"]) == 0


def test_more_workers_continue_the_same_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = pellucid.train(**QUICK, limit_batches=1, quiet=True)
    again = pellucid.train(**QUICK, limit_batches=1, workers=4, memory_gb=3.0, checkpoint_seconds=1.0, quiet=True)
    assert again.run.path == first.run.path
    assert again.result == first.result


# --- how far it is from the command to the layer ---


def test_from_the_command_to_the_layer_in_six_calls(tmp_path):
    """Frames of this package when a layer first runs in training: main, train, train, objective, network, layer."""
    package = str(Path(pellucid.__file__).parent)
    layer = pellucid.FastDeconv2d.forward.__code__
    stacks: list[list[str]] = []

    def watch(frame, event, argument) -> None:
        if event == "call" and frame.f_code is layer and not stacks:
            names, at = [], frame
            while at is not None:
                if at.f_code.co_filename.startswith(package):
                    names.append(f"{Path(at.f_code.co_filename).stem}.{at.f_code.co_name}")
                at = at.f_back
            stacks.append(names[::-1])

    words = [
        "train",
        "--model",
        "resnet8",
        "--layers",
        "deconv",
        "--block",
        "8",
        "--epochs",
        "1",
        "--limit-batches",
        "1",
    ]
    sys.setprofile(watch)
    try:
        assert cli.main([*words, "--quiet", "--out", str(tmp_path / "run")]) == 0
    finally:
        sys.setprofile(None)
    (stack,) = stacks
    assert stack[0] == "cli.main"
    assert stack[-1].endswith(".forward")
    assert len(stack) <= 6, stack
