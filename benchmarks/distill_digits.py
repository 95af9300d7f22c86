"""A student of digits without a digit: what the statistics of a whitening network are worth, beside every control.

    python benchmarks/distill_digits.py WORK [SEED ...]

For each seed a whitening teacher is trained, images are inverted from it with full covariances, with variances alone
and with no statistics, and a student of the same architecture, without whitening, learns from each. WORK keeps what is
finished, so that the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import pellucid
from pellucid.distillation.student import distill
from pellucid.distillation.synthesize import synthesize
from pellucid.inversion.presets import recipe
from results import record

PER_CLASS, STEPS, EPOCHS = 10, 100, 100
STUDENT: dict[str, Any] = {"data": "digits", "epochs": EPOCHS, "batch_size": 50, "quiet": True}
SAID = {
    "covariance": ("synthesised, full covariance", "at least 90, 3 above variances"),
    "variance": ("synthesised, variances alone", ""),
    "none": ("synthesised, no statistics", ""),
    "noise": ("noise", ""),
    "real 1": ("1 real image of each class", ""),
    "real 10": ("10 real images of each class", ""),
    "random": ("as many random real images", ""),
    "teacher": ("the teacher", ""),
}


def measure(work: Path, seed: int) -> dict[str, float]:
    """Test accuracy in per cent of every row for one seed."""
    settings = pellucid.TrainSettings(model="conv2", layers="deconv", epochs=15, lr=0.03, batch_size=64, seed=seed)
    teacher = pellucid.train(settings, work / f"teacher-{seed}", quiet=True)
    base = recipe("gaussian", (1, 8, 8))
    assert base.matching is not None
    recipes = {
        "covariance": base,
        "variance": replace(base, matching=replace(base.matching, covariance=False)),
        "none": replace(base, matching=None),
    }
    found: dict[str, float] = {}
    for name, own in recipes.items():
        folder = work / f"{name}-{seed}"
        synthesize(teacher.model, folder, PER_CLASS, preset=own, steps=STEPS, batch_size=100, seed=seed, quiet=True)
        done = distill(
            str(work / f"teacher-{seed}"),
            "conv2",
            folder,
            out=work / f"{name}-{seed}-students",
            seed=seed,
            controls=name == "covariance",
            **STUDENT,
        )
        rows = {row.name: 100 * row.accuracy for row in done.rows}
        found[name] = rows.pop("student")
        found |= {key: value for key, value in rows.items() if key not in found}
    return found


def mean(values: Sequence[float]) -> tuple[float, float, float]:
    return sum(values) / len(values), min(values), max(values)


Found = list[dict[str, float]]


def tabulate(
    prefix: str, said: dict[str, tuple[str, str]], measure: Callable[[Path, int], dict[str, float]], **facts: Any
) -> tuple[Found, dict[str, Any]]:
    """Measure the rows of `said` for every seed of the command line, record them; the rows by seed, and the facts."""
    torch.set_num_threads(1)
    work, seeds = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or [0, 1, 2]
    found = []
    for seed in seeds:
        found.append(measure(work, seed))
        print(f"seed {seed}:", {name: round(value, 1) for name, value in found[-1].items()}, flush=True)
    facts = {
        "n": len(seeds),
        "unit": "%",
        "seeds": " ".join(map(str, seeds)),
        **facts,
        "interval_is": f"mean, range of {len(seeds)} seeds",
    }
    for name, (claim, claimed) in said.items():
        record(f"{prefix}-{name.replace(' ', '-')}", claim, claimed, mean([f[name] for f in found]), **facts)
    return found, facts


def main() -> None:
    found, facts = tabulate("distill-digits", SAID, measure, images=10 * PER_CLASS, steps=STEPS)
    gaps = [f["covariance"] - f["variance"] for f in found]
    record("distill-digits-gap", "full covariance above variances, points", "at least 3", mean(gaps), **facts)


if __name__ == "__main__":
    main()
