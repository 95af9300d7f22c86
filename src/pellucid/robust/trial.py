"""One network under every remedy: as it is, with lambda raised, batch norm re-estimated, images blurred, a baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from pellucid.core.measure.share import Share
from pellucid.robust.subject import BLUR, Policy, Subject
from pellucid.sparse.adapt import FACTORS, SIGMAS, Adaptive, calibrate, fit_line, oracle, sparse_layer, trained_lam


@dataclass
class Trial:
    """One network and the remedies to try on it.

    Attributes:
        subject: the network.
        lam: how lambda is chosen at test time: a policy, or a number; the policies need a sparse-coding layer.
        clean: (B, C, H, W) in [0, 1], unlabelled training images, on which `adaptive` is calibrated.
        baseline: another network to classify the same images.
        seed: of calibration noise, samples and attacks.
        combined: also try each policy together with re-estimated batch norm.
        sigmas: standard deviations of the noise that `adaptive` is calibrated with, the first 0.
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
            sparse_layer(self.subject.model)  # raises the error that there is none
        if not isinstance(self.lam, str):
            self.lam = float(self.lam)
        if self.lam == "adaptive":
            assert self.clean is not None
            for again in self.again:
                logits = partial(self.subject.logits, reestimate=again)
                self.calibrated[again] = calibrate(logits, self.clean, self.trained, sigmas=self.sigmas, seed=self.seed)

    @property
    def again(self) -> tuple[bool, ...]:
        """Whether batch norm is re-estimated where a policy is tried: both ways, or only without."""
        return (False, True) if self.combined and self.subject.has_batch_norm else (False,)

    @property
    def lams(self) -> list[float]:
        """The lambdas among which `oracle` chooses."""
        return [self.trained * factor for factor in FACTORS]

    def without_labels(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Per remedy that does not use these images' labels: (B,) whether each prediction is correct."""
        subject = self.subject
        found = {"none": subject.correct(images, labels)}
        for again in self.again:
            name = ", batch norm" if again else ""
            if isinstance(self.lam, float):
                found[f"lambda {self.lam:g}{name}"] = subject.correct(images, labels, lam=self.lam, reestimate=again)
            elif again in self.calibrated:
                found[f"adaptive{name}"] = subject.correct(images, labels, lam=self.calibrated[again], reestimate=again)
        if subject.has_batch_norm:
            found["batch norm"] = subject.correct(images, labels, reestimate=True)
        found["blur"] = subject.correct(images, labels, blur=BLUR)
        if self.baseline is not None:
            found["baseline"] = self.baseline.correct(images, labels)
            if self.baseline.has_batch_norm:
                found["baseline, batch norm"] = self.baseline.correct(images, labels, reestimate=True)
            found["baseline, blur"] = self.baseline.correct(images, labels, blur=BLUR)
        return found

    def with_labels(
        self, levels: Sequence[tuple[Tensor, Tensor]], others: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> list[dict[str, Any]]:
        """`oracle` and `fitted` on each level (images, labels) of one corruption.

        `oracle` takes the lambda of highest accuracy on these very images: an upper bound, no result. `fitted` is the
        line through residuals and lambdas of highest accuracy on `others`, other images at the same levels, evaluated
        at the residual of these; without `others` it is left out. With batch norm re-estimated, both are determined
        anew.

        Returns:
            Per level: "residual", "correct" (policy -> (B,) bool), "lam" (policy -> number), "line" [slope, intercept].
        """
        residuals = [self.subject.residual(images) for images, _ in levels]
        elsewhere = [self.subject.residual(images) for images, _ in others]
        rows: list[dict[str, Any]] = [{"residual": found, "correct": {}, "lam": {}} for found in residuals]
        for again in self.again:
            name = ", batch norm" if again else ""
            for (images, labels), row in zip(levels, rows, strict=True):
                lam, hits = self._best(images, labels, again)
                row["correct"][f"oracle{name}"], row["lam"][f"oracle{name}"] = hits, lam
            if not others:
                continue
            line = fit_line(elsewhere, [self._best(*level, again)[0] for level in others], self.trained)
            for (images, labels), row in zip(levels, rows, strict=True):
                lam = line(row["residual"])
                row["correct"][f"fitted{name}"] = self.subject.correct(images, labels, lam=lam, reestimate=again)
                row["lam"][f"fitted{name}"] = lam
                row[f"line{name}"] = [line.slope, line.intercept]
        return rows

    def _best(self, images: Tensor, labels: Tensor, again: bool) -> tuple[float, Tensor]:
        """The lambda of highest accuracy, and (B,) whether each prediction is correct with it."""
        hits = [self.subject.correct(images, labels, lam=lam, reestimate=again) for lam in self.lams]
        lam, _ = oracle([float(one.float().mean()) for one in hits], self.lams)
        return lam, hits[self.lams.index(lam)]


def accuracies(correct: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Per remedy the accuracy as JSON: "correct", "n", "accuracy" and Wilson's "interval"."""
    return {name: Share.of(hits).to_json() for name, hits in correct.items()}
