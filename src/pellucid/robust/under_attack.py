"""Accuracy under attack."""

from __future__ import annotations

from typing import Any

from pellucid.core.data.dataset import Dataset
from pellucid.robust.measure import Trial, drawn
from pellucid.robust.subject import RAISED, Lam, shares

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
    return {"n": len(labels), **attack, "shares": shares(found)}
