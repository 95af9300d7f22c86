"""Data-free students on CIFAR-10: what narrows the gap to real images, and what each image and each second gains.

    python benchmarks/distillation/cifar.py WORK TEACHER MODEL DATA "MEAN MEAN MEAN" "STD STD STD" ROW ...
        [--per-class N] [--steps N] [--updates N] [--seeds N ...]

TEACHER is a foreign checkpoint of MODEL, DATA a data set as in `pellucid train`. The student is a ResNet-8 (one block
per stage). Rows: those of `recipes`, with PER_CLASS images per class; among them `online`, in three rounds against the
current student, and `recorded`, which is not data-free: full covariances of 500 real images; and `controls`: noise and
real images. Every student is trained for the same number of updates under the same augmentation. WORK keeps what is
finished: images, students, and a line per row and seed in cifar.jsonl.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import Row, mean_and_range, percent, record, run_rows
from pellucid.core.data.dataset import load_data
from pellucid.core.facts import declare
from pellucid.distillation.online import distill_online
from pellucid.distillation.student import distill
from pellucid.distillation.synthesize import synthesize
from pellucid.inversion.presets import Recipe, changed, recipe
from pellucid.inversion.start import Fourier

SHAPE, BATCH, ROUNDS, RECORDED = (3, 32, 32), 50, 3, 500
TITLES = {
    "teacher": "the teacher",
    "plain": "pixels, the layers' statistics",
    "none": "pixels, no statistics",
    "input": "pixels, and the input's own mean and variance",
    "fourier": "spectra, the same statistics",
    "generator": "drawn by a generator, the same statistics",
    "online": "the same in three rounds, against the current student",
    "recorded": f"the same, full covariances recorded from {RECORDED} real images",
    "noise": "noise",
    "real-1": "1 real image of each class",
    "real-10": "10 real images of each class",
    "random": "as many random real images",
}
INTERVAL = "mean, range of seeds; of one seed its 95 % interval"


def recipes(steps: int) -> dict[str, Recipe]:
    """The recipes compared. A generator takes its preset's steps: 200 for the first batch, 40 for each further one."""
    plain = changed(recipe("gaussian", SHAPE), steps=steps)
    assert plain.matching is not None
    own = replace(plain, matching=replace(plain.matching, input=1.0))
    drawn = recipe("generator", SHAPE)
    return {
        "plain": plain,
        "none": replace(plain, matching=None),
        "input": own,
        "fourier": replace(own, start=Fourier()),
        "generator": drawn,
        "online": drawn,
        "recorded": drawn,
    }


