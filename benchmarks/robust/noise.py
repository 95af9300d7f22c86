"""What choosing lambda at test time gains a sparse coding network under Gaussian noise, next to simpler remedies.

    python benchmarks/robust/noise.py digits digits 0 1 2
    python benchmarks/robust/noise.py npz:PATH cifar 0 1 2          DATA NAME [SEED ...]

SDNet-18 in miniature: three residual blocks of 16, 32 and 64 channels, whose first convolution is a sparse coding layer
(lambda 0.1, two steps, no ReLU after it); its plain twin has an ordinary convolution and ReLU. Both are trained with
the same settings: 12 epochs, batch 128, SGD with momentum 0.9, learning rate 0.1 falling as a cosine, weight decay
5e-4, crop and flip; one thread. Accuracy is that of the last epoch, on at most 500 test images sampled by seed, the
same for all conditions. `oracle` chooses lambda with the labels of those images, `fitted` with those of held-out ones;
nothing else sees labels.
The attack is PGD (10 steps, L-infinity, eps 2/255) on 100 images.

`estimates` measures how well the noise in an image is estimated. An estimator is calibrated by its median over the
images at each level; reported is the root mean square error of the calibrated estimates, over 400 images per level.

Appends one line per seed to results/robust/NAME.jsonl, skips the seeds that are there, and writes the tables' numbers,
means over all seeds in that file, to results/robust/NAME-*.json. Trained weights are kept in runs/sparse-robust/.
Without a seed, only the tables' numbers are written.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import RESULTS, ROOT, Row, logged, mean_and_range, record, run_rows
from benchmarks.training import fit
from pellucid.core.data.dataset import Dataset
from pellucid.core.files.tensors import read_tensors, save_tensors
from pellucid.core.measure.corrupt import corrupt_images
from pellucid.core.network.models.resnet import BasicBlock, ResNet
from pellucid.robust.measure import drawn, measure
from pellucid.robust.subject import CALIBRATION, subject_of
from pellucid.robust.trial import Trial
from pellucid.robust.under_attack import under_attack
from pellucid.sparse.adapt import estimate_noise, residual
from pellucid.sparse.layers import CSC2d

EPOCHS, BATCH, IMAGES, ATTACKED = 12, 128, 500, 100
LEVELS = {"cifar": [0.06, 0.10, 0.14, 0.20], "digits": [0.1, 0.2, 0.3, 0.4]}
TITLES = {
    "none": "sparse network, lambda 0.1",
    "adaptive": "adaptive lambda",
    "fitted": "fitted lambda (held-out labels)",
    "oracle": "best lambda (labels)",
    "batch norm": "batch norm estimated again",
    "adaptive, batch norm": "adaptive lambda and batch norm",
    "fitted, batch norm": "fitted lambda (held-out labels) and batch norm",
    "oracle, batch norm": "best lambda (labels) and batch norm",
    "blur": "light blur",
    "baseline": "plain twin",
    "baseline, batch norm": "plain twin, batch norm estimated again",
    "baseline, blur": "plain twin, light blur",
}
ATTACKS = {
    "clean": "sparse network, no attack",
    "fixed": "sparse network, attack on it",
    "clean, lambda raised": "lambda 0.4, no attack",
    "fixed, lambda raised": "lambda 0.4, attack made at lambda 0.1",
    "adaptive, lambda raised": "lambda 0.4, attack made at lambda 0.4",
    "either, lambda raised": "lambda 0.4, the stronger of the two on each image",
    "baseline, clean": "plain twin, no attack",
    "baseline, fixed": "plain twin, attack on it",
}


def network(variant: str, classes: int, channels: int) -> nn.Module:
    model = ResNet(BasicBlock, (1, 1, 1), 16, classes, channels, large_stem=False)
    if variant == "csc":
        model.conv1 = CSC2d(channels, 16, 3, padding=1)
        model.relu = nn.Identity()
    return model


def trained(variant: str, data: Dataset, name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = network(variant, len(data.classes), data.channels)
    file = ROOT / "runs" / "sparse-robust" / f"{name}-{variant}-{seed}.safetensors"
    if file.is_file():
        model.load_state_dict(read_tensors(file)[0])
        return model
    fit(model, data, epochs=EPOCHS, batch_size=BATCH, weight_decay=5e-4, seed=seed, warmup=0.05)
    save_tensors(model.state_dict(), file)
    return model


def run(data: Dataset, name: str, seed: int) -> Row:
    """One row of the log: accuracies by condition, first without noise, then by level."""
    began = time.process_time()
    sparse, plain = (subject_of(trained(variant, data, name, seed), data) for variant in ("csc", "plain"))
    trial = Trial(sparse, "adaptive", drawn(data.train, CALIBRATION, seed)[0], plain, seed)
    found = measure(trial, data, ["gaussian_noise"], levels=LEVELS[name], images=IMAGES)
    rows = found["kinds"]["gaussian_noise"]
    attacked = under_attack(
        Trial(sparse, "none", baseline=plain, seed=seed), data, images=ATTACKED, eps=2 / 255, norm="linf", steps=10
    )
    return {
        "levels": LEVELS[name],
        "accuracy": {
            key: [found["clean"].get(key, {}).get("accuracy"), *(row["shares"][key]["accuracy"] for row in rows)]
            for key in TITLES
        },
        "lam": {key: [row["lam"][key] for row in rows] for key in rows[0]["lam"]},
        "adaptive": {str(again): [policy.estimates, policy.lams] for again, policy in trial.calibrated.items()},
        "residual": [row["residual"] for row in rows],
        "attack": {key: attacked["shares"][key]["accuracy"] for key in ATTACKS},
        "seconds": round(time.process_time() - began),
    }


def estimates(data: Dataset, name: str, seed: int) -> None:
    """Record the error of each estimator of the noise level, without noise and at the levels of `name`."""
    model = subject_of(trained("csc", data, name, seed), data)
    x, _, indices = drawn(data.test, 400, seed)
    levels = [0.0, *LEVELS[name]]
    noisy = [corrupt_images(x, "gaussian_noise", level=s, seed=seed, indices=indices) if s else x for s in levels]
    for key, (title, estimator) in {
        "laplacian": ("difference of Laplacians, mean (used)", estimate_noise),
        "haar": ("diagonal Haar detail, median", haar_median),
        "residual": ("residual of the code", lambda images: residual(model.sparse, model.normalized(images))),
    }.items():
        found = [estimator(images).double().numpy() for images in noisy]
        medians = [float(np.median(values)) for values in found]
        order = np.argsort(medians)
        errors = []
        for values, level in zip(found, levels, strict=True):
            back = np.interp(values, np.array(medians)[order], np.array(levels)[order])
            errors.append(float(np.sqrt(np.mean((back - level) ** 2))))
        record(
            f"robust/{name}-estimate-{key}",
            title,
            "",
            mean_and_range(errors),
            n=len(x),
            unit="of white",
            interval_is="least and greatest of the levels",
            seed=seed,
        )


def haar_median(images: torch.Tensor) -> torch.Tensor:
    """Donoho's median absolute deviation of the finest diagonal wavelet detail (Donoho and Johnstone 1994)."""
    detail = images[..., :-1, :-1] - images[..., 1:, :-1] - images[..., :-1, 1:] + images[..., 1:, 1:]
    return (detail / 2).flatten(1).abs().median(1).values / 0.6745


