"""How accurate a decomposed head with a few filters per class is, rule by rule, without any training.

    python benchmarks/classfilters/rules.py CHECKPOINT MODEL DATA "MEAN MEAN MEAN" "STD STD STD" [NAME]

Without NAME, five-fold cross-validation: sets are chosen on four fifths of DATA's test images and evaluated on the
remaining fifth, for each fifth in turn, so every image is classified once, by sets that did not see it. The checkpoint
itself may have been trained on them: compare with the full model, which is in the table, and with random filters. With
NAME, sets are chosen on DATA's training images and evaluated on its test images, and results are named
classfilters/NAME-RULE.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.record import percent, record
from pellucid.classfilters.evidence import measure
from pellucid.classfilters.head import head_of
from pellucid.classfilters.last_layer import find_head
from pellucid.classfilters.logistic import fit_features
from pellucid.classfilters.responses import responses
from pellucid.classfilters.rules import choose
from pellucid.core.measure.pairs import open_data
from pellucid.core.source import open_source

KS, FOLDS, BEST = (1, 2, 3, 5, 10), 5, 5
RULES = ("frequency", "mass", "evidence", "omp", "l1", "weight", "random")


def main() -> None:
    torch.set_num_threads(1)
    checkpoint, name, data, mean, std = sys.argv[1:6]
    prefix = "".join(f"{word}-" for word in sys.argv[6:])
    numbers = [[float(word) for word in text.split()] for text in (mean, std)]
    source = open_source(checkpoint, data, model=name, mean=numbers[0], std=numbers[1])
    features, labels, head = responses(source.model, open_data(source.model, source.dataset, "test"))
    net = nn.Sequential(nn.Identity(), source.model.get_submodule(head.name)).eval()
    assert find_head(net, features[:8]).name == "1"
    n = len(labels)
    with torch.no_grad():
        full = int((net(features).argmax(1) == labels).sum())
    if prefix:
        more, own, _ = responses(source.model, open_data(source.model, source.dataset, "train"))
        features, labels = torch.cat([features, more]), torch.cat([labels, own])
        turns = [(torch.arange(n, len(labels)), torch.arange(n))]
    else:
        folds = torch.randperm(n, generator=torch.Generator().manual_seed(0)).chunk(FOLDS)
        turns = [(torch.cat([*folds[:turn], *folds[turn + 1 :]]), held) for turn, held in enumerate(folds)]
    right: dict[tuple[str, int], int] = {}
    seconds = []
    for turn, (seen, held) in enumerate(turns):
        found = measure(net, (features[seen], labels[seen]), tops=KS, covariance=True)
        for k in KS:
            for rule in RULES:
                right[rule, k] = right.get((rule, k), 0) + count(
                    choose(found, k, rule, seed=turn).apply(net), held, features, labels
                )
        fitted = choose(found, BEST, "evidence").apply(net)
        began = time.process_time()
        fit_features(head_of(fitted), features[seen], labels[seen])
        seconds.append(time.process_time() - began)
        right["fit", BEST] = right.get(("fit", BEST), 0) + count(fitted, held, features, labels)
    seeds = "random sets 0" if prefix else "folds 0, random sets 0 to 4"
    facts = {"unit": "%", "n": n, "seed": seeds, "full_model": f"{100 * full / n:.2f} %"}
    for rule in RULES:
        accuracies = {f"k={k}": f"{100 * right[rule, k] / n:.1f}" for k in KS}
        measured = percent(right[rule, BEST], n)
        record(f"classfilters/{prefix}{rule}", f"`{rule}`", "", measured, k=BEST, **accuracies, **facts)
    record(
        f"classfilters/{prefix}fit",
        "`evidence`, head fitted",
        "under 5 s",
        percent(right["fit", BEST], n),
        seconds=round(max(seconds), 2),
        k=BEST,
        **{f"k={k}": f"{100 * right['fit', k] / n:.1f}" if k == BEST else "" for k in KS},
        **facts,
    )


def count(net: nn.Module, held: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> int:
    with torch.no_grad():
        return int((net(features[held]).argmax(1) == labels[held]).sum())


if __name__ == "__main__":
    main()
