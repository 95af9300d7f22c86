"""A student of digits trained without a digit: what a whitening network's statistics gain, next to every control.

    python benchmarks/distillation/digits.py WORK [SEED ...]

For each seed a whitening teacher is trained; images are inverted from it with full covariances, with variances alone
and without statistics; and a student of the same architecture, without whitening, is trained on each set. WORK keeps
what is finished, so that the same command resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import Row, mean_and_range, record, run_rows
from pellucid.distillation.student import distill
from pellucid.distillation.synthesize import synthesize
from pellucid.inversion.presets import recipe

PER_CLASS, STEPS, EPOCHS = 10, 100, 100
STUDENT: dict[str, Any] = {"data": "digits", "epochs": EPOCHS, "batch_size": 50, "held_out": 0.0, "quiet": True}
TITLES = {
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
    """Test accuracy of every row in per cent, for one seed."""
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


def measure_and_record(
    name: str, titles: dict[str, tuple[str, str]], measure: Callable[[Path, int], dict[str, float]], **facts: Any
) -> tuple[list[Row], Row]:
    """Measure the rows of `titles` for every seed of the command line, and record them.

    Args:
        name: the log is WORK/NAME.jsonl, a result is distillation/NAME-ROW
        titles: row -> what it is, and what is claimed of it

    Returns:
        the rows' accuracies in per cent, one dictionary per seed, and the facts that every result states
    """
    torch.set_num_threads(1)
    work, seeds = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or [0, 1, 2]
    found = run_rows(work / f"{name}.jsonl", [{"seed": seed} for seed in seeds], lambda seed: measure(work, seed))
    facts = {
        "n": len(seeds),
        "unit": "%",
        "seeds": " ".join(map(str, seeds)),
        **facts,
        "interval_is": f"mean, range of {len(seeds)} seeds",
    }
    for row, (claim, claimed) in titles.items():
        accuracies = [f[row] for f in found]
        record(f"distillation/{name}-{row.replace(' ', '-')}", claim, claimed, mean_and_range(accuracies), **facts)
    return found, facts


def main() -> None:
    found, facts = measure_and_record("digits", TITLES, measure, images=10 * PER_CLASS, steps=STEPS)
    gaps = mean_and_range([f["covariance"] - f["variance"] for f in found])
    record("distillation/digits-gap", "full covariance above variances, points", "at least 3", gaps, **facts)


if __name__ == "__main__":
    main()
