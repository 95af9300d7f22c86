"""Data-free students on CIFAR-10: what closes the gap to real images, and what each image and second buys.

    python benchmarks/distill_cifar.py WORK TEACHER MODEL DATA "MEAN MEAN MEAN" "STD STD STD" ROW ... [--per-class N]
        [--steps N] [--updates N] [--seeds N ...]

TEACHER is a foreign checkpoint of MODEL, DATA a data set as in `pellucid train`. The student is a ResNet-8 (one block a
stage). Rows: those of `recipes`, made of PER_CLASS images of each class; `online`, in three rounds against the current
student; `recorded`, which is not data-free: full covariances of 500 real images; and `controls`: noise and real images.
Every student makes the same number of updates under the same augmentation. WORK keeps what is finished.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import pellucid
from pellucid.core.data.dataset import load_data
from pellucid.core.facts import declare
from pellucid.core.files.atomic import write_atomic
from pellucid.core.measure.share import wilson
from pellucid.distillation.online import distill_online
from pellucid.distillation.student import distill
from pellucid.distillation.synthesize import synthesize
from pellucid.inversion.presets import Recipe, changed, recipe
from pellucid.inversion.start import Fourier
from results import record

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
Found = dict[str, Any]


def recipes(steps: int) -> dict[str, Recipe]:
    """What is compared. A generator has its preset's steps: 200 for the first batch, 40 for each further one."""
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
    """The rows of one seed, each finished one kept in a file."""

    def __init__(self, given: argparse.Namespace, seed: int) -> None:
        self.given, self.seed, self.work = given, seed, Path(given.work)
        self.count = 10 * given.per_class
        self.recipes = recipes(given.steps)
        mean, std = ([float(word) for word in text.split()] for text in (given.mean, given.std))
        self.norm = {"mean": mean, "std": std}
        self.common: Found = {
            "data": given.data, "teacher_model": given.model, "mean": mean, "std": std, "seed": seed,
            "batch_size": BATCH, "quiet": True,
        }  # fmt: skip
        self.epochs = max(1, given.updates * BATCH // self.count)

    def rows(self, name: str) -> dict[str, Found]:
        """Results of one row, or of all controls, by name; made where they are not there yet."""
        label = f"{name}-{self.count}-{self.given.steps}-{self.given.updates}-{self.seed}"
        file = self.work / f"{label}.json"
        if not file.is_file():
            began = time.process_time()
            found = {"online": self.online, "controls": self.controls}.get(name, self.offline)(name)
            for row in found.values():
                row["cpu_seconds"] = None if name == "controls" else time.process_time() - began  # of all together
            write_atomic(file, json.dumps(found, indent=1) + "\n")
        return json.loads(file.read_text())

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

    def offline(self, name: str) -> dict[str, Found]:
        folder = self.images(name)
        out = self.work / f"{folder.name}-students-{self.given.updates}"
        done = distill(
            self.given.teacher, "resnet8", folder, out=out, controls=False, epochs=self.epochs, **self.common
        )
        return {name: done["student"].to_json()}

    def controls(self, name: str) -> dict[str, Found]:
        """Noise, few and as many real images; their student of `plain` images is not read."""
        folder = self.images("plain")
        out = self.work / f"{folder.name}-students-{self.given.updates}"
        done = distill(self.given.teacher, "resnet8", folder, out=out, epochs=self.epochs, **self.common)
        return {row.name.replace(" ", "-"): row.to_json() for row in done.rows if row.name != "student"}

    def online(self, name: str) -> dict[str, Found]:
        out = self.work / f"{name}-{self.count}-{self.seed}-{self.given.updates}"
        # A round learns from the images of all rounds so far: 1, 2, 3 parts of them in an epoch.
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
    studies = [Study(given, seed) for seed in given.seeds]
    accuracy: dict[str, list[float]] = {}
    for name in given.rows:
        found = [study.rows(name) for study in studies]
        for row in found[0]:
            keep(row, [each[row] for each in found], given)
            accuracy[row] = [each[row]["accuracy"] for each in found]
    if {"plain", "generator"} <= set(accuracy):
        gains = [ours / plain for ours, plain in zip(accuracy["generator"], accuracy["plain"], strict=True)]
        record(
            f"distill-cifar-gain-{10 * given.per_class}",
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


def keep(name: str, found: list[Found], given: argparse.Namespace) -> None:
    """Record one row: mean and range over seeds, or of one seed Wilson's interval over the test images."""
    shares = [100 * row["accuracy"] for row in found]
    low, high = min(shares), max(shares)
    if len(shares) == 1:
        tested = found[0]["tested"]
        low, high = (100 * bound for bound in wilson(round(found[0]["accuracy"] * tested), tested))
    record(
        f"distill-cifar-{name}-{10 * given.per_class}",
        TITLES[name],
        "",
        (sum(shares) / len(shares), low, high),
        n=found[0]["tested"],
        unit="%",
        images=found[0]["images"] if found[0]["images"] is not None else "",
        updates=found[0]["steps"] if found[0]["steps"] is not None else "",
        cpu_seconds=round(sum(row["cpu_seconds"] or 0 for row in found) / len(found)) or "",
        seeds=" ".join(map(str, given.seeds)),
        interval_is=INTERVAL,
    )


if __name__ == "__main__":
    main()
