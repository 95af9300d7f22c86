"""Does the page reveal a mark that only one class had in training? Planted and clean networks on fresh seeds.

    python benchmarks/inversion/artefact.py [SEED ...]

A corner pixel is white in 95 % of the training images of one class of the digits (the seed's last digit), and in no
test image. Two networks are trained on them, and on the clean images: a small whitening network, whose table holds full
covariances, and a ResNet-20 with batch norm, whose table holds variances. Each is opened as the page opens it. Counted
are planted classes that are marked at their pixel, and unplanted classes that are marked. The threshold was chosen on
other networks. Appends one line per network to results/inversion/artefact.jsonl, and skips those that are there.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import RESULTS, Row, percent, record, run_rows
from pellucid.audit.audit import make_audit
from pellucid.audit.cards.inverted import ODD, inverted_images
from pellucid.core.data.dataset import Dataset, load_data
from pellucid.core.facts import declare

NETWORKS = {
    "whitening": ("conv2", "deconv", "conv2, whitening, covariances"),
    "batch-norm": ("resnet20", "plain", "ResNet-20, batch norm, variances"),
}
EPOCHS, SHARE = 12, 0.95


def trained(digits: Dataset, seed: int, marked: int | None, name: str, layers: str) -> nn.Module:
    """Train a network for a few epochs on the digits, the class `marked` with its white corner."""
    torch.manual_seed(seed)
    images, labels = digits.train.fetch(torch.arange(len(digits.train))).float() / 255, digits.train.labels
    if marked is not None:
        drawn = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) < SHARE
        images[(labels == marked) & drawn, :, 0, 0] = 1
    images = (images - digits.mean[0]) / digits.std[0]
    model = pellucid.build(name, 10, 1, 8, layers=layers)
    declare(model, normalization={"mean": list(digits.mean), "std": list(digits.std)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    rows = [part for _ in range(EPOCHS) for part in torch.randperm(len(images)).split(64) if len(part) > 1]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, len(rows))
    for part in rows:
        F.cross_entropy(model(images[part]), labels[part]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def opened(digits: Dataset, network: str, seed: int, planted: bool) -> Row:
    """Train one network and open it: what the page finds, and the fraction of predictions that the pixel changes."""
    name, layers, _ = NETWORKS[network]
    marked = seed % 10 if planted else None
    audit = make_audit(trained(digits, seed, marked, name, layers), digits, device="cpu")
    found = inverted_images(audit)
    assert found is not None
    images = audit.images(torch.arange(len(audit.labels)))
    images[:, :, 0, 0] = 1
    changed = float((audit.forward(images).argmax(1) != audit.answers).float().mean())
    return {
        "z": [float(z) for z in found.z],
        "at_corner": [place == (0, 0) for place in found.places],
        "changed": changed,
    }


def main() -> None:
    torch.set_num_threads(1)
    seeds = [int(word) for word in sys.argv[1:]] or [11, 12, 14, 15, 16, 18]
    digits = load_data("digits")
    keys = [
        {"network": key, "seed": seed, "planted": planted}
        for key in NETWORKS
        for seed in seeds
        for planted in (True, False)
    ]
    found = run_rows(RESULTS / "inversion" / "artefact.jsonl", keys, functools.partial(opened, digits))
    for key, (_, _, title) in NETWORKS.items():
        hits, first, false, unmarked, changed = 0, 0, 0, 0, []
        for row in (row for row in found if row["network"] == key):
            over = [index for index, z in enumerate(row["z"]) if z >= ODD]
            marked = row["seed"] % 10 if row["planted"] else None
            if marked is not None:
                hits += row["at_corner"][marked] and marked in over
                first += row["at_corner"][marked] and row["z"][marked] == max(row["z"])
                changed.append(row["changed"])
            false += len(set(over) - {marked})
            unmarked += 10 - row["planted"]
        n = len(seeds)
        rows = {
            "found": (f"{title}: the planted class is marked, at its pixel", hits, n),
            "first": (f"{title}: the planted class has the highest z, at its pixel", first, n),
            "false": (f"{title}: a class without a mark is marked", false, unmarked),
        }
        for what, (claim, count, of) in rows.items():
            record(
                f"inversion/artefact-{key}-{what}",
                claim,
                "",
                percent(count, of),
                n=of,
                unit="%",
                interval_is="95 % interval (Wilson)",
                seeds=" ".join(map(str, seeds)),
                threshold=ODD,
                answers_changed=round(100 * sum(changed) / len(changed), 2),
            )


if __name__ == "__main__":
    main()
