"""Data-free students on CIFAR-10: what closes the gap to real images, and what each image and second buys.

    python benchmarks/distill_cifar.py WORK TEACHER MODEL DATA "MEAN MEAN MEAN" "STD STD STD" ROW ... [--per-class N]
        [--steps N] [--updates N] [--seed N]

TEACHER is a foreign checkpoint of MODEL, DATA a data set as in `pellucid train`. The student is a ResNet-8 (one block a
stage). Rows: those of RECIPES, made of PER_CLASS images of each class; `online`, in three rounds against the current
student; and `controls`: noise and real images. Every student makes the same number of updates. WORK keeps what is
finished; each row is recorded as soon as it is there.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import pellucid
from pellucid.core.metrics import wilson
from pellucid.distill.online import distill_online
from pellucid.distill.student import Row, distill
from pellucid.distill.synthesize import synthesize
from pellucid.invert.presets import Recipe, recipe
from pellucid.invert.start import Fourier
from results import record

SHAPE, BATCH, ROUNDS = (3, 32, 32), 50, 3


def recipes() -> dict[str, tuple[str, Recipe]]:
    """What is compared: a title and a recipe each."""
    plain = recipe("gaussian", SHAPE)
    assert plain.matching is not None
    own = replace(plain.matching, input=1.0)
    return {
        "plain": ("the default recipe", plain),
        "input": ("and the input's own mean and variance", replace(plain, matching=own)),
        "fourier": ("and images as spectra", replace(plain, matching=own, start=Fourier())),
        "none": ("no statistics", replace(plain, matching=None)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("work", "teacher", "model", "data", "mean", "std"):
        parser.add_argument(name)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--updates", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    mean, std = ([float(word) for word in text.split()] for text in (given.mean, given.std))
    count = 10 * given.per_class
    work = Path(given.work)
    common: dict[str, Any] = {
        "data": given.data, "teacher_model": given.model, "mean": mean, "std": std, "seed": given.seed,
        "batch_size": BATCH, "mixup": 0.4, "quiet": True,
    }  # fmt: skip
    epochs = max(1, given.updates * BATCH // count)
    plans = recipes()
    for row in given.rows:
        began = time.process_time()
        name = f"{row}-{count}-{given.steps}-{given.seed}"
        if row == "online":
            common["epochs"] = max(1, epochs // ROUNDS)
            done = distill_online(
                given.teacher, "resnet8", ROUNDS, given.per_class // ROUNDS, out=work / name,
                preset=plans["input"][1], steps=given.steps, controls=False, **common,
            )  # fmt: skip
            keep(row, "three rounds against the current student", done["student"], given, time.process_time() - began)
            continue
        network = pellucid.load(given.teacher, given.model)
        vars(network).update(normalization={"mean": mean, "std": std})
        title, own = plans["plain" if row == "controls" else row]
        folder = work / (f"plain-{count}-{given.steps}-{given.seed}" if row == "controls" else name)
        synthesize(network, folder, given.per_class, preset=own, steps=given.steps, seed=given.seed, quiet=True)
        out = work / f"{folder.name}-students-{given.updates}"
        done = distill(given.teacher, "resnet8", folder, out=out, controls=row == "controls", epochs=epochs, **common)
        if row != "controls":
            keep(row, title, done["student"], given, time.process_time() - began)
            continue
        keep("teacher", "the teacher", done["teacher"], given, 0)
        for found in done.rows[2:]:
            title = {"noise": "noise", "random": "random real images"}.get(found.name, f"{found.name} of each class")
            keep(found.name.replace(" ", "-"), title, found, given, found.seconds or 0)


def keep(name: str, title: str, row: Row, given: argparse.Namespace, seconds: float) -> None:
    """Record one row with Wilson's interval over the test images."""
    right = round(row.accuracy * row.tested)
    low, high = wilson(right, row.tested)
    record(
        f"distill-cifar-{name}-{10 * given.per_class}",
        title,
        "",
        (100 * row.accuracy, 100 * low, 100 * high),
        n=row.tested,
        unit="%",
        images=row.images if row.images is not None else "",
        steps=given.steps,
        updates=row.steps if row.steps is not None else "",
        cpu_seconds=round(seconds),
        seed=given.seed,
    )


if __name__ == "__main__":
    main()
