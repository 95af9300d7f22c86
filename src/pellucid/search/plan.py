"""What is searched: commands, the values of their flags, and what to read of what they write."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pellucid.core.errors import InputError, first_line

KEYS = ("grid", "fixed", "score", "direction")


@dataclass(frozen=True)
class Plan:
    """What is searched: see the module. grid: values, or a range, of each flag. scores: (file, keys) each."""

    commands: tuple[str, ...]
    grid: dict[str, Any]
    fixed: dict[str, Any]
    scores: tuple[tuple[str, tuple[str, ...]], ...]
    direction: Literal["maximize", "minimize"]

    def points(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def arguments(self, command: str, point: Mapping[str, Any], folder: Path) -> tuple[list[str], dict[str, Any]]:
        """Positional arguments and flags of one command of the trial in `folder`, but for --out."""
        order = parameters(command)
        found: dict[str, Any] = {}
        for name, value in {**self.fixed, **point}.items():
            owner, _, own = _owner(name, self.commands)
            if owner == command or (owner is None and (own in order or len(self.commands) == 1)):
                found[own] = _placed(value, {c: folder / c for c in self.commands})
        return [str(found.pop(name)) for name, first in order.items() if first and name in found], found

    def scores_of(self, folder: Path) -> list[float]:
        """The scores that the trial's commands wrote; each file is looked for in the last command's folder first."""
        found = []
        for file, keys in self.scores:
            paths = [folder / command / file for command in reversed(self.commands)]
            path = next((path for path in paths if path.is_file()), None)
            if path is None:
                raise InputError(f"no {file!r} was written in {str(folder)!r}")
            value = json.loads(path.read_text())
            try:
                for key in keys:
                    value = value[int(key)] if isinstance(value, list) else value[key]
                found.append(float(value))
            except (KeyError, IndexError, TypeError, ValueError):
                raise InputError(f"{str(path)!r} holds no number at {'.'.join(keys)!r}") from None
        return found


def read_plan(commands: str, path: str) -> Plan:
    """The plan in the YAML file `path` for commands joined by `+`.

    Raises:
        InputError: no such file or command, or a plan that is none.
    """
    import yaml

    from pellucid.cli import COMMANDS

    names = tuple(commands.split("+"))
    for name in names:
        if name not in COMMANDS or name == "search":
            raise InputError(f"There is no command {name!r} to search: the commands are {', '.join(COMMANDS)}.")
    if len(set(names)) < len(names):
        raise InputError(f"{commands!r} names a command twice: a trial runs each once.")
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path!r} cannot be read as YAML ({first_line(error)}).") from None
    if not isinstance(content, dict) or not {"grid", "score"} <= set(content) <= set(KEYS):
        raise InputError(f"{path!r} is no plan: it holds grid and score, and perhaps fixed and direction, alone.")
    grid, fixed, direction = content["grid"], content.get("fixed") or {}, content.get("direction", "maximize")
    if not isinstance(grid, dict) or not grid or not isinstance(fixed, dict):
        raise InputError(f"{path!r}: grid and fixed are tables of flags, grid with at least one.")
    if direction not in ("maximize", "minimize"):
        raise InputError(f"{path!r}: direction is {direction!r}; it must be maximize or minimize.")
    for name, values in grid.items():
        if not _is_range(values) and not (isinstance(values, list) and values):
            raise InputError(f"{path!r}: {name} is {values!r}; give a list of values, or a range {{low, high}}.")
    for name in (*grid, *fixed):
        owner, _, own = _owner(str(name), names)
        if owner is None and len(names) > 1 and not any(own in parameters(command) for command in names):
            raise InputError(f"{path!r}: {commands} have no flag {name!r}: name its command too, as {names[0]}.{name}.")
    scores = []
    for text in content["score"] if isinstance(content["score"], list) else [content["score"]]:
        file, _, keys = str(text).partition(":")
        if not file or not keys or Path(file).is_absolute() or ".." in Path(file).parts:
            raise InputError(f"{path!r}: score {text!r} is not FILE.json:KEY.KEY, of a file that the command writes.")
        scores.append((file, tuple(keys.split("."))))
    return Plan(names, grid, fixed, tuple(scores), direction)


def parameters(command: str) -> dict[str, bool]:
    """The parameters of a command, fields of its settings among them: whether each is positional."""
    from pellucid import cli

    function = cli.command(command)
    kinds = typing.get_type_hints(function)
    found: dict[str, bool] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(kinds[name]):
            found |= dict.fromkeys((field.name for field in dataclasses.fields(kinds[name])), False)
        else:
            found[name] = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
    return found


def _owner(name: str, commands: tuple[str, ...]) -> tuple[str | None, str, str]:
    """`synthesize.lr` is the flag `lr` of `synthesize`; without a command's name, of whoever has it."""
    owner, dot, own = name.partition(".")
    return (owner, dot, own.replace("-", "_")) if dot and owner in commands else (None, "", name.replace("-", "_"))


def _is_range(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and {"low", "high"} <= set(values) <= {"low", "high", "log", "int"}
        and all(isinstance(values[key], int | float) for key in ("low", "high"))
        and values["low"] < values["high"]
    )


def _placed(value: Any, folders: Mapping[str, Path]) -> Any:
    """`value` with the folders of the trial's commands where their names stand in braces."""
    if isinstance(value, str):
        for name, folder in folders.items():
            value = value.replace("{" + name + "}", str(folder))
    return [_placed(item, folders) for item in value] if isinstance(value, list) else value
