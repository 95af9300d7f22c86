"""The command distill. Nothing heavy is imported until it runs."""

from __future__ import annotations

import json as json_
import shlex
from typing import TYPE_CHECKING, Any, Literal

from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings
from pellucid.core.ranges import Count, Limit, NotNegative, Part, Positive, Seed
from pellucid.inversion.flags import Preset

if TYPE_CHECKING:
    from pellucid.distillation.student import Distilled


def distill(
    teacher: str,
    student: str,
    folder: str | None = None,
    /,
    *,
    source: SourceSettings,
    out: str = "students",
    online: Limit = 0,
    per_class: Count = 10,
    preset: Preset = "gaussian",
    steps: Count | None = None,
    temperature: Positive = 4.0,
    alpha: Part = 0.9,
    held_out: Part = 0.2,
    real: list[Count] | None = None,
    controls: bool = True,
    epochs: Count = 40,
    batch_size: Count = 128,
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw",
    lr: Positive = 3e-3,
    weight_decay: NotNegative = 5e-4,
    mixup: NotNegative = 0.0,
    crop: Limit | None = None,
    flip: bool | None = None,
    cutout: Limit = 0,
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32",
    device: str = "auto",
    seed: Seed = 0,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Train a student without the teacher's data, in one table with its controls.

    Every row is a run of its own with the same number of steps: the student, and controls on noise images, on a few
    real images per class and on as many random real ones; resumable. Writes distill.json.

    Args:
        teacher: run folder or checkpoint, a foreign one as MODEL=FILE or with --model; or an architecture, which gets
            random weights.
        student: architecture, as --model in train.
        folder: class folders of images, from synthesize or any other tool; not with --online.
        data: real data to test students on, and from which controls take their images.
        image_size: side in pixels that real images are resized to; default the images' own.
        out: folder of the runs.
        online: number of rounds in which images are made that teacher and current student disagree on, and the student
            learns from all images so far; 0 means to learn from FOLDER.
        per_class: number of images per class made in each round of --online.
        preset: recipe of the search for images in --online; generator for photographs.
        steps: number of steps of the search for images in --online; default the recipe's.
        temperature: temperature of both networks' predictions.
        alpha: weight of the teacher's predictions in the loss; the labels have the rest.
        held_out: fraction of its images that each row holds out, in the classes' proportions, to choose the epoch and
            for the validation score; 0 means to learn from all and keep the last epoch.
        real: numbers of real images per class, one control each; default 1 and 10.
        controls: train the controls too.
        epochs: passes over the images.
        batch_size: images in a step.
        optimizer: optimisation algorithm.
        lr: peak learning rate, one-cycle.
        weight_decay: weight decay.
        mixup: alpha of mixup's Beta distribution; the teacher predicts for the mixed images.
        crop: padding in pixels before a random crop; default an eighth of the image side.
        flip: mirror images at random; default whether the data's labels allow it.
        cutout: side in pixels of a square that is erased from each image.
        precision: 32, bf16-mixed or 16-mixed (GPU only).
        device: auto, cpu, cuda, ...
        seed: seed of weights, order, augmentation and the choice of real images.
        overwrite: replace files at --out that this command did not write.
        json: print the table as JSON.
        quiet: print nothing but errors.
    """
    from pellucid.core import terminal
    from pellucid.core.facts import facts
    from pellucid.core.files.ours import check_outputs, holds, outputs
    from pellucid.core.source import normalization_flags, open_network
    from pellucid.distillation.online import distill_online
    from pellucid.distillation.student import distill as run

    if (folder is None) != (online > 0):
        raise InputError("Name either a folder of images or the number of rounds with --online.")
    files = outputs(out, {"distill.json": holds("name", "accuracy", "run")})
    check_outputs(files, overwrite, command="distill", sources=[teacher, source.data])
    normalization_flags(source.mean, source.std)
    common: dict[str, Any] = {
        "data": source.data, "out": out, "teacher_model": source.model, "mean": source.mean, "std": source.std,
        "image_size": source.image_size, "temperature": temperature, "alpha": alpha, "held_out": held_out,
        "real": tuple(real or (1, 10)),
        "controls": controls, "seed": seed, "quiet": quiet or json, "epochs": epochs, "batch_size": batch_size,
        "optimizer": optimizer, "lr": lr, "weight_decay": weight_decay, "mixup": mixup, "crop": crop, "flip": flip,
        "cutout": cutout, "precision": precision, "device": device,
    }  # fmt: skip
    network: Any = teacher
    if source.reading() != {**SourceSettings().reading(), "model": source.model}:
        norm = normalization_flags(source.mean, source.std)
        network = open_network(teacher, **source.reading(), fallback=norm, seed=seed, normalized=True).model
        common |= {"teacher_model": None, "mean": None, "std": None}
    if folder is None:
        done = distill_online(network, student, online, per_class, preset=preset, steps=steps, **common)
    else:
        done = run(network, student, folder, **common)
    if json:
        about = {"teacher": teacher, "student": student, "data": source.data, "run": str(done.run.path)}
        terminal.say(json_.dumps({**about, "rows": [row.to_json() for row in done.rows]}))
    elif not quiet:
        _show(done, f"{student} from {teacher}", source.data)
        code = facts(done.student).code
        words = ["pellucid", "open", str(done.run.path), *(["--model", code] if code else [])]
        terminal.say(f"Next: {shlex.join(words)}")
    return 0


def _show(done: Distilled, title: str, data: str | None) -> None:
    """The table."""
    from pellucid.core import terminal

    rows = [
        [
            row.name,
            "-" if row.images is None else row.images,
            terminal.percent(row.validation),
            terminal.percent(row.accuracy, row.interval),
            "-" if row.steps is None else row.steps,
            "-" if row.seconds is None else f"{row.seconds:.0f}",
        ]
        for row in done.rows
    ]
    n = done.rows[0].tested
    tested = f"{n} test images of {data}" if data else f"{n} synthesised images kept for this: name real --data"
    headers = ["learned from", "images", "validation, own images", "test accuracy (95 % interval)", "steps", "seconds"]
    terminal.show(f"{title}, tested on {tested}", headers, rows)