def main() -> None:
    torch.set_num_threads(1)
    source, name, seeds = sys.argv[1], sys.argv[2], [int(word) for word in sys.argv[3:]]
    log = RESULTS / "robust" / f"{name}.jsonl"
    data = pellucid.load_data(source)
    run_rows(log, [{"seed": seed} for seed in seeds], lambda seed: run(data, name, seed))
    runs = sorted(logged(log), key=lambda run: run["seed"])
    estimates(data, name, runs[0]["seed"])
    facts = {
        "unit": "%",
        "interval_is": "least and greatest of the seeds",
        "n": len(runs),
        "seed": ", ".join(str(run["seed"]) for run in runs),
        "data": f"{len(data.train)} training and {min(IMAGES, len(data.test))} test images",
    }
    levels = LEVELS[name]
    for key, title in TITLES.items():
        by_level = [[100 * run["accuracy"][key][place] for run in runs] for place in range(1, 1 + len(levels))]
        clean = [100 * run["accuracy"][key][0] for run in runs if run["accuracy"][key][0] is not None]
        shown = {
            f"noise {round(100 * level)}": f"{statistics.mean(found):.1f}"
            for level, found in zip(levels, by_level, strict=True)
        }
        means = [statistics.mean(found) for found in zip(*by_level, strict=True)]
        record(
            f"robust/{name}-{key.replace(', ', '-').replace(' ', '-')}",
            title,
            "",
            mean_and_range(means),
            **{"noise 0": f"{statistics.mean(clean):.1f}" if clean else "-"},
            **shown,
            **facts,
        )
    for key, title in ATTACKS.items():
        record(
            f"robust/{name}-attack-{key.replace(', ', '-').replace(' ', '-')}",
            title,
            "",
            mean_and_range([100 * run["attack"][key] for run in runs]),
            attack=f"PGD, 10 steps, L-infinity, eps 2/255, {ATTACKED} images",
            **facts,
        )


if __name__ == "__main__":
    main()
