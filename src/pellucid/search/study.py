"""The study: a database of trials that workers share, in which each point runs once even if workers die."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import inspect
import json
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.core.errors import InputError, Interrupted, first_line
from pellucid.core.seeds import seed_of
from pellucid.search.plan import Plan
from pellucid.search.trial import run as run_trial

if TYPE_CHECKING:
    import optuna

BEAT, SILENCE = 10, 60  # seconds between heartbeats, and without one until a worker counts as dead
NAME = "pellucid"  # name of the study in its database


def open_study(plan: Plan, folder: Path, storage: str | None, sampler: str) -> optuna.Study:
    """Create the study of this plan, or continue it.

    Raises:
        InputError: Optuna is not installed, the database cannot be used, or it contains a study of another plan.
    """
    optuna = _optuna()
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(folder / 'study.db').resolve()}"
    takes = inspect.signature(optuna.storages.RDBStorage).parameters
    callback = "heartbeat_stale_trial_callback"
    if callback not in takes:  # its name before Optuna 4.9
        callback = "failed_trial_callback"
    heartbeat: dict[str, Any] = {"heartbeat_interval": BEAT, "grace_period": SILENCE, callback: _again}
    described = json.dumps({**dataclasses.asdict(plan), "sampler": sampler}, sort_keys=True)
    try:
        with FileLock(folder / ".lock"):  # workers that start together must not both create the tables
            study = optuna.create_study(
                storage=optuna.storages.RDBStorage(url, **heartbeat),
                study_name=NAME,
                direction=plan.direction,
                load_if_exists=True,
            )
            begun = study.user_attrs.get("plan")
            if begun is None:
                study.set_user_attr("plan", described)
        if begun in (None, described):
            return study
    except Exception as error:  # of SQLAlchemy or of any driver
        raise InputError(
            f"The database {url!r} cannot be used ({first_line(error)}): free some space if the disk is full, or name "
            "another with --out or --storage."
        ) from None
    raise InputError(f"{url!r} contains a study of another plan: give another --out or --storage.")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError("The command search needs Optuna: pip install 'pellucid[search]'.") from None
    return optuna


def _again(study: optuna.Study, trial: Any) -> None:
    """Queue a trial that was cut short to run again, as the same trial."""
    study.enqueue_trial(trial.params, user_attrs={"of": trial.user_attrs.get("of", trial.number)})


def work(study: optuna.Study, plan: Plan, folder: Path, wanted: int, seed: int | None, quiet: bool) -> None:
    """Run trials until all are done, including those of other workers: of the grid, or with a `seed` by TPE."""
    import optuna
    from optuna.trial import TrialState

    from pellucid.core.terminal import bar

    class Failed(Exception):
        pass

    def run(trial: optuna.Trial) -> float:
        number = trial.user_attrs.get("of", trial.number)
        # Trials that run again have numbers too, so they are left out when a point's place is counted.
        place = sum(t.number < number and "of" not in t.user_attrs for t in study.get_trials(deepcopy=False))
        if place >= wanted:  # another worker took the last one first
            raise optuna.TrialPruned
        if seed is None:
            point = plan.point(place)
        else:  # one seed per trial: workers that start together must not draw the same points
            study.sampler = optuna.samplers.TPESampler(seed=seed_of("tpe", seed, place) % 2**32)
            point = _suggested(trial, plan.grid)
        own = folder / "trials" / f"{place:04d}"
        trial.set_user_attr("point", point)
        trial.set_user_attr("folder", str(own))
        began = time.monotonic()
        try:
            scores = run_trial(plan, point, own)
        except InputError as error:
            trial.set_user_attr("error", str(error))
            raise Failed from None
        except KeyboardInterrupt:
            _again(study, study.get_trials(deepcopy=False)[trial.number])
            raise
        trial.set_user_attr("scores", scores)
        trial.set_user_attr("seconds", round(time.monotonic() - began, 3))
        return scores[0]

    with bar(wanted, quiet=quiet) as shown:
        while True:
            trials = study.get_trials(deepcopy=False)
            states = {trial.state for trial in trials}
            begun = sum("of" not in trial.user_attrs for trial in trials)
            shown.update(min(begun, wanted), "trials begun")
            if begun < wanted or TrialState.WAITING in states:
                try:
                    study.optimize(run, n_trials=1, catch=(Failed,))
                except KeyboardInterrupt:
                    raise Interrupted(
                        signal.SIGINT, "Stopped; run the same command again to continue the study."
                    ) from None
            elif TrialState.RUNNING in states or _lost(study):
                _fail_dead(study)
                time.sleep(1)
            else:
                return


def _fail_dead(study: optuna.Study) -> None:
    """Mark trials of workers without a heartbeat as failed, and queue them again."""
    import optuna
    from optuna.trial import TrialState

    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # A worker that died between taking a trial and its first heartbeat has no heartbeat to miss.
        age = datetime.datetime.now() - (trial.datetime_start or datetime.datetime.now())
        if "point" not in trial.user_attrs and age.total_seconds() > 3 * SILENCE:
            study.tell(trial.number, state=TrialState.FAIL)
            _again(study, trial)
    for trial in _lost(study):
        # Whoever failed it may be about to queue it; after this time, that worker is dead.
        if (datetime.datetime.now() - trial.datetime_complete).total_seconds() > SILENCE:
            _again(study, trial)


def _lost(study: optuna.Study) -> list[Any]:
    """Of each point whose trials were all cut short, and which is not queued: the last trial.

    A worker that is killed between failing a dead one's trial and queueing it again leaves it so.
    """
    from optuna.trial import TrialState

    attempts: dict[int, list[Any]] = {}
    for trial in study.get_trials(deepcopy=False):
        attempts.setdefault(trial.user_attrs.get("of", trial.number), []).append(trial)
    return [
        trials[-1]
        for trials in attempts.values()
        if all(trial.state == TrialState.FAIL and "error" not in trial.user_attrs for trial in trials)
    ]


def _suggested(trial: optuna.Trial, grid: Mapping[str, Any]) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for name, values in grid.items():
        if isinstance(values, list):  # as JSON: a value may be a list itself
            point[name] = json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in values]))
        elif values.get("int"):
            point[name] = trial.suggest_int(name, values["low"], values["high"], log=bool(values.get("log")))
        else:
            point[name] = trial.suggest_float(name, values["low"], values["high"], log=bool(values.get("log")))
    return point


def ranking(study: optuna.Study, plan: Plan) -> list[dict[str, Any]]:
    """The trials, best first, then the failed ones; each has `point`, `scores`, `seconds`, `error` and `folder`."""
    keys = ("point", "scores", "seconds", "error", "folder")
    rows: list[dict[str, Any]] = [
        {key: t.user_attrs.get(key) for key in keys} for t in study.get_trials(deepcopy=False)
    ]
    done = [row for row in rows if row["scores"]]
    sign = -1 if plan.direction == "maximize" else 1
    return [*sorted(done, key=lambda row: sign * row["scores"][0]), *(row for row in rows if row["error"])]


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna while the block runs: the table shows which trials failed.

    Raises:
        InputError: Optuna is not installed.
    """
    optuna = _optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*experimental")  # heartbeats are, for Optuna
            yield
    finally:
        optuna.logging.set_verbosity(before)


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C while the block runs, so that the trial's process stops and the trial is queued again.

    The handler of before is restored.
    """

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
