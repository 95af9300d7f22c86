"""What another network makes of inverted images: transfer between two CIFAR-10 networks.

    python benchmarks/invert_quality.py resnet20=FILE resnet56=FILE [--seeds 3]

FILE: checkpoints of these two architectures, trained with the mean and deviation of ImageNet's pixels. 64 images,
balanced, 300 steps; images are rounded to 8 bits before anyone is asked. The default recipe on both networks, then the
papers' weights of un-squared norms on the first (one seed).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

import pellucid
from pellucid.core.facts import declare
from pellucid.core.measure.share import wilson
from pellucid.inversion.export import quantized
from pellucid.inversion.predictions import predicted_classes
from results import record

IMAGES, STEPS = 64, 300
NORMAL = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def read(named: str) -> tuple[str, nn.Module]:
    name, _, path = named.partition("=")
    model = pellucid.load(path, model=name)
    declare(model, normalization=NORMAL)
    return name, model


def shares(model: nn.Module, other: nn.Module, preset: str, seed: int) -> tuple[int, int, float]:
    """How many images the network itself and the other take for their targets, and seconds of processor time."""
    began = time.process_time()
    found = pellucid.invert(model, ("balanced", IMAGES), preset, steps=STEPS, seed=seed, quiet=True)
    seconds = time.process_time() - began
    right = [int((predicted_classes(net, quantized(found.images)) == found.labels).sum()) for net in (model, other)]
    return right[0], right[1], seconds


def measure(
    a: str, model: nn.Module, b: str, other: nn.Module, preset: str, seeds: int, claims: tuple[str, str]
) -> None:
    runs = [shares(model, other, preset, seed) for seed in range(seeds)]
    n, seconds = IMAGES * seeds, statistics.median(run[2] for run in runs)
    for place, (who, claimed) in enumerate(zip((a, b), claims, strict=True)):
        right = sum(run[place] for run in runs)
        low, high = wilson(right, n)
        record(
            f"invert-{preset}-{a}-{b}-{'own' if place == 0 else 'transfer'}",
            f"images out of {a}, {preset}, {STEPS} steps: {who} meets the target",
            claimed,
            (100 * right / n, 100 * low, 100 * high),
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
