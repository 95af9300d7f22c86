"""VGG-11 on the digits with whitened layers: does `model.fit` reach the accuracy of the torch loop?

    python benchmarks/keras_digits.py torch-loop 0 1 2            VARIANT [SEED ...]
    python benchmarks/keras_digits.py jax-mixed 0 1 2

Variants: torch-loop, and BACKEND-float32, BACKEND-mixed (mixed_bfloat16) of torch, jax and tensorflow. The settings of
`pellucid train --model vgg11 --layers deconv --data digits --epochs 5`; the test accuracy of the epoch that is best on
held-out images, with Wilson's interval over the test images of all seeds. Every seed sees the same images in the same
order in all variants; initial weights differ. Writes results/keras-digits-VARIANT.json.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from pellucid import TrainSettings
from pellucid.core.measure.share import wilson
from results import record

EPOCHS = 5
TITLES = {"torch-loop": "pellucid's own loop on torch"}


def run(variant: str, seed: int) -> dict[str, Any]:
    """The test set's numbers of one run."""
    framework, _, precision = variant.partition("-")
    common = {"model": "vgg11", "layers": "deconv", "epochs": EPOCHS, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        if variant == "torch-loop":
            from pellucid.core.train.loop import train

            settings = TrainSettings(**common)
        else:
            from pellucid.core.train.frameworks import train

            kind = "bf16-mixed" if precision == "mixed" else "32"
            settings = TrainSettings(**common, framework="keras", backend=framework, precision=kind)
        return train(settings, folder, quiet=True).result["test"]


def main() -> None:
    import torch

    torch.set_num_threads(1)
    variant, seeds = sys.argv[1], [int(word) for word in sys.argv[2:]]
    tests = [run(variant, seed) for seed in seeds]
    right, n = sum(test["correct"] for test in tests), sum(test["n"] for test in tests)
    low, high = wilson(right, n)
    record(
        f"keras-digits-{variant}",
        TITLES.get(variant) or "model.fit on {}, {}".format(*variant.split("-")),
        "",
        (100 * right / n, 100 * low, 100 * high),
        n=n,
        unit="%",
        seed=", ".join(map(str, seeds)),
    )


if __name__ == "__main__":
    main()
