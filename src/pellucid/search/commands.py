"""The command `search`. Nothing heavy is imported until it runs."""

from __future__ import annotations

import json as json_
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pellucid.core.errors import InputError, WorkFailed, near, shown
from pellucid.core.ranges import Count, Seed

if TYPE_CHECKING:
    from pellucid.search.plan import Plan

MOST = 100_000  # points of a grid: each is a trial in a process of its own
WRITTEN = "# The best trial of pellucid search."  # first line of best-COMMAND.yaml


def search(
    command: str,
    /,
    *,
    grid: str,
    out: str = "study",
    sampler: Literal["grid", "tpe"] = "grid",
    trials: Count | None = None,
    storage: str | None = None,
    seed: Seed = 0,
    code: list[str] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Search for the best flags of any command, on a grid or by TPE, ranked by a score that the command writes.

    Running the same command again continues the study; any number of workers may do so at the same time.

    Args:
        command: command to search over, such as train or invert; joined by + several run one after the other, as in
            synthesize+distill.
        grid: YAML file, or name of a recipe, with the plan: grid, fixed, score and direction.
        out: folder of the study: its database, one folder per trial, and best-COMMAND.yaml.
        sampler: grid tries every combination; tpe chooses each trial by the scores so far.
        trials: number of trials of tpe, over all workers; default 20.
        storage: URL of a database that workers on several machines share; default sqlite in the study's folder.
        seed: seed of tpe.
        code: your own code, FILE.py:FACTORY, that the plan may name as a model; a plan alone runs none.
        overwrite: replace files at --out that this command did not write.
        quiet: print nothing but errors.
        json: print the table as one JSON object, and nothing else.
    """
    from pellucid.core import terminal
    from pellucid.core.files.ours import begins, check_outputs, outputs
    from pellucid.search.plan import read_plan
    from pellucid.search.study import open_study, quiet_optuna, ranking, terminated_like_interrupted, work

    plan = read_plan(command, _file_of(grid), code or ())
    ranges = [name for name, values in plan.grid.items() if isinstance(values, dict)]
    if sampler == "grid" and (ranges or trials is not None):
        what = f"the range of {ranges[0]}" if ranges else "--trials"
        raise InputError(f"--sampler grid cannot use {what}: give --sampler tpe, or only lists of values.")
    if sampler == "grid" and plan.size > MOST:
        raise InputError(
            f"The grid has {plan.size} points, more than {MOST}: give fewer values, or try some points with --sampler "
            "tpe --trials N."
        )
    wanted = plan.size if sampler == "grid" else 20 if trials is None else trials
    folder = Path(out)
    best_files = {f"best-{name}.yaml": begins(WRITTEN) for name in plan.commands}
    check_outputs(outputs(folder, best_files), overwrite, command="search", sources=[grid])
    with terminated_like_interrupted(), quiet_optuna():
        study = open_study(plan, folder, storage, sampler)
        work(study, plan, folder, wanted, None if sampler == "grid" else seed, quiet or json)
        rows = ranking(study, plan)
    best = next((row for row in rows if row["scores"]), None)
    lines = [] if best is None else _write_best(plan, best, folder)
    if json:
        about = {"command": command, "direction": plan.direction, "scores": _score_names(plan)}
        terminal.say(json_.dumps({**about, "trials": rows, "next": lines}))
    elif best is not None and not quiet:
        _show(rows, plan)
        for line in lines:
            terminal.say(f"Next: {line}")
    if best is None:
        error = rows[0]["error"] if rows else "no trial has run"
        raise WorkFailed(f"No trial of {command} gave a score; the first failed because: {error}")
    return 0


def _file_of(grid: str) -> str:
    """The file that --grid names: itself, or that of a recipe of this package."""
    recipes = {file.stem: file for file in (Path(__file__).parents[1] / "recipes").glob("search-*.yaml")}
    if os.path.lexists(grid):
        return grid
    if grid in recipes:
        return str(recipes[grid])
    hint = near(grid, recipes, limit=0) or f"give a YAML file with a plan, or a recipe such as {min(recipes)}."
    raise InputError(f"--grid {shown(grid)} is neither a file nor a recipe: {hint}")


def _score_names(plan: Plan) -> list[str]:
    """The scores as the plan writes them: FILE.json:KEY.KEY."""
    return [":".join([file, ".".join(keys)]) for file, keys in plan.scores]


def _write_best(plan: Plan, best: Mapping[str, Any], folder: Path) -> list[str]:
    """Write best-COMMAND.yaml for each command, and return the command lines that replay them."""
    import yaml

    from pellucid.core.files.atomic import write_atomic

    lines = []
    for command in plan.commands:
        positional, flags = plan.arguments(command, best["point"], Path(best["folder"]))
        file = folder / f"best-{command}.yaml"
        write_atomic(file, f"{WRITTEN}\n{yaml.safe_dump(flags, sort_keys=False)}")
        out = str(folder / "best" / command)
        lines.append(shlex.join(["pellucid", command, *positional, "--config", str(file), "--out", out]))
    return lines


def _show(rows: list[dict[str, Any]], plan: Plan) -> None:
    from pellucid.core import terminal

    headers = [*plan.grid, *_score_names(plan), "seconds"]
    shown = []
    for row in rows:
        scores = [f"{score:.4g}" for score in row["scores"]] if row["scores"] else ["failed"] * len(plan.scores)
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        shown.append([*(row["point"][name] for name in plan.grid), *scores, seconds])
    terminal.show(f"{'+'.join(plan.commands)}: {len(rows)} trials, best first", headers, shown)
    for row in [row for row in rows if row["error"]][:3]:
        terminal.say(f"Failed: {row['error']} ({row['folder']})")
