"""How accurate a network of sparse coding layers becomes with each schedule of steps, compared with its plain twin.

    python benchmarks/sparse/accuracy.py digits digits 0 1 2
    python benchmarks/sparse/accuracy.py npz:PATH cifar 0 1 2        DATA NAME [SEED ...]

A narrow VGG (16, 32, 64, 64 channels, three poolings, one linear layer) in which every convolution is a sparse coding
layer of two steps with batch norm; about 200 steps of batch 128, SGD with momentum 0.9, learning rate 0.1 falling as a
cosine, weight decay 5e-4, crop and flip; one thread. The test accuracy of the last epoch is reported, so nothing is
chosen on it. With the same seed, all variants see the same images in the same order.

Appends one line per run to results/sparse/NAME.jsonl, skips the runs that are there, and writes the table's numbers,
over all seeds in that file, to results/sparse/NAME-*.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import Row, log_and_record
from benchmarks.training import fit
from pellucid.core.data.batches import batches, steps_per_epoch
from pellucid.core.data.dataset import Dataset
from pellucid.core.measure.evaluate import evaluate
from pellucid.sparse.fista import SCHEDULES
from pellucid.sparse.layers import CSC

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


def train(variant: str, data: Dataset, seed: int) -> Row:
    torch.manual_seed(seed)
    model = network(variant, len(data.classes), data.channels)
    # With fewer steps batch norm's running variance, which starts at 1, would not have fallen to that of the codes.
    epochs = round(STEPS / steps_per_epoch(len(data.train), BATCH, drop_last=True))
    seconds = fit(model, data, epochs=epochs, batch_size=BATCH, weight_decay=5e-4, seed=seed)
    with torch.no_grad():
        images = next(batches(data.test, 200, mean=data.mean, std=data.std)).images
        densities = []

        def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], code: torch.Tensor) -> None:
            densities.append(float((code != 0).float().mean()))

        handles = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, CSC)]
        model.eval()(images)
        for handle in handles:
            handle.remove()
    return {
        "accuracy": evaluate(model, data, "test").top1,
        "seconds": round(seconds, 2),
        "density": [round(value, 3) for value in densities],
    }


def main() -> None:
    torch.set_num_threads(1)
    source, name, seeds = sys.argv[1], sys.argv[2], [int(word) for word in sys.argv[3:]]
    data = pellucid.load_data(source)
    log_and_record(
        f"sparse/{name}",
        VARIANTS,
        seeds,
        lambda variant, seed: train(variant, data, seed),
        facts=lambda rows: {},
        data=f"{len(data.train)} training and {len(data.test)} test images",
    )


if __name__ == "__main__":
    main()
