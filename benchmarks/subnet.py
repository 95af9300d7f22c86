"""How well subnetworks of never-trained weights do on the digits, beside trained weights and a mask never trained.

    python benchmarks/subnet.py 0 1 2        [SEED ...]

A narrow VGG (32, 64, 128, 128 channels with batch norm, pooled thrice, one linear layer), 25 epochs, batch 64, SGD with
momentum 0.9, learning rate 0.1 falling as a cosine, weight decay 1e-4 on everything, crop 1; one thread. 30 % of the
weights stay. The control, a random mask, trains nothing: its batch norm sees the images, no more. Seconds are the
process's own processor time in training steps. The settings are the same for all; the batch size was chosen with seed
10. The last epoch's test accuracy is reported. Bytes are those of the file: weights, or a seed and one bit a weight.

Adds one line a run to results/subnet-digits.jsonl, and writes the table's numbers, over all seeds that stand there, to
results/subnet-digits-*.json. Without seeds, only the table is made.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid.core.data.augment import Augment
from pellucid.core.data.batches import batches, steps_per_epoch
from pellucid.core.data.dataset import Dataset
from pellucid.core.measure.evaluate import evaluate
from pellucid.core.train.optimize import learning_rate
from results import ROOT, record

EPOCHS, BATCH, KEEP = 25, 64, 0.3
LOG = ROOT / "results" / "subnet-digits.jsonl"
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


def train(variant: str, data: Dataset, seed: int) -> dict[str, object]:
    torch.manual_seed(seed)
    total, step, seconds = EPOCHS * steps_per_epoch(len(data.train), BATCH, drop_last=True), 0, 0.0
    model, options = network(len(data.classes), data.channels), VARIANTS[variant][1]
    if options is not None:
        if "anneal" in options:
            options = {"anneal": round(options["anneal"] * total)}
        pellucid.subnet(model, KEEP, **options)
    settings = pellucid.TrainSettings(lr=0.1, warmup=0.0, epochs=EPOCHS, batch_size=BATCH)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=1e-4)
    norm = {"mean": data.mean, "std": data.std}
    for epoch in range(EPOCHS):
        model.train()
        began = time.process_time()
        for batch in batches(
            data.train, BATCH, **norm, shuffle=True, augment=Augment(crop=1), seed=seed, epoch=epoch, drop_last=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, total)
            loss = F.cross_entropy(model(batch.images), batch.labels)
            if variant != "random":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            step += 1
        seconds += time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model"
        (pellucid.save if options is None else pellucid.pack)(model, file)
        size = file.stat().st_size
    accuracy = evaluate(model, data, "test").top1
    return {"variant": variant, "seed": seed, "accuracy": accuracy, "seconds": round(seconds, 2), "bytes": size}


def main() -> None:
    torch.set_num_threads(1)
    data = pellucid.load_data("digits")
    for seed in map(int, sys.argv[1:]):
        for variant in VARIANTS:
            run = train(variant, data, seed)
            with open(LOG, "a") as file:
                file.write(json.dumps(run) + "\n")
            print(json.dumps(run), flush=True)
    runs = [json.loads(line) for line in LOG.read_text().splitlines()]
    for variant, (title, _) in VARIANTS.items():
        mine = [run for run in runs if run["variant"] == variant]
        accuracies = sorted(100 * run["accuracy"] for run in mine)
        record(
            f"subnet-digits-{variant}",
            title,
            "97.3" if variant == "signed-constant" else "",
            (statistics.mean(accuracies), accuracies[0], accuracies[-1]),
            n=len(mine),
            unit="%",
            interval_is="least and greatest of the seeds",
            seconds=round(statistics.mean(run["seconds"] for run in mine), 1),
            bytes=max(run["bytes"] for run in mine),
            seed=", ".join(str(run["seed"]) for run in mine),
            data=f"{len(data.train)} training and {len(data.test)} test images",
        )


if __name__ == "__main__":
    main()
