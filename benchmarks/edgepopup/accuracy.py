"""How accurate subnetworks of never-trained weights are on digits, compared with trained weights and a random mask.

    python benchmarks/edgepopup/accuracy.py 0 1 2        [SEED ...]

A narrow VGG (32, 64, 128, 128 channels with batch norm, three poolings, one linear layer), 25 epochs, batch 64, SGD
with momentum 0.9, learning rate 0.1 falling as a cosine, weight decay 1e-4 on every parameter, crop 1; one thread. 30 %
of the weights are kept. The control, a random mask, trains nothing: only its batch norm sees the images. Seconds are
the process's own processor time in training steps. All variants have the same settings; the batch size was chosen with
seed 10. The test accuracy of the last epoch is reported. Bytes are the size of the file, which holds the weights, or a
seed and one bit per weight.

Appends one line per run to results/edgepopup/digits.jsonl, skips the runs that are there, and writes the table's
numbers, over all seeds in that file, to results/edgepopup/digits-*.json. Without seeds, only the table's numbers are
written.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import Row, log_and_record
from benchmarks.training import fit
from pellucid.core.data.batches import steps_per_epoch
from pellucid.core.data.dataset import Dataset
from pellucid.core.measure.evaluate import evaluate

EPOCHS, BATCH, KEEP = 25, 64, 0.3
VARIANTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "signed-constant": ("signed constant (default)", {}),
    "kaiming-normal": ("Kaiming normal", {"init": "kaiming_normal"}),
    "kaiming-normal-scaled": ("Kaiming normal, scaled by keep", {"init": "kaiming_normal", "scale_fan": True}),
    "kaiming-uniform": ("Kaiming uniform", {"init": "kaiming_uniform"}),
    "xavier-normal": ("Xavier normal", {"init": "xavier_normal"}),
    "unsigned-constant": ("unsigned constant", {"init": "unsigned_constant"}),
    "binary": ("Kaiming normal, binarised", {"init": "kaiming_normal", "binary": True}),
    "global": ("ranked globally", {"ranking": "global"}),
    "anneal": ("annealed from 1 over half the steps", {"anneal": 0.5}),
    "redraw": ("Kaiming normal, redrawn (IteRand)", {"init": "kaiming_normal", "redraw": 20}),
    "redraw-constant": ("signed constant, redrawn (IteRand)", {"redraw": 20}),
    "affine": ("batch norm with trained scale and shift", {"affine": True}),
    "random": ("control: random mask, never trained", {}),
    "dense": ("control: trained weights, all of them", None),
}


def network(classes: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (32, 0, 64, 0, 128, 0, 128):
        if not width:
            layers.append(nn.MaxPool2d(2))
        else:
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        channels = width or channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def train(variant: str, data: Dataset, seed: int) -> Row:
    torch.manual_seed(seed)
    model, options = network(len(data.classes), data.channels), VARIANTS[variant][1]
    if options is not None:
        if "anneal" in options:
            steps = EPOCHS * steps_per_epoch(len(data.train), BATCH, drop_last=True)
            options = {"anneal": round(options["anneal"] * steps)}
        pellucid.subnet(model, KEEP, **options)
    seconds = fit(
        model, data, epochs=EPOCHS, batch_size=BATCH, weight_decay=1e-4, seed=seed, learn=variant != "random"
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model"
        (pellucid.save if options is None else pellucid.pack)(model, file)
        size = file.stat().st_size
    return {"accuracy": evaluate(model, data, "test").top1, "seconds": round(seconds, 2), "bytes": size}


def main() -> None:
    torch.set_num_threads(1)
    data = pellucid.load_data("digits")
    log_and_record(
        "edgepopup/digits",
        {variant: title for variant, (title, _) in VARIANTS.items()},
        [int(word) for word in sys.argv[1:]],
        lambda variant, seed: train(variant, data, seed),
        facts=lambda rows: {"bytes": max(row["bytes"] for row in rows)},
        claimed={"signed-constant": "97.3"},
        data=f"{len(data.train)} training and {len(data.test)} test images",
    )


if __name__ == "__main__":
    main()
