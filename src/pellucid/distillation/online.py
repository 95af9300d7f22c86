"""Synthesis that alternates with training: each round makes images on which teacher and current student disagree.

Adaptive DeepInversion (Yin et al. 2020, section 3.3) with the student that is being trained. The first round inverts
the teacher alone. Every later round adds the Jensen-Shannon term with the student of the round before, which is then
trained further on the images of all rounds so far. A round is a folder of images and a run, so a stopped call continues
where it was.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pellucid.core.data.dataset import Dataset
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.given import as_dataset
from pellucid.core.network.checkpoint import save
from pellucid.core.source import Named, normalization_flags, open_network
from pellucid.distillation.student import SCHEDULE, Distilled, as_stored, distill
from pellucid.distillation.synthesize import shape_of, synthesize
from pellucid.inversion.objective import Disagreement
from pellucid.inversion.presets import Recipe, recipe


def distill_online(
    teacher: Named,
    student: str,
    rounds: int,
    per_class: int,
    *,
    out: str | os.PathLike[str] = "students",
    preset: str | Recipe = "gaussian",
    steps: int | None = None,
    disagreement: float = 1.0,
    synthesis_batch: int = 100,
    controls: bool = True,
    quiet: bool = False,
    **common: Any,
) -> Distilled:
    """Train `student` in `rounds`, each of which adds `per_class` images per class.

    Args:
        teacher, student, out, controls, quiet: as in `student.distill`.
        rounds: number of rounds; at least 1.
        per_class: number of images per class made in each round.
        preset, steps: recipe of the images, and number of steps if not the recipe's.
        disagreement: weight of the Jensen-Shannon term from the second round on.
        synthesis_batch: number of images inverted together.
        common: further arguments of `student.distill`, its `data` among them.

    Returns:
        As `distill`, with the student of the last round. The controls train for as many epochs as all rounds together.

    Raises:
        InputError: as `distill` and `synthesize`.
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}: give at least 1.")
    if rounds > 1 and common.get("data") is None:  # before the first round, not after it
        raise InputError("Students of several rounds need real data to be tested on: name it with data=.")
    path = Path(out)
    mean, std = common.get("mean"), common.get("std")
    teacher, model, mean, std = as_stored(teacher, common.get("teacher_model"), mean, std, common.get("seed", 0))
    common |= {"teacher_model": model, "mean": mean, "std": std}
    if isinstance(teacher, nn.Module):
        save(teacher, path / "teacher.safetensors")
        teacher = path / "teacher.safetensors"
    network = open_network(teacher, model, fallback=normalization_flags(mean, std), normalized=True).model
    if (data := common.get("data")) is not None and not isinstance(data, str | Dataset):
        common["data"] = as_dataset(data, facts(network))  # once: an iterable may be used up by the first round
    size = shape_of(network)
    folders: list[Path] = []
    current: nn.Module | None = None
    for number in range(rounds):
        found = recipe(preset, size) if isinstance(preset, str) else preset
        if current is not None:
            found = replace(found, disagreement=Disagreement(weight=disagreement))
        folders.append(path / f"images-{number + 1}")
        synthesize(
            network,
            folders[-1],
            per_class,
            preset=found,
            steps=steps,
            batch_size=synthesis_batch,
            seed=common.get("seed", 0) * rounds + number,
            verifier=current,
            device=common.get("device", "auto"),
            quiet=quiet,
        )
        last = number == rounds - 1
        done = distill(
            teacher,
            student,
            folders,
            out=path if last else path / f"round-{number + 1}",
            controls=controls and last,
            control_epochs=rounds * common.get("epochs", SCHEDULE["epochs"]),
            init=None if number == 0 else str(path / f"round-{number}" / "student"),
            quiet=quiet,
            **common,
        )
        current = done.student
    return done
