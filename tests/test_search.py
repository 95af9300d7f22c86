"""A search runs every point once even if workers die, and its best point can be replayed."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import signal
import threading
import time
import typing
from pathlib import Path

import pytest
import torch
import yaml

import pellucid
from pellucid.cli import main
from pellucid.core.errors import InputError, WorkFailed
from pellucid.search import commands
from pellucid.search import plan as plans
from pellucid.search import study as studies
from pellucid.search import trial as one
from processes import run, sentence, start

# Optuna's heartbeats; threads share the filters that a search sets for itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")

PLAN = {
    "grid": {"lr": [0.1, 0.01, 0.001], "epochs": [1, 2]},
    "fixed": {"data": "digits", "model": "conv2", "limit_batches": 1},
    "score": ["result.json:best.val_accuracy", "result.json:data.image_size.0"],
}


def written(path: Path, plan: object) -> str:
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return str(path)


def test_a_search_knows_nothing_of_the_package_but_its_ground():
    for file in Path(commands.__file__).parent.glob("*.py"):
        modules = re.findall(r"^\s*(?:from|import) (pellucid[\w.]*)", file.read_text(), re.MULTILINE)
        assert {name.split(".")[1] for name in modules} <= {"core", "search"}, file.name


# --- the plan ---


def test_a_plan_is_read_and_says_what_to_run(tmp_path):
    plan = {
        "grid": {"synthesize.steps": [10, 20], "epochs": [1, 2], "per_class": [3]},
        "fixed": {
            "checkpoint": "runs/t", "distill.teacher": "runs/t", "student": "conv2", "folder": "{synthesize}",
            "quiet": True, "controls": False, "mean": [0.5, 0.25], "distill.lr": 0.01,
        },
        "score": "distill.json:1.validation",
    }  # fmt: skip
    read = plans.read_plan("synthesize+distill", written(tmp_path / "grid.yaml", plan))
    points = [read.point(number) for number in range(read.size)]
    assert len(points) == 4
    assert points[1] == {"synthesize.steps": 10, "epochs": 2, "per_class": 3}
    trial = Path("study/trials/0001")
    assert one.words(read, "synthesize", points[1], trial) == [
        *("synthesize", "runs/t", "--quiet", "--mean", "0.5", "0.25", "--steps", "10", "--per-class", "3"),
        *("--out", "study/trials/0001/synthesize"),
    ]
    words = one.words(read, "distill", points[1], trial)
    assert words[:4] == ["distill", "runs/t", "conv2", "study/trials/0001/synthesize"]
    assert "--no-controls" in words and words[words.index("--lr") + 1] == "0.01"
    assert words[words.index("--epochs") + 1] == "2"
    assert "--steps" not in words


def test_scores_are_read_from_what_the_commands_wrote(tmp_path):
    plan = plans.read_plan(
        "synthesize+distill", written(tmp_path / "g.yaml", {"grid": {"per_class": [1]}, "score": "d.json:1.a"})
    )
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "d.json").write_text('[{"a": 1}, {"a": 0.25}]')
    assert plan.scores_of(tmp_path) == [0.25]
    (tmp_path / "distill" / "d.json").write_text('[{"a": 1}]')
    with pytest.raises(InputError, match="has no number at '1.a'"):
        plan.scores_of(tmp_path)
    (tmp_path / "distill" / "d.json").unlink()
    with pytest.raises(InputError, match="no 'd.json' was written"):
        plan.scores_of(tmp_path)


@pytest.mark.parametrize(
    ("command", "change", "words"),
    [
        ("fly", {}, "Unknown command 'fly': choose one of .*train"),
        ("trian", {}, "did you mean 'train'"),
        ("search", {}, "'search' cannot search over itself"),
        ("train+train", {}, "twice"),
        ("train", {"grid": {}}, "at least one"),
        ("train", {"grid": {"lr": 3}}, "a list of values, or a range"),
        ("train", {"grid": {"lr": {"low": 1, "high": 0}}}, "a range"),
        ("train", {"score": "result.json"}, "FILE.json:KEY.KEY"),
        ("train", {"score": "../result.json:a"}, "FILE.json:KEY.KEY"),
        ("train", {"direction": "up"}, "choose maximize or minimize"),
        ("train", {"gird": {}}, "is not a plan"),
        ("synthesize+distill", {"fixed": {"wings": 2}}, "have no flag 'wings'"),
    ],
)
def test_a_plan_that_is_none_is_refused_in_a_sentence(tmp_path, command, change, words):
    with pytest.raises(InputError, match=words):
        plans.read_plan(command, written(tmp_path / "grid.yaml", {**PLAN, **change}))


@pytest.mark.parametrize(
    ("command", "score", "words"),
    [
        ("train", "result.json:test.top1", "rank by result.json:best.val_accuracy"),
        ("train", ["result.json:best.val_loss", "result.json:test.loss"], "rank by result.json:best.val_accuracy"),
        ("synthesize+distill", "distill.json:1.accuracy", "rank by distill.json:1.validation"),
        ("synthesize+distill", "distill.json:1.interval.0", "rank by distill.json:1.validation"),
        ("distill", "student/result.json:test.loss", "rank by student/result.json:best.val_accuracy"),
        ("decompose", "result.json:accuracy.1.accuracy", "result.json:accuracy.1.accuracy is measured on test images"),
        ("open", "audit.json:accuracy.top1", "rank by audit.json:learning.best_val_accuracy"),
    ],
)
def test_nothing_is_tuned_on_test_images(tmp_path, command, score, words):
    plan = {"grid": {"seed": [0, 1]}, "score": score}
    with pytest.raises(InputError, match=words):
        plans.read_plan(command, written(tmp_path / "grid.yaml", plan))


def test_the_plan_in_the_documentation_ranks_by_validation(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "distill.md").read_text()
    plan = next(block for block in text.split("```") if block.startswith("yaml\ngrid:")).removeprefix("yaml\n")
    (tmp_path / "grid.yaml").write_text(plan)
    assert plans.read_plan("synthesize+distill", str(tmp_path / "grid.yaml")).scores == (
        ("distill.json", ("1", "validation")),
    )


@pytest.mark.parametrize("content", ["grid: [", "[1]", "", "!!python/object/apply:os.system ['touch ran']"])
def test_a_file_that_is_no_plan_is_refused(tmp_path, content):
    (tmp_path / "grid.yaml").write_text(content)
    with pytest.raises(InputError):
        plans.read_plan("train", str(tmp_path / "grid.yaml"))
    with pytest.raises(InputError, match="There is no file"):
        plans.read_plan("train", str(tmp_path / "nothing.yaml"))
    assert not Path("ran").exists()


def test_without_optuna_a_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'pellucid\[search\]'"):
        commands.search("train", grid=written(tmp_path / "grid.yaml", PLAN), out=str(tmp_path / "study"))


RECIPES = Path(pellucid.__file__).parent / "recipes"


def test_shipped_plans_are_plans():
    found = plans.read_plan("synthesize+assess", str(RECIPES / "search-inversion-2020.yaml"))
    assert found.size == 12
    words = one.words(found, "assess", found.point(0), Path("t"))
    assert words[:3] == ["assess", "resnet50.pth", "t/synthesize"]


@pytest.mark.parametrize("name", sorted(file.stem for file in RECIPES.glob("*-hidden-*.yaml")))
def test_shipped_experiments_are_flags_of_their_commands(name):
    from pellucid import cli
    from pellucid.commandline.bind import call

    text = (RECIPES / f"{name}.yaml").read_text()
    command = {"subnet": "train", "images": "synthesize", "student": "distill"}[name.rsplit("-", 1)[1]]
    assert f"--config {name}" in text and ("Not run here" in text) == name.startswith("cifar10")
    values = yaml.safe_load(text)
    assert set(values) <= set(plans.parameters(command))
    taken = {}

    def called(*words, **flags):
        taken.update(flags)
        return 0

    function = cli.command(command)
    called.__signature__, called.__doc__ = inspect.signature(function), function.__doc__
    called.__annotations__ = typing.get_type_hints(function)
    positional = [name for name, first in plans.parameters(command).items() if first]
    out = [] if command == "train" else ["--out", "out"]
    assert call(called, command, [*positional, "--config", str(RECIPES / f"{name}.yaml"), *out]) == 0
    for group in [value for value in taken.values() if dataclasses.is_dataclass(value)]:
        taken.update(dataclasses.asdict(group))  # flags that several commands share come as one value
    for key, value in values.items():
        if command != "train":
            assert taken[key] == value


# --- the study, with a function in place of the trials' processes ---


class Trials:
    """What stands in for a trial: it counts, takes a moment, and scores the point."""

    def __init__(self) -> None:
        self.points: list[dict[str, object]] = []
        self.die_at: int | None = None

    def __call__(self, plan, point, folder):
        self.points.append(point)
        if self.die_at == len(self.points):
            raise KeyboardInterrupt
        time.sleep(0.02)
        if point["lr"] == 0.01 and point["epochs"] == 2:
            raise InputError("train failed: the moon was wrong")
        return [point["lr"] * point["epochs"], 1.0]


@pytest.fixture
def trials(monkeypatch):
    pytest.importorskip("optuna")
    stand_in = Trials()
    monkeypatch.setattr(studies, "run_trial", stand_in)
    return stand_in


def go(tmp_path, **options) -> int:
    grid = written(tmp_path / "grid.yaml", options.pop("plan", PLAN))
    return commands.search("train", grid=grid, out=str(tmp_path / "study"), **options)


def test_a_grid_is_tried_once_ranked_and_its_best_replays(tmp_path, trials, capsys):
    assert go(tmp_path) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert len(trials.points) == 6
    assert "6 trials, best first" in shown
    assert "the moon was wrong" in shown
    assert f"Next: pellucid train --config {tmp_path / 'study' / 'best-train.yaml'}" in shown
    best = yaml.safe_load((tmp_path / "study" / "best-train.yaml").read_text())
    assert best == {**PLAN["fixed"], "lr": 0.1, "epochs": 2}
    assert go(tmp_path, json=True) == 0
    assert len(trials.points) == 6  # a finished study is only read
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert printed.err == "" and len(printed.out.strip().splitlines()) == 1
    assert found["command"] == "train" and found["direction"] == "maximize" and found["scores"] == PLAN["score"]
    assert [f"Next: {line}" for line in found["next"]] == [line for line in lines if line.startswith("Next: ")]
    rows = found["trials"]
    assert [row["scores"][0] for row in rows[:-1]] == [0.2, 0.1, 0.01, 0.002, 0.001]
    assert rows[-1]["error"].startswith("train failed")


def test_quiet_prints_nothing_but_errors(tmp_path, trials, capsys):
    assert go(tmp_path, quiet=True) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "study" / "best-train.yaml").is_file()


def test_a_search_without_a_score_still_prints_its_trials_as_json(tmp_path, trials, capsys):
    plan = {**PLAN, "grid": {"lr": [0.01], "epochs": [2]}}
    for options in ({"json": True}, {"quiet": True}):
        with pytest.raises(WorkFailed, match="the moon was wrong"):
            go(tmp_path, plan=plan, **options)
        printed = capsys.readouterr().out
        assert printed == "" if "quiet" in options else len(json.loads(printed)["trials"]) == 1


def test_a_search_leaves_nothing_behind_in_the_process(tmp_path, trials):
    import random
    import warnings

    import optuna

    def state():
        return (
            optuna.logging.get_verbosity(), list(warnings.filters), signal.getsignal(signal.SIGTERM),
            random.getstate(), torch.get_rng_state().tolist(), torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip

    before = state()
    assert go(tmp_path, quiet=True) == 0
    assert state() == before
    with pytest.raises(InputError, match="cannot be used"):
        go(tmp_path, storage="nonsense://here")
    assert state() == before


def test_two_workers_never_try_a_point_twice(tmp_path, trials):
    plan = {**PLAN, "grid": {"lr": [n / 1000 for n in range(12)], "epochs": [1]}}
    grid, statuses = written(tmp_path / "grid.yaml", plan), []

    def work():
        statuses.append(commands.search("train", grid=grid, out=str(tmp_path / "study"), json=True))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert statuses == [0, 0]
    assert sorted(point["lr"] for point in trials.points) == [n / 1000 for n in range(12)]


def test_what_was_interrupted_is_tried_again_in_its_place(tmp_path, trials):
    trials.die_at = 3
    with pytest.raises(KeyboardInterrupt, match="to continue the study"):
        go(tmp_path)
    assert go(tmp_path) == 0
    points = [tuple(point.items()) for point in trials.points]
    assert len(points) == 7 and len(set(points)) == 6
    assert points.count(points[2]) == 2


def test_a_worker_that_died_leaves_its_trial_to_others(tmp_path, trials, monkeypatch):
    monkeypatch.setattr(studies, "BEAT", 1)
    monkeypatch.setattr(studies, "SILENCE", 2)
    import optuna

    plan = plans.read_plan("train", written(tmp_path / "grid.yaml", PLAN))
    study = studies.open_study(plan, tmp_path / "study", None, "grid")
    with pytest.warns(UserWarning, match="supposed to be used with Study.optimize"):
        lost = study.ask()  # and is never heard of again, except for one heartbeat
    study._storage.record_heartbeat(lost._trial_id)
    assert go(tmp_path) == 0
    assert len(trials.points) == 6
    states = [trial.state for trial in optuna.load_study(study_name=studies.NAME, storage=study._storage).trials]
    assert states.count(optuna.trial.TrialState.RUNNING) == 0


def test_a_trial_that_was_failed_but_not_queued_again_is_not_lost(tmp_path, trials, monkeypatch):
    """Killed between the two, a worker would leave a study that looks complete and lacks a point."""
    monkeypatch.setattr(studies, "SILENCE", 1)
    import optuna

    plan = plans.read_plan("train", written(tmp_path / "grid.yaml", PLAN))
    study = studies.open_study(plan, tmp_path / "study", None, "grid")
    with pytest.warns(UserWarning, match="supposed to be used with Study.optimize"):
        study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    assert go(tmp_path) == 0
    assert len({tuple(point.items()) for point in trials.points}) == len(trials.points) == 6
    assert go(tmp_path) == 0
    assert len(trials.points) == 6


@pytest.mark.slow
def test_tpe_draws_from_ranges_by_its_seed(tmp_path, trials):
    plan = {
        **PLAN,
        "grid": {"lr": {"low": 0.001, "high": 1.0, "log": True}, "epochs": {"low": 1, "high": 3, "int": True}},
    }
    assert go(tmp_path, plan=plan, sampler="tpe", trials=5) == 0
    first = list(trials.points)
    assert len(first) == 5 and len({point["lr"] for point in first}) == 5
    assert all(0.001 <= point["lr"] <= 1 and point["epochs"] in (1, 2, 3) for point in first)
    (tmp_path / "again").mkdir()
    assert go(tmp_path / "again", plan=plan, sampler="tpe", trials=5) == 0
    assert trials.points[5:] == first
    with pytest.raises(InputError, match="--sampler tpe"):
        go(tmp_path / "again", plan=plan)


@pytest.mark.slow
def test_another_plan_a_bad_database_and_nothing_but_failures_are_told(tmp_path, trials):
    assert go(tmp_path) == 0
    with pytest.raises(InputError, match="another plan"):
        go(tmp_path, plan={**PLAN, "direction": "minimize"})
    with pytest.raises(InputError, match="cannot be used"):
        go(tmp_path, storage="nonsense://here")
    (tmp_path / "failing").mkdir()
    with pytest.raises(WorkFailed, match="gave a score; the first failed because: train failed"):
        go(tmp_path / "failing", plan={**PLAN, "grid": {"lr": [0.01], "epochs": [2]}})
    with pytest.raises(InputError, match="grid cannot use --trials"):
        go(tmp_path, trials=3)


# --- real processes ---


@pytest.mark.slow
def test_two_processes_and_a_kill_share_a_grid_of_real_trainings(tmp_path):
    pytest.importorskip("optuna")
    plan = {**PLAN, "grid": {"lr": [0.1, 0.01], "epochs": [1, 2]}}
    words = ["search", "train", "--grid", written(tmp_path / "grid.yaml", plan), "--out", "study"]
    first = start(*words, cwd=tmp_path)
    while not list((tmp_path / "study" / "trials").glob("*/train/settings.yaml")) and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)  # its trial's process ends with it
    first.communicate()
    workers = [start(*words, cwd=tmp_path) for _ in range(2)]
    outs = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outs
    results = list((tmp_path / "study" / "trials").glob("*/train/result.json"))
    assert len(results) == 4
    assert "4 trials, best first" in outs[0][0]
    done = run("train", "--config", "study/best-train.yaml", "--out", "best", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = max(json.loads(file.read_text())["best"]["val_accuracy"] for file in results)
    assert json.loads((tmp_path / "best" / "result.json").read_text())["best"]["val_accuracy"] == best
    bad = run("search", "train", "--grid", "nothing.yaml", cwd=tmp_path)
    assert bad.returncode == 2 and "nothing.yaml" in sentence(bad)


def test_trials_that_ran_without_a_score_are_work_that_failed_and_no_bad_input(tmp_path, monkeypatch, capsys):
    """Status 2 says that nothing was changed, which is not so once a trial has run."""
    monkeypatch.chdir(tmp_path)
    plan = {"grid": {"lr": [0.1]}, "fixed": PLAN["fixed"], "score": "none.json:top1"}
    written(Path("plan.yaml"), plan)
    monkeypatch.setattr(one, "run", lambda plan, point, folder: plan.scores_of(folder))
    assert main(["search", "train", "--grid", "plan.yaml", "--out", "study"]) == 1
    assert "no 'none.json' was written" in capsys.readouterr().err
    assert Path("study").is_dir()
