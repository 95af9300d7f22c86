"""How another network classifies inverted images: transfer between two CIFAR-10 networks.

    python benchmarks/inversion/quality.py resnet20=FILE resnet56=FILE [--seeds 3]

FILE: checkpoints of these two architectures, trained with the mean and standard deviation of ImageNet's pixels. 64
images, balanced over the classes, 300 steps; images are rounded to 8 bits before either network classifies them. The
default recipe on both networks, then the papers' weights of un-squared norms on the first (one seed).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import percent, record
from pellucid.core.facts import declare
from pellucid.inversion.export import quantized
from pellucid.inversion.predictions import predicted_classes

IMAGES, STEPS = 64, 300
NORMAL = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def read(named: str) -> tuple[str, nn.Module]:
    name, _, path = named.partition("=")
    model = pellucid.load(path, model=name)
    declare(model, normalization=NORMAL)
    return name, model


def classified(model: nn.Module, other: nn.Module, preset: str, seed: int) -> tuple[int, int, float]:
    """How many images the network itself and the other classify as their targets, and seconds of processor time."""
    began = time.process_time()
    found = pellucid.invert(model, ("balanced", IMAGES), preset, steps=STEPS, seed=seed, quiet=True)
    seconds = time.process_time() - began
    right = [int((predicted_classes(net, quantized(found.images)) == found.labels).sum()) for net in (model, other)]
    return right[0], right[1], seconds


def measure(
    a: str, model: nn.Module, b: str, other: nn.Module, preset: str, seeds: int, claims: tuple[str, str]
) -> None:
    runs = [classified(model, other, preset, seed) for seed in range(seeds)]
    n, seconds = IMAGES * seeds, statistics.median(run[2] for run in runs)
    for place, (who, claimed) in enumerate(zip((a, b), claims, strict=True)):
        right = sum(run[place] for run in runs)
        record(
            f"inversion/{preset}-{a}-{b}-{'own' if place == 0 else 'transfer'}",
            f"images out of {a}, {preset}, {STEPS} steps: {who} meets the target",
            claimed,
            percent(right, n),
            n=n,
            unit="%",
            images=IMAGES,
            seeds=seeds,
            seconds=round(seconds, 1),
            each=[run[place] for run in runs],
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs=2)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    (a, small), (b, large) = map(read, given.models)
    measure(a, small, b, large, "gaussian", given.seeds, ("at least 99", "at least 95"))
    measure(a, small, b, large, "deepinversion", 1, ("-", "-"))
    measure(b, large, a, small, "gaussian", max(1, given.seeds - 1), ("-", "at least 90"))


if __name__ == "__main__":
    main()
