"""Kills, interruptions, full disks, infinities, two processes in one folder: nothing is lost."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import pellucid
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.train.run import Run
from processes import run, sentence, start

# A checkpoint after every step, so that kills fall into the writing of one as often as between two.
TRAIN = [
    *("train", "--model", "resnet20", "--epochs", "6", "--batch-size", "100", "--checkpoint-seconds", "0"),
    *("--ema", "0.9", "--out", "run"),
]


def bits(run_folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on interruptions."""
    (state,) = (run_folder / "last.ckpt").glob("*.safetensors")
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds"), row.pop("images_per_second")
    test = json.loads((run_folder / "result.json").read_text())["test"]
    return {
        "state": state.read_bytes(),
        "best": (run_folder / "best.safetensors").read_bytes(),
        "rows": json.dumps([rows, test]).encode(),
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("reference")
    done = run(*TRAIN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return bits(folder / "run")


def steps(folder: Path) -> int:
    """How far the saved state is; it can be read at any moment, however often the run is killed."""
    pointer = folder / "run" / "last.ckpt" / "checkpoint.json"
    return json.loads(pointer.read_text())["total_steps"] if pointer.exists() else 0


def kill_and_resume(folder: Path, kills: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    reached = []
    for _ in range(kills):
        before = steps(folder)
        process = start(*TRAIN, cwd=folder)
        while steps(folder) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached.append(steps(folder))
        Run(folder / "run").load_state()  # always complete
        assert facts(pellucid.load(folder / "run")).classes == tuple("0123456789")
    done = run("train", "--resume", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return reached


@pytest.mark.slow
def test_killed_twice_it_ends_in_the_same_bits(tmp_path, uninterrupted):
    reached = kill_and_resume(tmp_path, 2, seed=1)
    assert 0 < reached[0] <= reached[1]
    assert bits(tmp_path / "run") == uninterrupted
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_twenty_random_moments_it_ends_in_the_same_bits(tmp_path, uninterrupted):
    reached = kill_and_resume(tmp_path, 20, seed=int.from_bytes(os.urandom(4), "big"))
    assert reached == sorted(reached)
    assert bits(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize(
    ("number", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_asked_to_stop_it_saves_and_says_how_to_go_on(tmp_path, uninterrupted, number, status):
    process = start(*TRAIN, cwd=tmp_path)
    while steps(tmp_path) < 3:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert "pellucid train --resume run" in err
    assert 3 <= steps(tmp_path) < 72
    assert run("train", "--resume", "run", cwd=tmp_path).returncode == 0
    assert bits(tmp_path / "run") == uninterrupted


def test_a_second_process_is_refused(tmp_path):
    first = start(*TRAIN, cwd=tmp_path)
    while steps(tmp_path) < 1:
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # or it may be done before the second has begun
    second = run(*TRAIN, cwd=tmp_path)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert "Another process is training in 'run'" in sentence(second)


def test_an_infinite_loss_stops_and_keeps_the_last_good_state(tmp_path):
    words = ["train", "--model", "conv2", "--epochs", "3", "--lr", "1e30", "--schedule", "constant", "--warmup", "0"]
    done = run(*words, "--out", "run", "--checkpoint-seconds", "0", cwd=tmp_path)
    assert done.returncode == 1
    said = sentence(done)
    assert "NaN at step " in said
    assert "learning rate 1e+30" in said
    assert "--lr" in said
    state = Run(tmp_path / "run").load_state()
    if state is not None:
        assert all(torch.isfinite(t).all() for t in state[0].values() if t.is_floating_point())
        assert "the last good checkpoint is kept" in said
    else:
        assert "nothing was saved" in said


@pytest.mark.slow
def test_a_full_disk_loses_no_checkpoint(tmp_path):
    """The system refuses files beyond a size in the middle of writing them, as a full disk would."""
    assert run(*TRAIN[:4], "1", *TRAIN[5:], "--limit-batches", "3", cwd=tmp_path).returncode == 0
    (tmp_path / "run" / "result.json").unlink()
    before = (tmp_path / "run" / "best.safetensors").read_bytes()
    limit = len(before) + 1000  # the state with its momentum is larger than the weights

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = [*TRAIN[:4], "2", *TRAIN[5:-1], "other"]
    first = run(*words, cwd=tmp_path, preexec_fn=little_room)
    assert first.returncode == 1
    assert "The disk refused to store the run in 'other'" in sentence(first)
    assert not list((tmp_path / "other").rglob("*.tmp"))
    # With a state already there, it is still there, whole, when the next one does not fit.
    process = start(*words, cwd=tmp_path)
    while not (tmp_path / "other" / "last.ckpt" / "checkpoint.json").exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    kept = Run(tmp_path / "other").load_state()[1]["total_steps"]
    assert run(*words, cwd=tmp_path, preexec_fn=little_room).returncode == 1
    tensors, info = Run(tmp_path / "other").load_state()
    assert info["total_steps"] == kept
    assert tensors
    assert run(*words, cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_other_settings_or_data_are_not_mixed_into_a_run(tmp_path):
    small = ["train", "--model", "conv2", "--limit-batches", "1", "--epochs", "1", "--out", "run"]
    assert run(*small, cwd=tmp_path).returncode == 0
    done = run(*small, "--lr", "0.5", cwd=tmp_path)
    assert done.returncode == 2
    assert "lr = None, not 0.5" in sentence(done)
    done = run("train", "--resume", "run", "--epochs", "9", cwd=tmp_path)
    assert "begun with epochs = 1" in sentence(done)
    (tmp_path / "run" / "result.json").unlink()
    file = tmp_path / "run" / "environment.json"
    file.write_text(file.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    assert "have changed" in sentence(run(*small, cwd=tmp_path))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    assert "not a run" in sentence(run(*small[:-1], "notes", cwd=tmp_path))
    assert [p.name for p in (tmp_path / "notes").iterdir() if p.name != ".lock"] == ["thesis.txt"]


def damage(kind: str, folder: Path) -> None:
    (state,) = (folder / "last.ckpt").glob("*.safetensors")
    if kind == "truncated":
        state.write_bytes(state.read_bytes()[:-100])
    elif kind == "foreign tensors":
        from safetensors.torch import save_file

        save_file({"model.x": torch.ones(3)}, state)
    elif kind == "pointer out of the folder":
        pointer = folder / "last.ckpt" / "checkpoint.json"
        pointer.write_text(pointer.read_text().replace(state.name, "../../secret.safetensors"))
    elif kind == "pointer is no JSON":
        (folder / "last.ckpt" / "checkpoint.json").write_text("{")
    elif kind == "settings of another kind":
        (folder / "settings.yaml").write_text("epochs: {a: 1}\nmodel: [1\n")
    elif kind == "settings with code":
        (folder / "settings.yaml").write_text("!!python/object/apply:os.system ['touch ran']\n")


@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "foreign tensors",
        "pointer out of the folder",
        "pointer is no JSON",
        "settings of another kind",
        "settings with code",
    ],
)
def test_a_damaged_run_is_refused_with_a_sentence(tmp_path, finished, kind):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "result.json").unlink()
    damage(kind, folder)
    with pytest.raises(InputError, match=r"delete|damaged|JSON|settings|run folder"):
        pellucid.train(Run(folder).settings, folder, quiet=True)
    assert not Path("ran").exists()


def test_a_state_that_a_kill_left_beside_the_current_one_is_deleted(tmp_path, finished):
    """Killed between the new pointer and the deletion of the old state, with no further state to come."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (state,) = (folder / "last.ckpt").glob("*.safetensors")
    shutil.copy(state, folder / "last.ckpt" / "state-000000000.safetensors")
    pellucid.train(Run(folder).settings, folder, quiet=True)
    assert list((folder / "last.ckpt").glob("*.safetensors")) == [state_of(folder)]


def state_of(folder: Path) -> Path:
    """The state that the pointer names."""
    return folder / "last.ckpt" / json.loads((folder / "last.ckpt" / "checkpoint.json").read_text())["file"]


def test_events_are_flushed_before_the_checkpoint_that_follows(tmp_path, monkeypatch):
    """Killed just after the checkpoint, a run does not make that epoch again."""
    from torch.utils.tensorboard import SummaryWriter

    from pellucid.core.train import loop

    order, save, flush = [], loop.save_state, SummaryWriter.flush
    monkeypatch.setattr(loop, "save_state", lambda training: (order.append("save"), save(training)))
    monkeypatch.setattr(SummaryWriter, "flush", lambda self: (order.append("flush"), flush(self)))
    pellucid.train(model="conv2", epochs=2, limit_batches=1, out=tmp_path / "run", quiet=True)
    assert order[:4] == ["flush", "save", "flush", "save"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    pellucid.train(pellucid.TrainSettings(model="conv2", epochs=1, limit_batches=1), folder, quiet=True)
    return folder
