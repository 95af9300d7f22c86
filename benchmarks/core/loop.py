"""What the training loop costs compared with bare forward, backward and step: ResNet-20, batch 128, 32x32.

    python benchmarks/core/loop.py

In turns, in one process: an epoch of STEPS steps by `pellucid.train` (the seconds it reports itself, which include
fetching, augmentation, checks and progress, but not evaluation) and STEPS bare steps on one batch that is already
normalised. The two change places from turn to turn.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import ratio, record

STEPS, TURNS, BATCH = 12, 30, 128


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        arrays = {
            f"{split}_{what}": value
            for split, n in (("train", STEPS * BATCH), ("val", 64), ("test", 64))
            for what, value in (
                ("images", rng.integers(0, 256, (n, 32, 32, 3), np.uint8)),
                ("labels", np.arange(n) % 10),
            )
        }
        np.savez(Path(folder) / "noise.npz", **arrays)
        data = f"npz:{folder}/noise.npz"

        model = pellucid.build("resnet20", 10, 3, 32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        images, labels = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % 10

        def bare() -> float:
            began = time.perf_counter()
            for _ in range(STEPS):
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            return time.perf_counter() - began

        def ours(turn: int) -> float:
            settings = pellucid.TrainSettings(data=data, model="resnet20", epochs=1, batch_size=BATCH, seed=turn)
            return pellucid.train(settings, Path(folder) / f"run{turn}", quiet=True).result["seconds"]

        bare(), ours(0)  # warm-up
        pairs = []
        for turn in range(1, TURNS + 1):
            if turn % 2:
                pairs.append((ours(turn), bare()))
            else:
                pairs.append((bare(), ours(turn))[::-1])
    record(
        "core/loop-overhead",
        "Training loop with crop and flip / bare forward + backward + step, ResNet-20, batch 128",
        "at most 1.05",
        ratio(*zip(*pairs, strict=True)),
        n=TURNS,
        unit="x",
        seed=f"1 to {TURNS}, one per turn",
    )


if __name__ == "__main__":
    main()
