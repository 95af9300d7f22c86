"""A student of a network that never saw its data, and beside it, in one table, the students that judge it.

Every student is an ordinary run of the one training loop under the objective `distillation`: the same steps, the same
schedule, the same teacher; only the images differ. Controls, trained likewise: noise; k real images of each class; as
many random real images as there are synthesised ones.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pellucid.core.data.dataset import load_data
from pellucid.core.device import choose_device
from pellucid.core.errors import InputError
from pellucid.core.files.atomic import write_atomic
from pellucid.core.measure.evaluate import evaluate
from pellucid.core.network.checkpoint import save
from pellucid.core.source import is_architecture, normalization_flags, open_network
from pellucid.core.train.loop import train
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings
from pellucid.distillation.folder import read
from pellucid.distillation.objective import Distillation

# What a student is trained with where nothing else is said.
SCHEDULE: dict[str, Any] = {"epochs": 40, "optimizer": "adamw", "lr": 3e-3, "schedule": "one-cycle", "warmup": 0.2}


@dataclass(frozen=True)
class Row:
    """One row of the table: what was learned from, images, test accuracy with its 95 % interval, steps, seconds."""

    name: str
    images: int | None
    accuracy: float
    interval: tuple[float, float]
    tested: int
    steps: int | None
    seconds: float | None
    run: str | None


@dataclass(frozen=True, eq=False)
class Distilled:
    """A student, and the table with its controls.

    student: the model, in evaluation mode. run: its run folder. rows: teacher, student and controls. seconds: of this
    call, with synthesis if it was part of it.
    """

    student: nn.Module
    run: Run
    rows: list[Row]
    seconds: float

    def __getitem__(self, name: str) -> Row:
        """The row of this name: teacher, student, noise, real 1, real 10, or random."""
        return next(row for row in self.rows if row.name == name)


def distill(
    teacher: str | os.PathLike[str] | nn.Module,
    student: str,
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    data: str | None = None,
    out: str | os.PathLike[str] = "students",
    teacher_model: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    temperature: float = 4.0,
    alpha: float = 0.9,
    real: Sequence[int] = (1, 10),
    controls: bool = True,
    control_epochs: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    **settings: Any,
) -> Distilled:
    """Train the architecture `student` on synthesised images and a teacher's answers to them, beside its controls.

    A call that was stopped goes on where it was; a finished one is only read.

    Args:
        teacher: run folder or checkpoint, a foreign one with `teacher_model` or as MODEL=FILE; an architecture's name,
            for random weights drawn from the seed; or a model that `pellucid.save` can store.
        student: architecture, as in `pellucid.train`.
        folder: one or more folders of `synthesize`, or class folders of any images.
        data: real data to test on, and of which controls take their images; without, students are tested on a fifth of
            the synthesised images, which says nothing of real ones.
        out: folder of the runs `student`, `noise`, `real-1`, ... and of `distill.json`, the table.
        teacher_model, mean, std: architecture and normalisation of a foreign checkpoint.
        temperature, alpha: of the loss; see `Distillation`.
        real: real images of each class, a control each.
        controls: train the controls too.
        control_epochs: passes of these over their images; default as many as the student's.
        seed: of the students' weights, order and augmentation, and of the controls' choice of images.
        settings: further settings of `pellucid.TrainSettings`; default 40 epochs of AdamW, 0.003, one-cycle, and real
            data resized to the synthesised images. `init` is where the student starts, never a control.

    Raises:
        InputError: models, images and data that do not fit each other, or a folder with other settings.
    """
    began = time.monotonic()
    path = Path(out)
    folders = [os.fspath(f) for f in ([folder] if isinstance(folder, str | os.PathLike) else folder)]
    if data is None and len(folders) > 1:
        raise InputError("Students of several folders need real data to be tested on: name it with data=.")
    teacher, teacher_model, mean, std = as_stored(teacher, teacher_model, mean, std, seed)
    if isinstance(teacher, nn.Module):
        save(teacher, path / "teacher.safetensors")
        teacher = path / "teacher.safetensors"
    made = [(len(images.split), images.side) for images in map(read, folders)]  # the images themselves are let go
    count = sum(length for length, _ in made)
    options = {
        "teacher": os.fspath(teacher), "teacher_model": teacher_model,
        "teacher_mean": None if mean is None else list(mean), "teacher_std": None if std is None else list(std),
        "temperature": temperature, "alpha": alpha, "length": count,
    }  # fmt: skip
    named = {"data": data or f"folder:{folders[0]}", "image_size": made[0][1], "model": student, "seed": seed}
    common = {**SCHEDULE, **named, **settings}
    common["batch_size"] = min(common.get("batch_size", TrainSettings.batch_size), count)
    arms = {"student": folders}
    if controls:
        arms["noise"] = [f"noise:{count}"]
    if controls and data is not None:
        arms |= {f"real {k}": [f"real:{k}"] for k in real}
        arms["random"] = [f"random:{_at_most(count, common)}"]
    plans = {}
    for name, images in arms.items():
        chosen = {key: value for key, value in {**options, "images": images}.items() if value is not None}
        own = {} if name == "student" else {"init": None, "epochs": control_epochs or common["epochs"]}
        plans[name] = TrainSettings(**{**common, **own}, objective="distillation", objective_options=chosen)
    rows = [_teacher_row(Distillation(**plans["student"].objective_options), plans["student"])]
    done = {}
    for name, plan in plans.items():
        if not quiet:
            from pellucid.core.terminal import say

            say(f"{name}: {' '.join(arms[name])}")
        done[name] = train(plan, path / name.replace(" ", "-"), quiet=quiet)
        rows.append(_row(name, done[name].run, done[name].result))
    write_atomic(path / "distill.json", json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return Distilled(done["student"].model, done["student"].run, rows, time.monotonic() - began)


def as_stored(
    teacher: str | os.PathLike[str] | nn.Module,
    model: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    seed: int,
) -> tuple[Any, str | None, Sequence[float] | None, Sequence[float] | None]:
    """`teacher` as a path, with what goes with it; one that is built or that a file is named for, as a module.

    A run records its teacher by a path, which an architecture's name and MODEL=FILE are not.
    """
    name = teacher if isinstance(teacher, str) else ""
    if name and not Path(name).exists() and (is_architecture(name) or "=" in name):
        fallback = normalization_flags(mean, std)
        return open_network(name, model, fallback=fallback, seed=seed, normalized=True).model, None, None, None
    return teacher, model, mean, std


def _at_most(count: int, common: dict[str, Any]) -> int:
    """`count`, or the number of real training images where there are fewer."""
    return min(count, len(_data(TrainSettings(**common)).train))


def _data(settings: TrainSettings) -> Any:
    return load_data(
        settings.data,
        image_size=settings.image_size,
        val_fraction=settings.val_fraction,
        memory_budget=int(settings.memory_gb * 2**30),
    )


def _teacher_row(objective: Distillation, settings: TrainSettings) -> Row:
    dataset = objective.data(_data(settings), settings.seed)
    device = choose_device(settings.device)
    assert objective.network is not None
    score = evaluate(objective.network.to(device), dataset, device=device)
    return Row("teacher", None, score.top1, score.top1_interval, score.n, None, None, None)


def _row(name: str, run: Run, result: dict[str, Any]) -> Row:
    low, high = result["test"]["top1_interval"]
    return Row(
        name,
        result["data"]["images"]["val"],  # every image once; in training, few are repeated
        result["test"]["top1"],
        (low, high),
        result["test"]["n"],
        result["steps"],
        result["seconds"],
        str(run.path),
    )
