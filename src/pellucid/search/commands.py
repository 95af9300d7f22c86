"""The command of this folder. Nothing heavy is imported until it runs."""

from __future__ import annotations

import json as json_
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pellucid.core.errors import InputError

if TYPE_CHECKING:
    from pellucid.search.plan import Plan


def search(
    command: str,
    /,
    *,
    grid: str,
    out: str = "study",
    sampler: Literal["grid", "tpe"] = "grid",
    trials: int | None = None,
    storage: str | None = None,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Search the best flags of any command, over a grid or by TPE, by a score that it writes.

    The same command again goes on with the study; as many workers as wanted may do so at once.

    Args:
        command: command to search over, as train or invert; several run one after the other: synthesize+distill.
        grid: YAML file, or a recipe's name, with the plan: grid, fixed, score and direction.
        out: folder of the study: its database, a folder a trial, and best-COMMAND.yaml.
        sampler: grid tries every combination; tpe learns from what it has tried.
        trials: trials of tpe, over all workers; default 20.
        storage: URL of a database that workers on several machines share; default sqlite in the study's folder.
        seed: of tpe.
        json: print the trials as JSON instead of a table.
    """
    from pellucid.core import terminal
    from pellucid.search.plan import read_plan
    from pellucid.search.study import open_study, ranking, terminated_like_interrupted, work

    recipe = Path(__file__).parents[1] / "recipes" / f"{grid}.yaml"
    plan = read_plan(command, str(recipe) if not Path(grid).exists() and recipe.is_file() else grid)
    ranges = [name for name, values in plan.grid.items() if isinstance(values, dict)]
    if sampler == "grid" and (ranges or trials is not None):
        what = f"range, as {ranges[0]} has" if ranges else "--trials"
        raise InputError(f"A grid has no {what}: give --sampler tpe, or lists of values.")
    wanted = len(plan.points()) if sampler == "grid" else 20 if trials is None else trials
    if wanted < 1:
        raise InputError(f"--trials {wanted} is out of range: give at least 1.")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {out!r} is a file: name a folder.")
    with terminated_like_interrupted(), warnings.catch_warnings():
        # Optuna calls signs of life experimental.
        warnings.filterwarnings("ignore", message=".*experimental")
        study = open_study(plan, folder, storage, sampler)
        work(study, plan, folder, wanted, None if sampler == "grid" else seed, json)
    rows = ranking(study, plan)
    if json:
        terminal.say(json_.dumps(rows))
    best = next((row for row in rows if row["scores"]), None)
    if best is None:
        error = rows[0]["error"] if rows else "none has run"
        raise InputError(f"No trial of {command} gave a score, the first one because: {error}")
    lines = _write_best(plan, best, folder)
    if not json:
        _show(rows, plan)
        for line in lines:
            terminal.say(f"Next: {line}")
    return 0


def _write_best(plan: Plan, best: Mapping[str, Any], folder: Path) -> list[str]:
    """Write best-COMMAND.yaml for each command; the words that replay them."""
    import yaml

    from pellucid.core.files.atomic import write_atomic

    lines = []
    for command in plan.commands:
        positional, flags = plan.arguments(command, best["point"], Path(best["folder"]))
        file = folder / f"best-{command}.yaml"
        write_atomic(file, yaml.safe_dump(flags, sort_keys=False))
        out = str(folder / "best" / command)
        lines.append(shlex.join(["pellucid", command, *positional, "--config", str(file), "--out", out]))
    return lines


def _show(rows: list[dict[str, Any]], plan: Plan) -> None:
    from pellucid.core import terminal

    headers = [*plan.grid, *(":".join([file, ".".join(keys)]) for file, keys in plan.scores), "seconds"]
    shown = []
    for row in rows:
        scores = [f"{score:.4g}" for score in row["scores"]] if row["scores"] else ["failed"] * len(plan.scores)
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        shown.append([*(row["point"][name] for name in plan.grid), *scores, seconds])
    terminal.show(f"{'+'.join(plan.commands)}: {len(rows)} trials, best first", headers, shown)
    for row in [row for row in rows if row["error"]][:3]:
        terminal.say(f"Failed: {row['error']} ({row['folder']})")
