"""Accuracy on corrupted images per remedy, and the mean corruption error (Hendrycks and Dietterich 2019).

The remedies are what a sceptic would try first: batch norm re-estimated on unlabelled images, a light blur, a plain
network of equal training; and for sparse-coding networks a raised lambda.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.core.data.dataset import Dataset
from pellucid.core.data.splits import Split, for_fitting
from pellucid.core.measure.corrupt import KINDS, corrupt_images
from pellucid.core.measure.corrupt.published import CorruptedSet
from pellucid.core.seeds import seed_of
from pellucid.core.terminal import track
from pellucid.robust.trial import Trial, accuracies


def measure(
    trial: Trial,
    dataset: Dataset,
    kinds: Sequence[str],
    *,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    levels: Sequence[float] | None = None,
    images: int = 500,
    stored: CorruptedSet | None = None,
) -> dict[str, Any]:
    """Accuracy on clean and on corrupted test images, per remedy.

    Args:
        trial: the network and the remedies.
        dataset: its test images are used; and its held-out ones, corrupted likewise, for what is fitted with labels.
        kinds: corruptions, as in `core.measure.corrupt.KINDS`, or those of `stored`.
        severities: 1 to 5; or give `levels` instead, in the kinds' own unit.
        levels: strengths instead of severities.
        images: maximum number of test images, sampled by the trial's seed.
        stored: a published set to read the corrupted images from, instead of computing them.

    Returns:
        JSON-able values: "n"; "clean", per remedy the accuracy with Wilson's interval; "kinds", for each kind one row
        per severity or level, with the same per remedy under "shares".
    """
    seed = trial.seed
    clean, labels, indices = drawn(dataset.test, images, seed)
    result: dict[str, Any] = {"n": len(labels), "clean": accuracies(trial.without_labels(clean, labels)), "kinds": {}}
    steps: list[tuple[str, int | None, float | None]] = [
        (kind, severity, level)
        for kind in kinds
        for severity, level in ([(None, v) for v in levels] if levels else [(s, None) for s in severities])
    ]
    swept = isinstance(trial.lam, str) and trial.lam != "none"
    held: list[tuple[Tensor, Tensor]] = [(clean, labels)]
    others: list[tuple[Tensor, Tensor]] = []  # what `fitted` is fitted to, at the same levels
    if swept and len(dataset.val) and {*kinds} <= {*KINDS}:
        apart, named, places = drawn(for_fitting(dataset.val, "Lambda is fitted"), images, seed)
        others = [(apart, named)]
    for kind, severity, level in track(steps, len(steps), "corrupting test images"):
        if stored is not None:
            assert severity is not None
            x, y, _ = drawn(stored.split(kind, severity, dataset.classes), images, seed)
        else:
            x, y = corrupt_images(clean, kind, severity, level=level, seed=seed, indices=indices), labels
        rows = result["kinds"].setdefault(kind, [])
        at = {"severity": severity} if level is None else {"level": level}
        rows.append({**at, "shares": accuracies(trial.without_labels(x, y))})
        if swept:
            held.append((x, y))
            if others:
                x = corrupt_images(apart, kind, severity, level=level, seed=seed_of("fitted", seed), indices=places)
                others.append((x, named))
            if len(rows) == len(levels or severities):
                for row, more in zip(rows, trial.with_labels(held, others)[1:], strict=True):
                    row["shares"] |= accuracies(more.pop("correct"))
                    row |= more
                held, others = held[:1], others[:1]
    return result


def drawn(split: Split, limit: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most `limit` images of a split, sampled by seed.

    They come in random order: splits are often sorted by class, and a batch of one class would spoil re-estimated batch
    norm.

    Returns:
        Images (B, C, H, W) in [0, 1], labels (B,), and indices (B,) in the split.
    """
    rng = torch.Generator().manual_seed(seed_of("robust", seed))
    indices = torch.randperm(len(split), generator=rng)[:limit]
    return split.fetch(indices).float() / 255, split.labels[indices], indices


def summary(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per remedy the mean accuracy over all kinds and levels, and the mean corruption error against the baseline.

    The mean corruption error is Hendrycks and Dietterich's (2019): the errors of a kind, summed over its severities,
    over those of the baseline, then the mean over kinds; the baseline itself has 1. "mce" is absent without a baseline.
    """
    kinds = result["kinds"]
    names = next(iter(kinds.values()))[0]["shares"]

    def errors(name: str) -> dict[str, float]:
        return {kind: sum(1 - row["shares"][name]["accuracy"] for row in rows) for kind, rows in kinds.items()}

    made: dict[str, dict[str, Any]] = {}
    for name in names:
        own = errors(name)
        made[name] = {"accuracy": 1 - sum(own.values()) / sum(map(len, kinds.values()))}
        if "baseline" in names:
            base = errors("baseline")
            ratios = [own[kind] / base[kind] for kind in kinds if base[kind] > 0]
            made[name]["mce"] = sum(ratios) / len(ratios) if ratios else None
    return made
