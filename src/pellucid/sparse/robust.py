"""How much of its accuracy a network keeps on corrupted and adversarial images: as it is, with lambda raised, and with
what a sceptic would try first (batch norm estimated again, a light blur, a plain network of equal training)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pellucid.core.attack import fgsm, normalised, pgd
from pellucid.core.corrupt import corrupt
from pellucid.core.corrupt.published import CorruptedSet
from pellucid.core.corrupt.resample import gaussian
from pellucid.core.data import Dataset
from pellucid.core.errors import InputError
from pellucid.core.metrics import normalization, wilson
from pellucid.core.progress import track
from pellucid.core.reestimate import reestimated
from pellucid.core.seeds import seed_of
from pellucid.core.statistics import BATCH_NORMS
from pellucid.sparse.adapt import (
    FACTORS,
    SIGMAS,
    Adaptive,
    calibrate,
    fit_line,
    lam_at,
    oracle,
    residual,
    sparse_layer,
    trained_lam,
)

Policy = Literal["none", "fitted", "adaptive", "oracle"]
Lam = float | Callable[[Tensor], Tensor] | None

BLUR = 0.6  # pixels: what the light blur of the control blurs by
CALIBRATION = 256  # clean images that lambda is calibrated on
RAISED = 4.0  # times the trained lambda, where an attack meets a raised one and the policy names none


# --- one network ---


@dataclass
class Subject:
    """A network with what is done to it, and to its images, before it answers.

    model: in evaluation mode on `device`; norm: {"mean", "std"} of its input; batch: images that are answered
    together, over which batch norm is estimated again.
    """

    model: nn.Module
    norm: dict[str, Any]
    device: str = "cpu"
    batch: int = 250
    sparse: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        try:
            self.sparse = sparse_layer(self.model)
        except InputError:
            self.sparse = None

    @property
    def has_batch_norm(self) -> bool:
        return any(isinstance(m, BATCH_NORMS) and m.running_mean is not None for m in self.model.modules())

    def chunks(self, images: Tensor) -> Iterator[Tensor]:
        """Equal parts of at most `batch` images."""
        yield from images.tensor_split(max(1, math.ceil(len(images) / self.batch)))

    def scaled(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the network wants them, on its device."""
        centre, scale = (torch.tensor(self.norm[key]).view(-1, 1, 1) for key in ("mean", "std"))
        return ((images - centre) / scale).to(self.device)

    @torch.no_grad()
    def logits(self, images: Tensor, *, lam: Lam = None, reestimate: bool = False, blur: float = 0.0) -> Tensor:
        """(B, K) on the CPU for images (B, C, H, W) in [0, 1].

        lam: of the first sparse layer: a number, a function of the images to one for each, or None for its own.
        reestimate: normalise each batch by its own statistics.
        blur: standard deviation in pixels of a Gaussian filter before all else.
        """
        found = []
        for chunk in self.chunks(images):
            chunk = gaussian(chunk, blur) if blur else chunk
            chosen = lam(chunk).to(self.device) if callable(lam) else lam
            x = self.scaled(chunk)
            with lam_at(self.sparse, chosen):
                if reestimate:
                    with reestimated(self.model, x):
                        found.append(self.model(x))
                else:
                    found.append(self.model(x))
        return torch.cat(found).float().cpu()

    def right(self, images: Tensor, labels: Tensor, **how: Any) -> Tensor:
        """(B,) whether each answer is right; `how` as in `logits`."""
        return self.logits(images, **how).argmax(1) == labels

    def residual(self, images: Tensor) -> float:
        """Mean over the images of the sparse layer's residual at its own lambda."""
        return float(torch.cat([residual(self.sparse, self.scaled(chunk)) for chunk in self.chunks(images)]).mean())

    def attacked(
        self, images: Tensor, labels: Tensor, indices: Tensor, lam: float | Tensor | None, **attack: Any
    ) -> Tensor:
        """Adversarial images against the network at `lam`: a number, (B,) numbers, or None for its own."""
        made, steps = [], attack.pop("steps", None)
        parts = max(1, math.ceil(len(images) / self.batch))
        model = normalised(self.model, self.norm["mean"], self.norm["std"])
        lams = lam.tensor_split(parts) if isinstance(lam, Tensor) else [lam] * parts
        rows = (images.tensor_split(parts), labels.tensor_split(parts), indices.tensor_split(parts), lams)
        for x, y, numbers, chosen in track(zip(*rows, strict=True), parts, "attacking test images"):
            with lam_at(self.sparse, chosen):
                x, y = x.to(self.device), y.to(self.device)
                if steps is None:
                    made.append(fgsm(model, x, y, **attack).cpu())
                else:
                    made.append(pgd(model, x, y, steps=steps, indices=numbers, **attack).cpu())
        return torch.cat(made)


