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
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.record import percent, record
from pellucid.classfilters.accuracy import Sets
from pellucid.classfilters.compare_heads import compare_heads
from pellucid.classfilters.controls import CHOSEN, DRAWS, compare
from pellucid.classfilters.evidence import Evidence, measure
from pellucid.classfilters.install import head_from
from pellucid.classfilters.last_layer import find_head
from pellucid.classfilters.logistic import fit_features
from pellucid.classfilters.responses import responses
from pellucid.classfilters.rules import as_filters, choose
from pellucid.core.flags import SourceSettings
from pellucid.core.measure.pairs import open_data
from pellucid.core.source import open_source

KS, FOLDS, BEST = (1, 2, 3, 5, 10), 5, 5
CONTROL = "evidence"  # the rule whose numbers of filters the random sets have
RULES = ("frequency", "mass", CONTROL, "omp", "l1", "weight")


def main() -> None:
    torch.set_num_threads(1)
    checkpoint, name, data, mean, std = sys.argv[1:6]
    prefix = "".join(f"{word}-" for word in sys.argv[6:])
    numbers = [[float(word) for word in text.split()] for text in (mean, std)]
    source = open_source(checkpoint, SourceSettings(data=data, model=name, mean=numbers[0], std=numbers[1]))
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
    right: dict[tuple[str, int], float] = {}
    seconds = []
    for turn, (seen, held) in enumerate(turns):
        found = measure(net, (features[seen], labels[seen]), tops=KS, covariance=True)
        judged = features[held], labels[held]
        for k in KS:
            for rule, correct in judge(net, found, k, turn, judged).items():
                right[rule, k] = right.get((rule, k), 0) + correct
        fitted = head_from(net, choose(found, BEST, CONTROL))
        began = time.process_time()
        fit_features(fitted, features[seen], labels[seen])
        seconds.append(time.process_time() - began)
        right["fit", BEST] = right.get(("fit", BEST), 0) + int(compare_heads(net, {"fit": fitted}, judged)["fit"].sum())
    seeds = f"{'random sets 0' if prefix else 'folds 0, random sets 0 to 4'}, {DRAWS} draws each"
    facts = {"unit": "%", "n": n, "seed": seeds, "full_model": f"{100 * full / n:.2f} %"}
    for rule in (*RULES, "random"):
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


def judge(
    net: nn.Module, found: Evidence, k: int, seed: int, judged: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, float]:
    """Images that are classified correctly with the sets of each rule, and with random ones, a mean over draws."""
    chosen = {rule: choose(found, k, rule) for rule in RULES}

    def score(named: Mapping[str, Sets]) -> dict[str, torch.Tensor]:
        own = {CHOSEN: chosen[CONTROL], **chosen}
        heads = {name: head_from(net, own.get(name) or as_filters(found, sets, name)) for name, sets in named.items()}
        return compare_heads(net, heads, judged)

    others = {rule: filters.indices for rule, filters in chosen.items() if rule != CONTROL}
    rows = compare(score, chosen[CONTROL].indices, found.width, others=others, seed=seed)
    named = {CONTROL: rows.chosen, "random": rows.random, **rows.others}
    return {rule: row.share.correct for rule, row in named.items()}


if __name__ == "__main__":
    main()
