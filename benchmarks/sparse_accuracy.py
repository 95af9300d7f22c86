"""How accurate a network of sparse coding layers gets with each schedule of steps, beside its plain twin.

    python benchmarks/sparse_accuracy.py digits digits 0 1 2
    python benchmarks/sparse_accuracy.py npz:PATH cifar 0 1 2        DATA NAME [SEED ...]

A narrow VGG (16, 32, 64, 64 channels, pooled thrice, one linear layer) whose convolutions are all sparse codes of two
steps with batch norm; about 200 steps of batch 128, SGD with momentum 0.9, learning rate 0.1 falling as a cosine,
weight decay 5e-4, crop and flip; one thread. The last epoch's test accuracy is reported, so nothing is chosen on it.
Every seed gives all variants the same order of data.

Adds one line a run to results/sparse-NAME.jsonl, and writes the table's numbers, over all seeds that stand there, to
results/sparse-NAME-*.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid.core.data.augment import Augment
from pellucid.core.data.batches import batches, steps_per_epoch
from pellucid.core.data.dataset import Dataset
from pellucid.core.measure.evaluate import evaluate
from pellucid.core.train.optimize import learning_rate
from pellucid.sparse.fista import SCHEDULES
from pellucid.sparse.layers import CSC
from results import ROOT, record

STEPS, BATCH = 200, 128
VARIANTS = {
    "plain": "convolution + batch norm + ReLU",
    "as-published": "published arithmetic",
    **{schedule: f"{schedule} steps" for schedule in SCHEDULES},
}


def network(variant: str, classes: int, channels: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (16, 0, 32, 0, 64, 0, 64):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    if variant == "plain":
        return model
    options = {"published": True} if variant == "as-published" else {"schedule": variant}
    return pellucid.convert(model, "csc-all", **options)


def train(variant: str, data: Dataset, seed: int) -> dict[str, object]:
    torch.manual_seed(seed)
    model = network(variant, len(data.classes), data.channels)
    each = steps_per_epoch(len(data.train), BATCH, drop_last=True)
    epochs = round(STEPS / each)  # fewer, and batch norm's running variance, from 1, is not down to that of codes
    settings = pellucid.TrainSettings(lr=0.1, warmup=0.0, epochs=epochs, batch_size=BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    step, began = 0, time.process_time()
    norm = {"mean": data.mean, "std": data.std}
    augment = Augment(crop=data.image_size[0] // 8, flip=data.flip)
    for epoch in range(epochs):
        for batch in batches(
            data.train, BATCH, **norm, shuffle=True, augment=augment, seed=seed, epoch=epoch, drop_last=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, epochs * each)
            loss = F.cross_entropy(model(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    seconds = time.process_time() - began
    with torch.no_grad():
        images = next(batches(data.test, 200, **norm)).images
        densities = []

        def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...], code: torch.Tensor) -> None:
            densities.append(float((code != 0).float().mean()))

        handles = [layer.register_forward_hook(look) for layer in model.modules() if isinstance(layer, CSC)]
        model.eval()(images)
        for handle in handles:
            handle.remove()
    return {
        "variant": variant,
        "seed": seed,
        "accuracy": evaluate(model, data, "test").top1,
        "seconds": round(seconds, 2),
        "density": [round(value, 3) for value in densities],
    }


def main() -> None:
    torch.set_num_threads(1)
    source, name, seeds = sys.argv[1], sys.argv[2], [int(word) for word in sys.argv[3:]]
    data = pellucid.load_data(source)
    log = ROOT / "results" / f"sparse-{name}.jsonl"
    for seed in seeds:
        for variant in VARIANTS:
            run = train(variant, data, seed)
            with open(log, "a") as file:
                file.write(json.dumps(run) + "\n")
            print(json.dumps(run), flush=True)
    runs = [json.loads(line) for line in log.read_text().splitlines()]
    for variant, title in VARIANTS.items():
        mine = [run for run in runs if run["variant"] == variant]
        accuracies = sorted(100 * run["accuracy"] for run in mine)
        record(
            f"sparse-{name}-{variant}",
            title,
            "",
            (statistics.mean(accuracies), accuracies[0], accuracies[-1]),
            n=len(mine),
            unit="%",
            interval_is="least and greatest of the seeds",
            seconds=round(statistics.mean(run["seconds"] for run in mine), 1),
            seed=", ".join(str(run["seed"]) for run in mine),
            data=f"{len(data.train)} training and {len(data.test)} test images",
        )


if __name__ == "__main__":
    main()
