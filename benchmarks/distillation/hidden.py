"""The 2020 experiment repeated: a hidden subnetwork inverted by its own statistics, and its student.

    python benchmarks/distillation/hidden.py WORK [SEED ...]

Edge-popup keeps 30 % of never-trained weights (Ramanujan et al. 2020). The 2020 system inverted such a network without
statistics, because of a mistake in its hooks, and found noise. Here images are inverted with the statistics of the
subnetwork itself, at its own keep rate, and of its normalised input (mean 0, variance 1), and without any; a student is
trained on each, next to its controls. WORK keeps what is finished, so that the same command resumes.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.distillation.digits import measure_and_record
from benchmarks.record import mean_and_range, record
from pellucid.distillation.student import distill
from pellucid.distillation.synthesize import synthesize
from pellucid.inversion.presets import recipe

PER_CLASS, STEPS, BATCH = 40, 150, 400
CHOSEN = ("3", "4", "5")  # seeds on which the input's term and the batch were chosen
STUDENT: dict[str, Any] = {"data": "digits", "epochs": 60, "batch_size": 50, "held_out": 0.0, "quiet": True}
TITLES = {
    "statistics": ("inverted by the subnetwork's own statistics and the input's", "at least 93"),
    "none": ("inverted without statistics", ""),
    "noise": ("noise", ""),
    "real 1": ("1 real image of each class", ""),
    "real 10": ("10 real images of each class", ""),
    "random": ("as many random real images", ""),
    "teacher": ("the subnetwork: 30 % of weights that were never trained", ""),
}


def measure(work: Path, seed: int) -> dict[str, float]:
    """Test accuracy of every row in per cent, for one seed."""
    settings = pellucid.TrainSettings(
        model="resnet8", layers="subnet", options={"keep": 0.3}, epochs=25, lr=0.1, batch_size=64, seed=seed
    )
    teacher = pellucid.train(settings, work / f"subnet-{seed}", quiet=True)
    found: dict[str, float] = {}
    base = recipe("gaussian", (1, 8, 8))
    assert base.matching is not None
    own = replace(base, matching=replace(base.matching, input=1.0))
    for name, how in (("statistics", own), ("none", replace(base, matching=None))):
        folder = work / f"{name}-{seed}"
        synthesize(teacher.model, folder, PER_CLASS, preset=how, steps=STEPS, batch_size=BATCH, seed=seed, quiet=True)
        done = distill(
            str(work / f"subnet-{seed}"),
            "conv2",
            folder,
            out=work / f"{name}-{seed}-students",
            seed=seed,
            controls=name == "statistics",
            **STUDENT,
        )
        rows = {row.name: 100 * row.accuracy for row in done.rows}
        found[name] = rows.pop("student")
        found |= {key: value for key, value in rows.items() if key not in found}
    return found


def main() -> None:
    found, facts = measure_and_record("hidden", TITLES, measure, images=10 * PER_CLASS, steps=STEPS)
    held = {seed: f["statistics"] for seed, f in zip(facts["seeds"].split(), found, strict=True) if seed not in CHOSEN}
    if held:
        claim = f"{TITLES['statistics'][0]}, seeds that no setting was chosen on"
        facts |= {"n": len(held), "seeds": " ".join(held), "interval_is": f"mean, range of {len(held)} seeds"}
        record("distillation/hidden-held", claim, "", mean_and_range(list(held.values())), **facts)


if __name__ == "__main__":
    main()
