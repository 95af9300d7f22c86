"""The command `pellucid train`."""

from __future__ import annotations

import dataclasses
import json as json_
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from pellucid.core.errors import InputError, shown
from pellucid.core.references import refuse_code
from pellucid.core.train.settings import TrainSettings

if TYPE_CHECKING:
    from pellucid.core.train.setup import Trained


def train(
    settings: TrainSettings,
    *,
    out: str | None = None,
    resume: bool | str = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Train a model in a run folder that can be resumed at any moment.

    The same command continues a run that was stopped, and only reports one that is finished.

    Args:
        out: run folder; default runs/ and a name made from the settings.
        resume: continue the run in this folder with its own settings; without a value, the run of this very command.
        json: print the result as one JSON object, and nothing else.
        quiet: print nothing but errors.
    """
    if isinstance(resume, str):
        if out is not None and Path(out) != Path(resume):
            raise InputError(f"--resume {resume} continues in its own folder: leave out --out {out}.")
        settings, out = _settings_of(resume, settings), resume
    elif resume and not (Path(out or f"runs/{settings.name()}") / "settings.yaml").exists():
        raise InputError(f"There is no run to resume in {out or f'runs/{settings.name()}'!r}: leave out --resume.")
    from pellucid.core import terminal
    from pellucid.core.train.loop import train as run_training

    trained = run_training(settings, out, quiet=quiet or json)
    if json:
        about = {"run": str(trained.run.path), "model": settings.model, "seed": settings.seed}
        terminal.say(json_.dumps({**about, **trained.result}))
    elif not quiet:
        _show(settings, trained)
    return 0


def _show(settings: TrainSettings, trained: Trained) -> None:
    from pellucid.core import terminal
    from pellucid.core.facts import facts
    from pellucid.core.measure.evaluate import about_copies

    result, test = trained.result, trained.result["test"]
    rows = [
        ["test accuracy", terminal.percent(test["top1"], test["top1_interval"]), test["n"]],
        ["test accuracy, top 5", terminal.percent(test["top5"]), test["n"]],
        ["validation accuracy", terminal.percent(result["best"]["val_accuracy"]), result["data"]["images"]["val"]],
        ["calibration error", terminal.percent(test["ece"]), test["n"]],
    ]
    if test["top5"] is None:
        del rows[1]
    title = f"{settings.model} on {settings.data}: epoch {result['best']['epoch'] + 1}, seed {settings.seed}"
    terminal.show(title, ["", "value (95 % interval)", "images"], rows)
    if sentence := about_copies(test):
        terminal.say(sentence)
    terminal.say(f"Run: {trained.run.path}")
    code = facts(trained.model).code
    words = ["pellucid", "open", str(trained.run.path), *(["--model", code] if code else [])]
    terminal.say(f"Next: {shlex.join(words)}")


def _settings_of(run: str, given: TrainSettings) -> TrainSettings:
    from pellucid.core.train.run import Run

    settings = Run(run).settings
    refuse_code(dataclasses.asdict(settings), f"The run {shown(run, 200)}", dataclasses.asdict(given))
    for name, value in given.changed().items():
        if getattr(settings, name) != value:
            raise InputError(
                f"{run!r} was begun with {name} = {getattr(settings, name)!r}: --resume continues with the run's own "
                f"settings, so leave out --{name.replace('_', '-')}."
            )
    return settings
