"""The study: a database of trials that workers share, each point tried once, whoever works and whoever dies."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import inspect
import json
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.core.errors import InputError, Interrupted, first_line
from pellucid.core.seeds import seed_of
from pellucid.search.plan import Plan
from pellucid.search.trial import run as run_trial

if TYPE_CHECKING:
    import optuna

BEAT, SILENCE = 10, 60  # seconds between signs of life, and of silence after which a worker counts as dead
NAME = "pellucid"  # of the study in its database


def open_study(plan: Plan, folder: Path, storage: str | None, sampler: str) -> optuna.Study:
    """The study of this plan, made or continued.

    Raises:
        InputError: Optuna is not installed, the database cannot be used, or it holds a study of another plan.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("The command search needs Optuna: pip install 'pellucid[search]'.") from None
    from filelock import FileLock

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what fails is in the table
    folder.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(folder / 'study.db').resolve()}"
    takes = inspect.signature(optuna.storages.RDBStorage).parameters
    callback = "heartbeat_stale_trial_callback"
    if callback not in takes:  # its name before Optuna 4.9
        callback = "failed_trial_callback"
    life: dict[str, Any] = {"heartbeat_interval": BEAT, "grace_period": SILENCE, callback: _again}
    said = json.dumps({**dataclasses.asdict(plan), "sampler": sampler}, sort_keys=True)
    try:
        with FileLock(folder / ".lock"):  # workers that begin together must not both make the tables
            study = optuna.create_study(
                storage=optuna.storages.RDBStorage(url, **life),
                study_name=NAME,
                direction=plan.direction,
                load_if_exists=True,
            )
            begun = study.user_attrs.get("plan")
            if begun is None:
                study.set_user_attr("plan", said)
        if begun in (None, said):
            return study
    except Exception as error:  # SQLAlchemy's, and every driver's own
        raise InputError(f"The database {url!r} cannot be used ({first_line(error)}).") from None
    raise InputError(f"{url!r} holds a study of another plan: give another --out or --storage.")


def _again(study: optuna.Study, trial: Any) -> None:
    """Put a trial that was cut short back to be run, as the same one."""
    study.enqueue_trial(trial.params, user_attrs={"of": trial.user_attrs.get("of", trial.number)})


def work(study: optuna.Study, plan: Plan, folder: Path, wanted: int, seed: int | None, quiet: bool) -> None:
    """Run trials until all are done, those of other workers too; of the grid, or by TPE with this seed."""
    import optuna
    from optuna.trial import TrialState

    from pellucid.core.terminal import bar

    class Failed(Exception):
        pass

    def run(trial: optuna.Trial) -> float:
        number = trial.user_attrs.get("of", trial.number)
        # Trials that are run again have numbers too: a point's place is counted without them.
        place = sum(t.number < number and "of" not in t.user_attrs for t in study.get_trials(deepcopy=False))
        if place >= wanted:  # another worker was quicker to take the last one
            raise optuna.TrialPruned
        if seed is None:
            point = plan.points()[place]
        else:  # a seed for each trial: workers that begin together must not draw alike
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
                    raise Interrupted(signal.SIGINT, "Stopped; the same command goes on with the study.") from None
            elif TrialState.RUNNING in states:
                _fail_dead(study)
                time.sleep(1)
            else:
                return


def _fail_dead(study: optuna.Study) -> None:
    """Mark as failed, and put back, what workers left that give no sign of life."""
    import optuna
    from optuna.trial import TrialState

    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # A worker that died between taking a trial and its first sign of life has none to miss.
        age = datetime.datetime.now() - (trial.datetime_start or datetime.datetime.now())
        if "point" not in trial.user_attrs and age.total_seconds() > 3 * SILENCE:
            study.tell(trial.number, state=TrialState.FAIL)
            _again(study, trial)


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
    """The trials, best first, then those that failed: `point`, `scores`, `seconds`, `error`, `folder`."""
    keys = ("point", "scores", "seconds", "error", "folder")
    rows: list[dict[str, Any]] = [
        {key: t.user_attrs.get(key) for key in keys} for t in study.get_trials(deepcopy=False)
    ]
    done = [row for row in rows if row["scores"]]
    sign = -1 if plan.direction == "maximize" else 1
    return [*sorted(done, key=lambda row: sign * row["scores"][0]), *(row for row in rows if row["error"])]


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that the trial's process is stopped and the trial put back."""

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
