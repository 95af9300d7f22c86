"""What whitening gains, per epoch and per second, over batch norm and over the published arithmetic.

    python benchmarks/whiten/accuracy.py digits digits 0 1 2
    python benchmarks/whiten/accuracy.py npz:PATH cifar 0 1 2        DATA NAME [SEED ...]

A narrow VGG (32, 64, 128, 128 channels, three poolings, one linear layer), 10 epochs, batch 128, SGD with momentum 0.9,
learning rate 0.1 falling as a cosine, weight decay 1e-3 on every parameter, crop 4 and flip; one thread. Seconds are
the process's own processor time in training steps. PATH holds train_images, train_labels, test_images, test_labels;
the test accuracy of the last epoch is reported, so nothing is chosen on it. With the same seed, all variants see the
same images in the same order.

Appends one line per run to results/whiten/NAME.jsonl, skips the runs that are there, and writes the table's numbers,
over all seeds in that file, to results/whiten/NAME-*.json. Seeds may be run in separate processes; without any, only
the table's numbers are written.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import Row, log_and_record
from benchmarks.training import fit
from pellucid.core.data.dataset import Dataset
from pellucid.core.measure.evaluate import evaluate

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


def train(variant: str, data: Dataset, seed: int) -> Row:
    torch.manual_seed(seed)
    model, curve = network(variant, len(data.classes), data.channels), []
    seconds = fit(
        model, data, epochs=EPOCHS, batch_size=BATCH, weight_decay=1e-3, seed=seed,
        after_epoch=lambda: curve.append(evaluate(model, data, "test").top1),
    )  # fmt: skip
    return {"accuracy": curve[-1], "curve": curve, "seconds": round(seconds, 2)}


def early(rows: list[Row]) -> Row:
    """Mean accuracies in per cent after the first and the third epoch."""
    first, third = (round(100 * statistics.mean(row["curve"][epoch] for row in rows), 1) for epoch in (0, 2))
    return {"first_epoch": first, "third_epoch": third}


def main() -> None:
    torch.set_num_threads(1)
    source, name, seeds = sys.argv[1], sys.argv[2], [int(word) for word in sys.argv[3:]]
    data = pellucid.load_data(source)
    log_and_record(
        f"whiten/{name}",
        {variant: title for variant, (title, _, _) in VARIANTS.items()},
        seeds,
        lambda variant, seed: train(variant, data, seed),
        facts=early,
        data=f"{len(data.train)} training and {len(data.test)} test images",
    )


if __name__ == "__main__":
    main()
