"""Accuracy on adversarial images, by what the attack knew."""

from __future__ import annotations

from typing import Any

from pellucid.core.data.dataset import Dataset
from pellucid.robust.measure import drawn
from pellucid.robust.subject import RAISED, Lam
from pellucid.robust.trial import Trial, accuracies


def under_attack(trial: Trial, dataset: Dataset, *, images: int = 200, **attack: Any) -> dict[str, Any]:
    """Accuracy on adversarial test images, by what the attack knew.

    Row "fixed" is attacked as trained. Where there is a sparse-coding layer, "fixed, lambda raised" classifies the same
    images at a raised lambda (the policy's, else `RAISED` times the trained one); "adaptive, lambda raised" classifies
    images that were made against that lambda; "either" counts an image as correct only if both attacks failed on it. An
    attack that does not know what it attacks proves nothing: where the policy sets lambda by the noise estimated in
    each image, the attack computes it anew in every step, and its gradient goes through the estimate.

    Args:
        trial: the network, its lambda, and the baseline.
        dataset: its test images are attacked.
        images: maximum number of them, sampled by the trial's seed.
        attack: `eps`, `norm`, and `steps` of projected gradient descent (None for one step, the fast gradient sign
            method).

    Returns:
        JSON-able values: "n", the arguments of the attack, and per row the accuracy, under "shares".
    """
    x, labels, indices = drawn(dataset.test, images, trial.seed)
    subject = trial.subject
    if attack.get("steps") is not None:
        attack["seed"] = trial.seed
    fixed = subject.attacked(x, labels, indices, None, **attack)
    found = {"clean": subject.correct(x, labels), "fixed": subject.correct(fixed, labels)}
    if subject.sparse is not None:
        policy: Lam = trial.calibrated.get(False) or (
            trial.lam if isinstance(trial.lam, float) else RAISED * trial.trained
        )
        aware = subject.attacked(x, labels, indices, policy, **attack)
        found["clean, lambda raised"] = subject.correct(x, labels, lam=policy)
        found["fixed, lambda raised"] = subject.correct(fixed, labels, lam=policy)
        found["adaptive, lambda raised"] = subject.correct(aware, labels, lam=policy)
        found["either, lambda raised"] = found["fixed, lambda raised"] & found["adaptive, lambda raised"]
    if trial.baseline is not None:
        found["baseline, clean"] = trial.baseline.correct(x, labels)
        own = trial.baseline.attacked(x, labels, indices, None, **attack)
        found["baseline, fixed"] = trial.baseline.correct(own, labels)
    return {"n": len(labels), **attack, "shares": accuracies(found)}
