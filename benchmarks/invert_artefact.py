"""Does the page betray a mark that only one class had in training? Planted and clean networks on fresh seeds.

    python benchmarks/invert_artefact.py [SEED ...]

A corner pixel is white in 95 % of the training images of one class of the digits (the seed's last digit), and in no
test image. Two networks learn from them, and from the clean images: a small whitening network, whose table holds whole
covariances, and a ResNet-20 with batch norm, whose table holds variances. Each is opened as the page does it. Counted
are planted classes that are marked at their pixel, and classes without a mark that are marked. The threshold is from
other networks than these.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid.audit.audit import make_audit
from pellucid.audit.cards.inverted import ODD, inverted_images
from pellucid.core.data.dataset import Dataset, load_data
from pellucid.core.facts import declare
from pellucid.core.measure.share import wilson
from results import record

NETWORKS = {
    "whitening": ("conv2", "deconv", "conv2, whitening, covariances"),
    "batch-norm": ("resnet20", "plain", "ResNet-20, batch norm, variances"),
}
EPOCHS, SHARE = 12, 0.95


def trained(digits: Dataset, seed: int, marked: int | None, name: str, layers: str) -> nn.Module:
    """The network after a few epochs on the training images, the class `marked` with its corner."""
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


def main() -> None:
    torch.set_num_threads(1)
    seeds = [int(word) for word in sys.argv[1:]] or [11, 12, 14, 15, 16, 18]
    digits = load_data("digits")
    for key, (name, layers, title) in NETWORKS.items():
        hits, first, false, unmarked, changed = 0, 0, 0, 0, []
        for seed in seeds:
            for marked in (seed % 10, None):
                audit = make_audit(trained(digits, seed, marked, name, layers), digits, device="cpu")
                found = inverted_images(audit)
                assert found is not None
                over = [index for index, z in enumerate(found.z) if z >= ODD]
                if marked is not None:
                    placed = found.places[marked] == (0, 0)
                    hits += placed and marked in over
                    first += placed and found.z[marked] == max(found.z)
                    images = audit.images(torch.arange(len(audit.labels)))
                    images[:, :, 0, 0] = 1
                    changed.append(float((audit.forward(images).argmax(1) != audit.answers).float().mean()))
                false += len(set(over) - {marked})
                unmarked += 10 - (marked is not None)
                print(key, seed, marked, [round(z, 1) for z in found.z], found.places[marked or 0], flush=True)
        n = len(seeds)
        rows = {
            "found": (f"{title}: the planted class is marked, at its pixel", hits, n),
            "first": (f"{title}: the planted class has the highest z, at its pixel", first, n),
            "false": (f"{title}: a class without a mark is marked", false, unmarked),
        }
        for what, (claim, count, of) in rows.items():
            low, high = wilson(count, of)
            record(
                f"invert-artefact-{key}-{what}",
                claim,
                "",
                (100 * count / of, 100 * low, 100 * high),
                n=of,
                unit="%",
                interval_is="95 % interval (Wilson)",
                seeds=" ".join(map(str, seeds)),
                threshold=ODD,
                answers_changed=round(100 * sum(changed) / len(changed), 2),
            )


if __name__ == "__main__":
    main()