class Study:
    """The rows of one seed."""

    def __init__(self, given: argparse.Namespace, seed: int) -> None:
        self.given, self.seed, self.work = given, seed, Path(given.work)
        self.count = 10 * given.per_class
        self.recipes = recipes(given.steps)
        mean, std = ([float(word) for word in text.split()] for text in (given.mean, given.std))
        self.norm = {"mean": mean, "std": std}
        self.common: Row = {
            "held_out": 0.0,
            "data": given.data, "teacher_model": given.model, "mean": mean, "std": std, "seed": seed,
            "batch_size": BATCH, "quiet": True,
        }  # fmt: skip
        self.epochs = max(1, given.updates * BATCH // self.count)

    def run(self, name: str) -> Row:
        """Train the student of one row, or of each control: its results by name."""
        began = time.process_time()
        found = {"online": self.online, "controls": self.controls}.get(name, self.offline)(name)
        for each in found.values():
            each["cpu_seconds"] = None if name == "controls" else time.process_time() - began  # controls share theirs
        return {"found": found}

    def images(self, name: str) -> Path:
        network = pellucid.load(self.given.teacher, self.given.model)
        declare(network, normalization=self.norm)
        table = None
        if name == "recorded":
            real = load_data(self.given.data).train
            order = torch.randperm(len(real), generator=torch.Generator().manual_seed(self.seed))[:RECORDED]
            mean, std = (torch.tensor(self.norm[key]).view(-1, 1, 1) for key in ("mean", "std"))
            own = [key for key, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
            shown = (real.fetch(order).float() / 255 - mean) / std
            table = pellucid.statistics(network, shown, layers=own, covariance=True)
        folder = self.work / f"{name}-{self.count}-{self.given.steps}-{self.seed}"
        plan = self.recipes[name]
        synthesize(network, folder, self.given.per_class, preset=plan, statistics=table, seed=self.seed, quiet=True)
        return folder

    def offline(self, name: str) -> dict[str, Row]:
        folder = self.images(name)
        out = self.work / f"{folder.name}-students-{self.given.updates}"
        done = distill(
            self.given.teacher, "resnet8", folder, out=out, controls=False, epochs=self.epochs, **self.common
        )
        return {name: done["student"].to_json()}

    def controls(self, name: str) -> dict[str, Row]:
        """Noise, few real images and as many; the student of `plain` images that comes with them is not used."""
        folder = self.images("plain")
        out = self.work / f"{folder.name}-students-{self.given.updates}"
        done = distill(self.given.teacher, "resnet8", folder, out=out, epochs=self.epochs, **self.common)
        return {row.name.replace(" ", "-"): row.to_json() for row in done.rows if row.name != "student"}

    def online(self, name: str) -> dict[str, Row]:
        out = self.work / f"{name}-{self.count}-{self.seed}-{self.given.updates}"
        # Each round trains on the images of all rounds so far: an epoch has 1, 2, then 3 parts.
        epochs = max(1, 2 * self.epochs // (ROUNDS + 1))
        done = distill_online(
            self.given.teacher, "resnet8", ROUNDS, self.given.per_class // ROUNDS, out=out,
            preset=self.recipes[name], controls=False, epochs=epochs, **self.common,
        )  # fmt: skip
        return {name: done["student"].to_json()}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("work", "teacher", "model", "data", "mean", "std"):
        parser.add_argument(name)
    parser.add_argument("rows", nargs="+", choices=[*recipes(1), "controls"])
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100, help="of pixels and spectra")
    parser.add_argument("--updates", type=int, default=1600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    studies = {seed: Study(given, seed) for seed in given.seeds}
    size = {"images": 10 * given.per_class, "steps": given.steps, "updates": given.updates}
    accuracy: dict[str, list[float]] = {}
    for name in given.rows:
        keys = [{"row": name, **size, "seed": seed} for seed in given.seeds]
        rows = run_rows(Path(given.work) / "cifar.jsonl", keys, lambda row, seed, **_: studies[seed].run(row))
        for student in rows[0]["found"]:
            found = [row["found"][student] for row in rows]
            keep(student, found, given)
            accuracy[student] = [each["accuracy"] for each in found]
    if {"plain", "generator"} <= set(accuracy):
        gains = [ours / plain for ours, plain in zip(accuracy["generator"], accuracy["plain"], strict=True)]
        record(
            f"distillation/cifar-gain-{10 * given.per_class}",
            "drawn by a generator / pixels",
            "at least 2",
            (sum(accuracy["generator"]) / sum(accuracy["plain"]), min(gains), max(gains)),
            n=len(gains),
            unit="x",
            images=10 * given.per_class,
            updates=given.updates,
            cpu_seconds="",
            seeds=" ".join(map(str, given.seeds)),
            interval_is=INTERVAL,
        )


def keep(name: str, found: list[Row], given: argparse.Namespace) -> None:
    """Record one student: mean and range over the seeds, or for one seed Wilson's interval over the test images."""
    measured, tested = mean_and_range([100 * row["accuracy"] for row in found]), found[0]["tested"]
    if len(found) == 1:
        measured = (measured[0], *percent(round(found[0]["accuracy"] * tested), tested)[1:])
    record(
        f"distillation/cifar-{name}-{10 * given.per_class}",
        TITLES[name],
        "",
        measured,
        n=tested,
        unit="%",
        images=found[0]["images"] if found[0]["images"] is not None else "",
        updates=found[0]["steps"] if found[0]["steps"] is not None else "",
        cpu_seconds=round(sum(row["cpu_seconds"] or 0 for row in found) / len(found)) or "",
        seeds=" ".join(map(str, given.seeds)),
        interval_is=INTERVAL,
    )


if __name__ == "__main__":
    main()