# --- what is measured ---


def share(right: Tensor) -> dict[str, Any]:
    correct, n = int(right.sum()), len(right)
    return {"correct": correct, "n": n, "accuracy": correct / n, "interval": list(wilson(correct, n))}


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
    result: dict[str, Any] = {"n": len(labels), "clean": _shares(trial.unlabelled(clean, labels)), "kinds": {}}
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
            x, y = corrupt(clean, kind, severity, level=level, seed=seed, indices=indices), labels
        rows = result["kinds"].setdefault(kind, [])
        at = {"severity": severity} if level is None else {"level": level}
        rows.append({**at, "shares": _shares(trial.unlabelled(x, y))})
        if swept:
            held.append((x, y))
            if len(rows) == len(levels or severities):
                for row, more in zip(rows, trial.swept(held)[1:], strict=True):
                    row["shares"] |= _shares(more.pop("right"))
                    row |= more
                held = held[:1]
    return result


def drawn(split: Any, limit: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most `limit` images of a split, drawn by seed and in that order, since splits often lie sorted by class and a
    batch of one class is no sample: in [0, 1], their labels, and their numbers in the split."""
    rng = torch.Generator().manual_seed(seed_of("robust", seed))
    indices = torch.randperm(len(split), generator=rng)[:limit]
    return split.fetch(indices).float() / 255, split.labels[indices], indices


def _shares(right: dict[str, Tensor]) -> dict[str, Any]:
    return {name: share(hits) for name, hits in right.items()}


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


# --- attacks ---


def under_attack(trial: Trial, dataset: Dataset, *, images: int = 200, **attack: Any) -> dict[str, Any]:
    """Accuracy on adversarial test images, by what the attack knew.

    "fixed" was made against the network as trained. Where there is a sparse layer, "fixed, lambda raised" meets the
    same images at a raised lambda (the policy's, else `RAISED` times the trained one); "adaptive, lambda raised" was
    made at that lambda; "either" counts an image only if both failed to turn it. An attack that does not know what it
    attacks proves nothing.

    attack: `eps`, `norm`, and `steps` for projected gradient descent, without which it is one step.
    """
    x, labels, indices = drawn(dataset.test, images, trial.seed)
    subject = trial.subject
    if attack.get("steps") is not None:
        attack["seed"] = trial.seed
    fixed = subject.attacked(x, labels, indices, None, **attack)
    found = {"clean": subject.right(x, labels), "fixed": subject.right(fixed, labels)}
    if subject.sparse is not None:
        policy: Lam = trial.calibrated.get(False) or (
            trial.lam if isinstance(trial.lam, float) else RAISED * trial.trained
        )
        at = policy(fixed) if callable(policy) else policy
        met = subject.attacked(x, labels, indices, at, **attack)
        found["clean, lambda raised"] = subject.right(x, labels, lam=policy)
        found["fixed, lambda raised"] = subject.right(fixed, labels, lam=policy)
        found["adaptive, lambda raised"] = subject.right(met, labels, lam=policy)
        found["either, lambda raised"] = found["fixed, lambda raised"] & found["adaptive, lambda raised"]
    if trial.baseline is not None:
        found["baseline, clean"] = trial.baseline.right(x, labels)
        own = trial.baseline.attacked(x, labels, indices, None, **attack)
        found["baseline, fixed"] = trial.baseline.right(own, labels)
    return {"n": len(labels), **attack, "shares": _shares(found)}


def subject_of(model: nn.Module, dataset: Dataset, device: str = "cpu", batch: int = 250) -> Subject:
    """`model` with the normalisation that it or its data knows, in evaluation mode on the device."""
    return Subject(model.to(device).eval(), normalization(model, dataset), device, batch)
