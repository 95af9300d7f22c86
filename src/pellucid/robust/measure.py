"""How much of its accuracy a network keeps on corrupted and adversarial images: as it is, with lambda raised, and with
what a sceptic would try first (batch norm estimated again, a light blur, a plain network of equal training)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pellucid.core.data.dataset import Dataset
from pellucid.core.measure.corrupt import corrupt_images
from pellucid.core.measure.corrupt.published import CorruptedSet
from pellucid.core.seeds import seed_of
from pellucid.core.terminal import track
from pellucid.robust.subject import BLUR, Policy, Subject, shares
from pellucid.sparse.adapt import FACTORS, SIGMAS, Adaptive, calibrate, fit_line, oracle, sparse_layer, trained_lam


@dataclass
class Trial:
    """One network under every condition.

    lam: a policy, or a number; the policies need a sparse layer.
    clean: (B, C, H, W) in [0, 1], unlabelled, of the training set: what `adaptive` is calibrated on.
    baseline: another network that answers the same images.
    combined: try each policy together with batch norm estimated again as well.
    sigmas: noise that `adaptive` is calibrated with, the first 0.
    """

    subject: Subject
    lam: Policy | float = "none"
    clean: Tensor | None = None
    baseline: Subject | None = None
    seed: int = 0
    combined: bool = True
    sigmas: Sequence[float] = SIGMAS
    calibrated: dict[bool, Adaptive] = field(init=False, default_factory=dict)
    trained: float = field(init=False, default=math.nan)

    def __post_init__(self) -> None:
        if self.subject.sparse is not None:
            self.trained = trained_lam(self.subject.sparse)
        elif self.lam != "none":
            sparse_layer(self.subject.model)  # says that there is none
        if not isinstance(self.lam, str):
            self.lam = float(self.lam)
        if self.lam == "adaptive":
            assert self.clean is not None
            for again in self.again:
                logits = partial(self.subject.logits, reestimate=again)
                self.calibrated[again] = calibrate(logits, self.clean, self.trained, sigmas=self.sigmas, seed=self.seed)

    @property
    def again(self) -> tuple[bool, ...]:
        """Whether batch norm is estimated again, where a policy is tried."""
        return (False, True) if self.combined and self.subject.has_batch_norm else (False,)

    @property
    def lams(self) -> list[float]:
        """The lambdas that are swept with labels."""
        return [self.trained * factor for factor in FACTORS]

    def unlabelled(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Who is right, by condition, for all that is decided without these images' labels."""
        subject = self.subject
        found = {"none": subject.right(images, labels)}
        for again in self.again:
            name = ", batch norm" if again else ""
            if isinstance(self.lam, float):
                found[f"lambda {self.lam:g}{name}"] = subject.right(images, labels, lam=self.lam, reestimate=again)
            elif again in self.calibrated:
                found[f"adaptive{name}"] = subject.right(images, labels, lam=self.calibrated[again], reestimate=again)
        if subject.has_batch_norm:
            found["batch norm"] = subject.right(images, labels, reestimate=True)
        found["blur"] = subject.right(images, labels, blur=BLUR)
        if self.baseline is not None:
            found["baseline"] = self.baseline.right(images, labels)
            if self.baseline.has_batch_norm:
                found["baseline, batch norm"] = self.baseline.right(images, labels, reestimate=True)
            found["baseline, blur"] = self.baseline.right(images, labels, blur=BLUR)
        return found

    def swept(self, levels: Sequence[tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
        """For each level of one corruption, (images, labels): `oracle` and `fitted`, and what they chose.

        The line goes through the levels' residuals and their best lambdas by labels, and then chooses by the residual.
        With batch norm estimated again, sweep and line are made anew.
        """
        residuals = [self.subject.residual(images) for images, _ in levels]
        rows: list[dict[str, Any]] = [{"residual": found, "right": {}, "lam": {}} for found in residuals]
        for again in self.again:
            name = ", batch norm" if again else ""
            best = []
            for (images, labels), row in zip(levels, rows, strict=True):
                right = [self.subject.right(images, labels, lam=lam, reestimate=again) for lam in self.lams]
                lam, _ = oracle([float(hits.float().mean()) for hits in right], self.lams)
                row["right"][f"oracle{name}"] = right[self.lams.index(lam)]
                row["lam"][f"oracle{name}"] = lam
                best.append(lam)
            line = fit_line(residuals, best, self.trained)
            for (images, labels), row in zip(levels, rows, strict=True):
                lam = line(row["residual"])
                row["right"][f"fitted{name}"] = self.subject.right(images, labels, lam=lam, reestimate=again)
                row["lam"][f"fitted{name}"] = lam
                row[f"line{name}"] = [line.slope, line.intercept]
        return rows


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
    """Who is right on clean and on corrupted test images, by condition.

    Args:
        kinds: corruptions, as in `core.corrupt.KINDS`, or those of `stored`.
        severities: 1 to 5; or `levels`, in the kinds' own unit.
        images: most test images, drawn by the trial's seed.
        stored: a published set to read the images from, instead of making them.

    Returns JSON-able values: `clean` and, for each kind, `levels`: by condition the share with Wilson's interval.
    """
    seed = trial.seed
    clean, labels, indices = drawn(dataset.test, images, seed)
    result: dict[str, Any] = {"n": len(labels), "clean": shares(trial.unlabelled(clean, labels)), "kinds": {}}
    steps: list[tuple[str, int | None, float | None]] = [
        (kind, severity, level)
        for kind in kinds
        for severity, level in ([(None, v) for v in levels] if levels else [(s, None) for s in severities])
    ]
    swept = isinstance(trial.lam, str) and trial.lam != "none"
    held: list[tuple[Tensor, Tensor]] = [(clean, labels)]
    for kind, severity, level in track(steps, len(steps), "corrupting test images"):
        if stored is not None:
            assert severity is not None
            x, y, _ = drawn(stored.split(kind, severity, dataset.classes), images, seed)
        else:
            x, y = corrupt_images(clean, kind, severity, level=level, seed=seed, indices=indices), labels
        rows = result["kinds"].setdefault(kind, [])
        at = {"severity": severity} if level is None else {"level": level}
        rows.append({**at, "shares": shares(trial.unlabelled(x, y))})
        if swept:
            held.append((x, y))
            if len(rows) == len(levels or severities):
                for row, more in zip(rows, trial.swept(held)[1:], strict=True):
                    row["shares"] |= shares(more.pop("right"))
                    row |= more
                held = held[:1]
    return result


def drawn(split: Any, limit: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most `limit` images of a split, drawn by seed and in that order, since splits often lie sorted by class and a
    batch of one class is no sample: in [0, 1], their labels, and their numbers in the split."""
    rng = torch.Generator().manual_seed(seed_of("robust", seed))
    indices = torch.randperm(len(split), generator=rng)[:limit]
    return split.fetch(indices).float() / 255, split.labels[indices], indices


def summary(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By condition: mean accuracy over all kinds and levels, and mCE against the baseline where there is one.

    The mean corruption error is Hendrycks and Dietterich's (2019): a kind's errors, summed over its
    severities, over those of the baseline, then the mean over kinds; 1 is the baseline itself.
    """
    kinds = result["kinds"]
    names = next(iter(kinds.values()))[0]["shares"]
    made: dict[str, dict[str, Any]] = {}
    for name in names:
        errors = {kind: sum(1 - row["shares"][name]["accuracy"] for row in rows) for kind, rows in kinds.items()}
        accuracy = 1 - sum(errors.values()) / sum(map(len, kinds.values()))
        made[name] = {"accuracy": accuracy}
        if "baseline" in names:
            base = {
                kind: sum(1 - row["shares"]["baseline"]["accuracy"] for row in rows) for kind, rows in kinds.items()
            }
            ratios = [errors[kind] / base[kind] for kind in kinds if base[kind] > 0]
            made[name]["mce"] = sum(ratios) / len(ratios) if ratios else None
    return made
