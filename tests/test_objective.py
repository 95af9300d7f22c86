"""Objectives in the training loop: what is minimised, what is trained beside the network, and exact resume."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import cli
from pellucid.commandline.bind import call
from pellucid.core.errors import InputError
from pellucid.core.files.tensors import read_tensors
from pellucid.core.train.loop import train
from pellucid.core.train.objective import OBJECTIVES, Objective, objective
from pellucid.core.train.optimize import make_optimizer
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings
from processes import ENVIRONMENT

QUICK = TrainSettings(model="conv2", epochs=2, lr=0.05, batch_size=100, limit_batches=4)


@dataclass
class Tempered(Objective):
    """Cross-entropy of logits times a factor for each class, which is learned, and counts its steps.

    Args:
        start: what the factors start from.
        cap: what they may not exceed.
        momentum: a name that training has already.
    """

    start: float = 1.0
    cap: float = 1.02
    momentum: float = 0.5

    def prepare(self, model, dataset, device):
        if self.start <= 0:
            raise InputError("start must be above 0.")
        self.module = nn.Module()
        draw = 0.01 * torch.rand(len(dataset.classes), len(dataset.classes), device=device)
        self.module.factors = nn.Parameter(self.start * torch.eye(len(dataset.classes), device=device) + draw)
        self.module.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        self.facts = {"classes": dataset.classes}
        self.epochs = []

    def begin_epoch(self, epoch):
        self.epochs.append(epoch)

    def __call__(self, forward, batch, images, targets):
        assert images.shape[0] == len(batch.labels) == len(batch.indices)
        logits = forward(images).float()
        return self.cross_entropy(logits @ self.module.factors, targets), logits

    def after_step(self):
        assert not torch.is_grad_enabled()
        self.module.steps += 1
        self.module.factors.clamp_(max=self.cap)


@pytest.fixture(autouse=True)
def tempered(monkeypatch):
    monkeypatch.setattr(OBJECTIVES, "_registered", {})
    OBJECTIVES.register("tempered", Tempered)


def state(run: Run) -> dict[str, torch.Tensor]:
    return run.load_state()[0]


def test_the_plain_objective_is_smoothed_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    plain = objective("cross-entropy")
    plain.label_smoothing = 0.2
    loss, answered = plain(lambda x: x, None, logits, labels)
    p = logits.float().log_softmax(1)
    spread = torch.full((6, 4), 0.05)
    spread[range(6), labels] += 0.8
    torch.testing.assert_close(loss, -(spread * p).sum(1).mean())
    assert answered.dtype == torch.float32
    mixed = torch.rand(6, 4).softmax(1)
    plain.label_smoothing = 0.0
    torch.testing.assert_close(plain(lambda x: x, None, logits, mixed)[0], -(mixed * p).sum(1).mean())


def test_what_is_trained_beside_the_network_is_kept_beside_it(tmp_path):
    settings = replace(QUICK, objective="tempered", objective_options={"start": 0.5, "cap": 0.52}, weight_decay=0.1)
    trained = train(settings, tmp_path / "run", quiet=True)
    tensors = state(trained.run)
    factors = tensors["objective.factors"]
    assert int(tensors["objective.steps"]) == 8
    assert factors.max() <= 0.52 < 0.53  # the projection came after each step
    start = 0.5 * torch.eye(10)
    assert (factors - start).abs().max() > 0.005
    assert sum(name.startswith("optimizer.") for name in tensors) == 1 + len(list(trained.model.parameters()))
    # The best file is a plain network of its description; what goes with it lies beside it.
    assert type(pellucid.load(tmp_path / "run")) is type(pellucid.build("conv2", 10, 1, 8))
    assert not any("factors" in name for name in read_tensors(trained.run.best)[0])
    kept, facts = read_tensors(trained.run.objective)
    assert kept["factors"].shape == (10, 10) and int(kept["steps"]) == 4 * (trained.result["best"]["epoch"] + 1)
    assert facts["objective"] == "tempered" and facts["classes"] == [*map(str, range(10))]
    assert facts["trained"]["epoch"] == trained.result["best"]["epoch"]
    other = train(replace(settings, objective="cross-entropy", objective_options={}), tmp_path / "x", quiet=True)
    assert not other.run.objective.exists()
    with pytest.raises(InputError, match="start must be above 0"):
        train(replace(settings, objective_options={"start": -1.0}), tmp_path / "never", quiet=True)
    assert not (tmp_path / "never").exists()


def test_weight_decay_is_of_the_network_alone():
    model, beside = nn.Linear(3, 4), nn.Linear(2, 2)
    groups = make_optimizer(TrainSettings(weight_decay=0.3, decay_all=True), model, beside).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decay[id(p)] for p in (*model.parameters(), *beside.parameters())] == [0.3, 0.3, 0.0, 0.0]


def test_a_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """Stopped after every single step in turn, from what is on disk alone."""
    settings = replace(QUICK, objective="tempered", checkpoint_seconds=0)
    whole = train(settings, tmp_path / "whole", quiet=True)
    saved = Run.save_state
    left: list[int] = []

    def save_and_stop(self, tensors, info, **description):
        saved(self, tensors, info, **description)
        if info["total_steps"] not in left:
            left.append(info["total_steps"])
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save_state", save_and_stop)
    for _ in range(20):
        try:
            train(settings, tmp_path / "broken", quiet=True)
            break
        except KeyboardInterrupt:
            continue
    assert left == list(range(1, 9))
    one, other = state(whole.run), state(Run(tmp_path / "broken"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name in ("best.safetensors", "objective.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_a_state_of_another_objective_is_refused(tmp_path):
    trained = train(replace(QUICK, objective="tempered"), tmp_path / "run", quiet=True)
    (tmp_path / "run" / "result.json").unlink()
    copied = tmp_path / "plain"
    shutil.copytree(tmp_path / "run", copied)
    file = copied / "settings.yaml"
    file.write_text(file.read_text().replace("objective: tempered", "objective: cross-entropy"))
    with pytest.raises(InputError, match="does not belong to this run"):
        train(Run(copied).settings, copied, quiet=True)
    assert trained.run.settings.objective == "tempered"
    with pytest.raises(InputError, match="objective = 'tempered'"):
        train(QUICK, tmp_path / "run", quiet=True)


def test_names_and_options(tmp_path):
    assert QUICK.name() == replace(QUICK, objective="cross-entropy").name()
    assert replace(QUICK, objective="tempered").name().startswith("digits-conv2-tempered-")
    named = replace(QUICK, objective="tempered", objective_options={"start": 2.0})
    assert named.name() != replace(QUICK, objective="tempered").name()
    with pytest.raises(InputError, match=r"Unknown objective 'magic': choose one of .*cross-entropy, .*tempered"):
        objective("magic")
    with pytest.raises(InputError, match=r"'tempered': .*unexpected.* it takes start, cap, momentum"):
        objective("tempered", stop=1)
    with pytest.raises(InputError, match="takes no options"):
        train(replace(QUICK, objective_options={"start": 1.0}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()

    class Looks(Objective):
        taps = True

    OBJECTIVES.register("looks", Looks)
    with pytest.raises(InputError, match="leave out --compile"):
        train(replace(QUICK, objective="looks", compile=True), tmp_path / "run", quiet=True)


def settings_of(*words: str) -> TrainSettings:
    seen = []

    def command(settings: TrainSettings) -> int:
        """Take settings."""
        seen.append(settings)
        return 0

    assert call(command, "pellucid train", words) == 0
    return seen[0]


def test_options_of_objective_and_rule_are_flags_side_by_side(capsys):
    words = ["--objective", "tempered", "--cap", "3", "--tempered-momentum", "0.1", "--momentum", "0.7"]
    settings = settings_of(*words, "--layers=deconv", "--block", "16", "--objective-options.start", "2")
    assert settings.objective_options == {"cap": 3.0, "momentum": 0.1, "start": 2}
    assert (settings.options, settings.momentum) == ({"block": 16}, 0.7)
    assert settings_of("--objective", "tempered").objective_options == {}
    with pytest.raises(InputError, match="cap"):
        settings_of("--cap", "3")
    with pytest.raises(SystemExit):
        cli.main(["train", "--objective", "tempered", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "options of tempered, also as --objective-options.NAME" in out
    assert "what they may not exceed. (type: float, default: 1.02)" in out


@pytest.mark.slow
def test_two_processes_are_one_with_the_same_global_batch(tmp_path):
    """Real gloo processes: gradients of what is trained beside the network are averaged as the network's are."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import sys
            sys.path.insert(0, {os.path.dirname(__file__)!r})
            from test_objective import QUICK, Tempered
            from dataclasses import replace
            from pellucid.core.train.objective import OBJECTIVES
            from pellucid.core.train.loop import train
            OBJECTIVES.register("tempered", Tempered)
            train(replace(QUICK, objective="tempered", devices=int(sys.argv[1]), device="cpu"), sys.argv[2], quiet=True)
        """)
    )
    for devices, folder in (("1", "one"), ("2", "two")):
        words = [sys.executable, str(script), devices, folder]
        done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    one, two = state(Run(tmp_path / "one")), state(Run(tmp_path / "two"))
    assert (one["objective.factors"] - torch.eye(10)).abs().max() > 0.01
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)
    rows = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("one", "two")]
    assert rows[1]["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=1e-4)


def test_a_smoothed_loss_is_what_the_loop_minimises(tmp_path, monkeypatch):
    seen = []
    plain = F.cross_entropy

    def watched(*args, label_smoothing=0.0, **kwargs):
        seen.append(label_smoothing)
        return plain(*args, label_smoothing=label_smoothing, **kwargs)

    monkeypatch.setattr("pellucid.core.train.objective.F.cross_entropy", watched)
    train(replace(QUICK, epochs=1, label_smoothing=0.3), tmp_path / "run", quiet=True)
    assert seen.count(0.3) == 4
