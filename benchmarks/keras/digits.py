"""VGG-11 with whitening layers on digits: does `model.fit` reach the accuracy of the torch loop?

    python benchmarks/keras/digits.py torch-loop 0 1 2            VARIANT [SEED ...]
    python benchmarks/keras/digits.py jax-mixed 0 1 2

Variants: torch-loop, and BACKEND-float32, BACKEND-mixed (mixed_bfloat16) of torch, jax and tensorflow. The settings are
those of `pellucid train --model vgg11 --layers deconv --data digits --epochs 5`; reported is the test accuracy of the
epoch that is best on held-out images, with Wilson's interval over the test images of all seeds. With the same seed, all
variants see the same images in the same order; initial weights differ. Appends one line per run to
results/keras/digits.jsonl, skips the runs that are there, and writes results/keras/digits-VARIANT.json.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.record import RESULTS, Row, percent, record, run_rows
from pellucid import TrainSettings

EPOCHS = 5
TITLES = {"torch-loop": "pellucid's own loop on torch"}


def run(variant: str, seed: int) -> Row:
    """Train once; how many test images are classified correctly."""
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
        test = train(settings, folder, quiet=True).result["test"]
    return {"correct": test["correct"], "n": test["n"]}


def main() -> None:
    import torch

    torch.set_num_threads(1)
    variant, seeds = sys.argv[1], [int(word) for word in sys.argv[2:]]
    tests = run_rows(RESULTS / "keras" / "digits.jsonl", [{"variant": variant, "seed": seed} for seed in seeds], run)
    right, n = sum(test["correct"] for test in tests), sum(test["n"] for test in tests)
    record(
        f"keras/digits-{variant}",
        TITLES.get(variant) or "model.fit on {}, {}".format(*variant.split("-")),
        "",
        percent(right, n),
        n=n,
        unit="%",
        seed=", ".join(map(str, seeds)),
    )


if __name__ == "__main__":
    main()
