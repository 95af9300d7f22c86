"""The commands of the ground: they call the functions of the same name, and print.

Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import json as json_
import math
import shlex
from pathlib import Path
from typing import Literal

from pellucid.core.errors import InputError
from pellucid.core.settings import TrainSettings


def train(settings: TrainSettings, *, out: str | None = None, resume: bool | str = False, quiet: bool = False) -> int:
    """Train a model and keep the run in a folder, resumable at any moment.

    The same command again continues a run that was stopped, and only reports one that is finished.

    Args:
        out: run folder; default runs/ and a name made of the settings.
        resume: continue the run in this folder with its own settings; without a value, the run of this very command.
        quiet: print nothing but errors.
    """
    if isinstance(resume, str):
        if out is not None and Path(out) != Path(resume):
            raise InputError(f"--resume {resume} continues in its own folder: leave out --out {out}.")
        settings, out = _settings_of(resume, settings), resume
    elif resume and not (Path(out or f"runs/{settings.name()}") / "settings.yaml").exists():
        raise InputError(f"There is no run to resume in {out or f'runs/{settings.name()}'!r}: leave out --resume.")
    from pellucid.core import terminal
    from pellucid.core.train import train as run_training

    trained = run_training(settings, out, quiet=quiet)
    if not quiet:
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
        terminal.say(f"Run: {trained.run.path}")
        terminal.say(f"Next: pellucid open {trained.run.path}")
    return 0


def _settings_of(run: str, given: TrainSettings) -> TrainSettings:
    from pellucid.core.run import Run

    settings = Run(run).settings
    for name, value in given.changed().items():
        if getattr(settings, name) != value:
            raise InputError(
                f"{run!r} was begun with {name} = {getattr(settings, name)!r}: --resume goes on with the run's own "
                f"settings, so leave out --{name.replace('_', '-')}."
            )
    return settings


def evaluate(
    checkpoint: str,
    /,
    *,
    data: str | None = None,
    model: str | None = None,
    split: Literal["test", "val", "train"] = "test",
    image_size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: str = "auto",
    batch_size: int = 512,
    workers: int = 2,
    json: bool = False,
) -> int:
    """Evaluate a run or checkpoint: accuracy, calibration and every class, with intervals.

    Args:
        checkpoint: run folder, .safetensors file, or foreign checkpoint (.pth, .th, .pt; with --model).
        data: digits, cifar10[:PATH], cifar100[:PATH], folder:PATH or npz:PATH; default the run's own data.
        model: architecture of a foreign checkpoint, as in train.
        split: part of the data; val is what was held out of the training images.
        image_size: side in pixels that images are resized to; default what the model was trained on.
        mean: mean of each input channel (pixels in 0 to 1), where the checkpoint does not know it.
        std: standard deviation of each input channel, where the checkpoint does not know it.
        device: auto, cpu, cuda, ...
        batch_size: images in a step.
        workers: processes that decode images of a data set too large for memory.
        json: print everything as JSON instead of a table.
    """
    from pellucid.core import metrics, terminal
    from pellucid.core.launch import choose_device
    from pellucid.core.source import open_source

    device = choose_device(device)
    source = open_source(checkpoint, data, model=model, image_size=image_size, mean=mean, std=std)
    result = metrics.evaluate(
        source.model.to(device), source.dataset, split, batch_size=batch_size, device=device, workers=workers
    )
    if not math.isfinite(result.loss):
        raise InputError(
            f"The model in {checkpoint!r} answers NaN or infinity: its weights or --mean and --std are off."
        )
    if json:
        about = {"checkpoint": checkpoint, "data": source.dataset.name, "split": split}
        terminal.say(json_.dumps({**about, **result.to_json()}))
        return 0
    rows = [["all", terminal.percent(result.top1, result.top1_interval), result.n]]
    shown = sorted(result.per_class, key=lambda entry: entry["accuracy"] if entry["n"] else 2.0)[:20]
    rows += [[e["class"], terminal.percent(e["accuracy"], e["interval"]), e["n"]] for e in shown]
    if len(result.per_class) > 20:
        rows.append([f"... {len(result.per_class) - 20} better classes", "", ""])
    title = f"{checkpoint} on {source.dataset.name} ({split})"
    terminal.show(title, ["class", "accuracy (95 % interval)", "images"], rows)
    top5 = "" if result.top5 is None else f"top 5 {terminal.percent(result.top5)}, "
    terminal.say(f"{top5}loss {result.loss:.4f}, calibration error {terminal.percent(result.ece)}")
    given = {"data": data, "model": model, "image-size": image_size, "mean": mean, "std": std}
    words = ["pellucid", "open", checkpoint]
    for flag, value in given.items():
        if value is not None:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    terminal.say(f"Next: {shlex.join(words)}")
    return 0
