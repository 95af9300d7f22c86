"""What `decompose` costs compared with a plain evaluation of the same images.

    python benchmarks/classfilters/cost.py

ResNet-20 on 50,000 images of 32x32 pixels, in five turns of 10,000 so that all runs see the same machine: evaluation,
`decompose` by the default rule, and by the rule that needs a covariance, in batches of 256. What is needed once
(finding the last layer, choosing sets) is therefore paid five times. Pixels and weights are random: the time does
not depend on them. Time is the processor time of one thread.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import ratio, record
from benchmarks.timing import interleaved

IMAGES, BATCH, TURNS = 10_000, 256, 5


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.npz"
        pixels = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(IMAGES) % 10
        few = {"val_images": pixels[:10], "val_labels": labels[:10]}
        few |= {"test_images": pixels[:10], "test_labels": labels[:10]}
        np.savez(file, train_images=pixels, train_labels=labels, **few)
        data = pellucid.load_data(f"npz:{file}")
        torch.manual_seed(0)
        model = pellucid.build("resnet20").eval()
        work: dict[str, Callable[[], object]] = {
            "evaluate": lambda: pellucid.evaluate(model, data, "train", batch_size=BATCH),
            "evidence": lambda: pellucid.decompose(model, data, batch_size=BATCH),
            "omp": lambda: pellucid.decompose(model, data, rule="omp", batch_size=BATCH),
        }
        seconds = interleaved(work, TURNS, warm_up=0)
    facts = {
        "unit": "x",
        "n": TURNS,
        "seed": 0,
        "images": IMAGES,
        "evaluation_seconds": round(min(seconds["evaluate"]), 1),
    }
    for rule, name in (("evidence", "classfilters/cost"), ("omp", "classfilters/cost-omp")):
        claim = f"`decompose` by `{rule}` beside an evaluation"
        record(name, claim, "at most 1.3 x", ratio(seconds[rule], seconds["evaluate"]), **facts)


if __name__ == "__main__":
    main()
