"""`pellucid.distill`: a student of a network whose data it never sees, in one table with the controls that judge it.

Every student is an ordinary run of the one training loop under the objective `distillation`, with the same steps,
schedule and teacher; only the images differ. The controls are trained likewise on noise, on k real images per class,
and on as many random real images as there are synthesised ones.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pellucid.core.data.dataset import Dataset
from pellucid.core.data.splits import for_fitting
from pellucid.core.device import choose_device
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.files.atomic import write_atomic
from pellucid.core.given import as_dataset
from pellucid.core.measure.evaluate import evaluate
from pellucid.core.measure.share import Share
from pellucid.core.network.checkpoint import save
from pellucid.core.source import Named, is_architecture, normalization_flags, open_network
from pellucid.core.train.loop import train
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings
from pellucid.distillation.folder import read
from pellucid.distillation.objective import Distillation
from pellucid.distillation.sources import LEARNED

# How a student is trained where nothing else is said.
SCHEDULE: dict[str, Any] = {"epochs": 40, "optimizer": "adamw", "lr": 3e-3, "schedule": "one-cycle", "warmup": 0.2}


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: teacher, student, noise, real 1, real 10 or random.
        images: how many images there were to learn from, those held out among them; None for the teacher.
        score: the test images that are classified correctly.
        held_out: how many of these images were held out, to choose the epoch.
        validation: the fraction of the held-out images that is classified as labelled; None if none were held out. What
            is tuned, is tuned on this number.
        steps: updates of the weights.
        seconds: duration of training.
        run: path of the run folder.
    """

    name: str
    images: int | None
    score: Share
    steps: int | None
    seconds: float | None
    run: str | None
    held_out: int = 0
    validation: float | None = None

    @property
    def accuracy(self) -> float:
        """The fraction of test images that are classified correctly."""
        return self.score.correct / self.score.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return self.score.interval

    @property
    def tested(self) -> int:
        """The number of test images."""
        return self.score.n

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: "accuracy" is on the "tested" test images, "validation" on the "held_out" ones."""
        return {
            "name": self.name,
            "images": self.images,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "tested": self.tested,
            "steps": self.steps,
            "seconds": self.seconds,
            "run": self.run,
            "validation": self.validation,
            "held_out": self.held_out,
        }


@dataclass(frozen=True, eq=False)
class Distilled:
    """A student, and the table with its controls.

    Attributes:
        student: the model, in evaluation mode.
        run: its run folder.
        rows: teacher, student and controls.
        seconds: duration of this call, including synthesis where it was part of it.
    """

    student: nn.Module
    run: Run
    rows: list[Row]
    seconds: float

    def __getitem__(self, name: str) -> Row:
        """The row called teacher, student, noise, real 1, real 10 or random."""
        return next(row for row in self.rows if row.name == name)


def distill(
    teacher: Named,
    student: str,
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    data: Any = None,
    out: str | os.PathLike[str] = "students",
    teacher_model: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    temperature: float = 4.0,
    alpha: float = 0.9,
    held_out: float = 0.2,
    real: Sequence[int] = (1, 10),
    controls: bool = True,
    control_epochs: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    **settings: Any,
) -> Distilled:
    """Train the architecture `student` on synthesised images and a teacher's predictions, next to its controls.

    A call that was stopped continues where it was; a finished one is only read.

    Args:
        teacher: run folder, checkpoint (a foreign one with `teacher_model`, or as MODEL=FILE), `Run`, architecture
            (random weights drawn from the seed), or a module that `pellucid.save` can store. A module is afterwards as
            it was before.
        student: architecture, as in `pellucid.train`.
        folder: one or more folders of `synthesize`, or class folders of any images.
        data: real data to test on, and from which controls take their images: a name as in `load_data` (resized to the
            synthesised images), a `Dataset`, (images normalised as the teacher expects, labels), or an iterable of such
            pairs. Of the last two all are test images, so controls are noise alone. A run on data in hand records their
            name and fingerprint, and is continued or replayed with the same object. Without data, a
            fifth of the synthesised images is the test set, from which no student learns; it says nothing about real
            images.
        out: folder of the runs `student`, `noise`, `real-1`, ... and of `distill.json`, the table.
        teacher_model, mean, std: architecture and normalisation of a foreign checkpoint.
        temperature, alpha: of the loss; see `Distillation`.
        held_out: fraction of its images that each row holds out, in the classes' proportions, to choose the epoch and
            for the validation score; a row of one image per class holds out none. With 0 every row learns from all of
            its images and keeps the last epoch.
        real: numbers of real images per class, one control each.
        controls: train the controls too.
        control_epochs: epochs of the controls; default as many as the student's.
        seed: of the students' weights, order and augmentation, and of the controls' choice of images.
        quiet: print nothing.
        settings: further settings of `pellucid.TrainSettings`; default 40 epochs of AdamW with learning rate 0.003,
            one-cycle. `init` applies to the student, never to a control.

    Raises:
        InputError: models, images and data that do not fit each other, or a folder with other settings.
    """
    began = time.monotonic()
    path = Path(out)
    folders = [os.fspath(f) for f in ([folder] if isinstance(folder, str | os.PathLike) else folder)]
    if data is None and len(folders) > 1:
        raise InputError("Students of several folders need real data to be tested on: name it with data=.")
    stored, teacher_model, mean, std = as_stored(teacher, teacher_model, mean, std, seed)
    made = [(len(images.split), images.side) for images in map(read, folders)]  # the images themselves are let go
    if isinstance(stored, nn.Module):
        save(stored, path / "teacher.safetensors")
        stored = path / "teacher.safetensors"
    count = sum(length for length, _ in made)
    side = settings.pop("image_size", None) or made[0][1]
    source = f"folder:{folders[0]}" if data is None else data
    if not 0 <= held_out < 0.5:
        raise InputError(f"--held-out {held_out:g} is out of range: give 0 to below 0.5.")
    if data is None and held_out:
        settings.setdefault("val_fraction", held_out)
    known = None  # of a name, the size of the images decides
    if not isinstance(source, str):
        known = facts(open_network(stored, teacher_model, fallback=normalization_flags(mean, std)).model)
    limits = {key: settings[key] for key in ("val_fraction", "memory_gb") if key in settings}
    dataset = as_dataset(source, known, image_size=side, settings=TrainSettings(**limits))
    given = None if isinstance(source, str) else dataset  # a run reads a name by itself
    if data is None:  # part of the folder is the test set: the rest is what there is to learn from
        folders, count = ["real"], len(dataset.train) + (len(dataset.val) if held_out else 0)
    options = {
        "teacher": os.fspath(stored), "teacher_model": teacher_model,
        "teacher_mean": None if mean is None else list(mean), "teacher_std": None if std is None else list(std),
        "temperature": temperature, "alpha": alpha, "length": count,
        "held_out": held_out,
    }  # fmt: skip
    common = {**SCHEDULE, "data": dataset.name, "image_size": side, "model": student, "seed": seed, **settings}
    common["batch_size"] = min(common.get("batch_size", TrainSettings.batch_size), count)
    arms = {"student": (folders, count)}  # the words that name the images, and how many these are
    if controls:
        arms["noise"] = ([f"noise:{count}"], count)
    if controls and data is not None and len(dataset.train):
        per_class = for_fitting(dataset.train, LEARNED).labels.bincount()
        arms |= {f"real {k}": ([f"real:{k}"], int(per_class.clamp(max=k).sum())) for k in real}
        some = min(count, len(dataset.train))
        arms["random"] = ([f"random:{some}"], some)
    plans = {}
    for name, (images, _) in arms.items():
        chosen = {key: value for key, value in {**options, "images": images}.items() if value is not None}
        own = {} if name == "student" else {"init": None, "epochs": control_epochs or common["epochs"]}
        plans[name] = TrainSettings(**{**common, **own}, objective="distillation", objective_options=chosen)
    rows = [_teacher_row(Distillation(**plans["student"].objective_options), dataset, plans["student"])]
    done = {}
    for name, plan in plans.items():
        if not quiet:
            from pellucid.core.terminal import say

            say(f"{name}: {' '.join(arms[name][0])}")
        done[name] = train(plan, path / name.replace(" ", "-"), data=given, quiet=quiet)
        rows.append(_row(name, arms[name][1], count, done[name].run, done[name].result))
    write_atomic(path / "distill.json", json.dumps([row.to_json() for row in rows], indent=1) + "\n")
    return Distilled(done["student"].model, done["student"].run, rows, time.monotonic() - began)


def as_stored(
    teacher: Named,
    model: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    seed: int,
) -> tuple[Any, str | None, Sequence[float] | None, Sequence[float] | None]:
    """`teacher` as a path, with its architecture and normalisation; or as a module that has yet to be stored.

    A run records its teacher as a path, so an architecture and MODEL=FILE are opened. Of a module that a user's own
    code made, the architecture is that code, which has to be named where the stored file is opened.
    """
    if isinstance(teacher, Run):
        return teacher.path, model, mean, std
    name = teacher if isinstance(teacher, str) else ""
    if name and not Path(name).exists() and (is_architecture(name) or "=" in name):
        fallback = normalization_flags(mean, std)
        teacher = open_network(name, model, fallback=fallback, seed=seed, normalized=True).model
        model = mean = std = None
    if isinstance(teacher, nn.Module):
        model = facts(teacher).code or model
    return teacher, model, mean, std


def _teacher_row(objective: Distillation, data: Dataset, settings: TrainSettings) -> Row:
    dataset = objective.data(data, settings.seed)
    device = choose_device(settings.device)
    assert objective.network is not None
    score = evaluate(objective.network.to(device), dataset, device=device)
    return Row("teacher", None, Share(score.correct, score.n), None, None, None)


def _row(name: str, images: int, length: int, run: Run, result: dict[str, Any]) -> Row:
    held = result["data"]["images"]["val"]
    return Row(
        name,
        held + min(images - held, length),  # of more than an epoch holds, only so many are learned from
        Share(result["test"]["correct"], result["test"]["n"]),
        result["steps"],
        result["seconds"],
        str(run.path),
        held,
        result["best"]["val_accuracy"],
    )
