"""What whitening buys, per epoch and per second, against batch norm and against the published arithmetic.

    python benchmarks/whiten_accuracy.py digits digits 0 1 2
    python benchmarks/whiten_accuracy.py npz:PATH cifar 0 1 2        DATA NAME [SEED ...]

A narrow VGG (32, 64, 128, 128 channels, pooled thrice, one linear layer), 10 epochs, batch 128, SGD with momentum 0.9,
learning rate 0.1 falling as a cosine, weight decay 1e-3 on everything, crop 4 and flip; one thread. Seconds are the
process's own processor time in training steps. PATH holds train_images, train_labels, test_images, test_labels; the
last epoch's test accuracy is reported, so nothing is chosen on it. Every seed gives all variants the same data order.

Adds one line a run to results/whiten-NAME.jsonl, and writes the table's numbers, over all seeds that stand there, to
results/whiten-NAME-*.json. Seeds may be run in processes of their own; without any, only the table is made.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable

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

EPOCHS, BATCH = 10, 128
Conv = pellucid.FastDeconv2d
Head = pellucid.FastDeconvLinear


def of_32(**options: object) -> Callable[..., nn.Module]:
    return functools.partial(Conv, block=32, **options)


VARIANTS: dict[str, tuple[str, Callable[..., nn.Module] | None, Callable[..., nn.Module]]] = {
    "bn": ("batch norm", None, nn.Linear),
    "bn-head": ("batch norm, whitening head", None, Head),
    "published": ("published arithmetic", Conv.as_published, Head.as_published),
    "default": ("default", Conv, Head),
    "block-32": ("blocks of 32", of_32(), Head),
    "block-64": ("blocks of 64", functools.partial(Conv, block=64), Head),
    "block-32-plain-head": ("blocks of 32, plain head", of_32(), nn.Linear),
    "block-32-grad-none": ("blocks of 32, no gradient through the mean", of_32(grad="none"), Head),
    "block-32-newton-warm": ("blocks of 32, one warm Newton step", of_32(method="newton-warm"), Head),
    "block-32-polynomial": ("blocks of 32, quintic polynomials", of_32(method="polynomial"), Head),
    "block-32-cholesky": ("blocks of 32, Cholesky factor", of_32(method="cholesky"), Head),
}


def network(variant: str, classes: int, channels: int) -> nn.Sequential:
    _, conv, head = VARIANTS[variant]
    layers: list[nn.Module] = []
    for width in (32, 0, 64, 0, 128, 0, 128):
        if not width:
            layers.append(nn.MaxPool2d(2))
        elif conv is None:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        else:
            layers += [conv(channels, width, 3, padding=1), nn.ReLU()]
        channels = width or channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(channels, classes))


def train(variant: str, data: Dataset, seed: int) -> dict[str, object]:
    torch.manual_seed(seed)
    model = network(variant, len(data.classes), data.channels)
    settings = pellucid.TrainSettings(lr=0.1, warmup=0.0, epochs=EPOCHS, batch_size=BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    total, step, seconds, curve = EPOCHS * steps_per_epoch(len(data.train), BATCH, drop_last=True), 0, 0.0, []
    norm = {"mean": data.mean, "std": data.std}
    for epoch in range(EPOCHS):
        model.train()
        began = time.process_time()
        augment = Augment(crop=data.image_size[0] // 8, flip=data.flip)
        for batch in batches(
            data.train, BATCH, **norm, shuffle=True, augment=augment, seed=seed, epoch=epoch, drop_last=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, total)
            loss = F.cross_entropy(model(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        seconds += time.process_time() - began
        curve.append(evaluate(model, data, "test").top1)
    return {"variant": variant, "seed": seed, "accuracy": curve[-1], "curve": curve, "seconds": round(seconds, 2)}


def main() -> None:
    torch.set_num_threads(1)
    source, name, seeds = sys.argv[1], sys.argv[2], [int(word) for word in sys.argv[3:]]
    data = pellucid.load_data(source)
    log = ROOT / "results" / f"whiten-{name}.jsonl"
    for seed in seeds:
        for variant in VARIANTS:
            run = train(variant, data, seed)
            with open(log, "a") as file:
                file.write(json.dumps(run) + "\n")
            print(json.dumps(run), flush=True)
    runs = [json.loads(line) for line in log.read_text().splitlines()]
    for variant, (title, _, _) in VARIANTS.items():
        mine = [run for run in runs if run["variant"] == variant]
        accuracies = sorted(100 * run["accuracy"] for run in mine)
        record(
            f"whiten-{name}-{variant}",
            title,
            "",
            (statistics.mean(accuracies), accuracies[0], accuracies[-1]),
            n=len(mine),
            unit="%",
            interval_is="least and greatest of the seeds",
            seconds=round(statistics.mean(run["seconds"] for run in mine), 1),
            first_epoch=round(100 * statistics.mean(run["curve"][0] for run in mine), 1),
            third_epoch=round(100 * statistics.mean(run["curve"][2] for run in mine), 1),
            seed=", ".join(str(run["seed"]) for run in mine),
            data=f"{len(data.train)} training and {len(data.test)} test images",
        )


if __name__ == "__main__":
    main()
