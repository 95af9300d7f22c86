"""The plan of a search: the commands, the values of their flags, and the scores to read from what they write."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pellucid.core.errors import InputError, near, plain_text, shown
from pellucid.core.files.structured import read_json, read_yaml
from pellucid.core.references import refuse_code
from pellucid.core.registry import Registry, place
from pellucid.search.tested import refuse_tested

KEYS = ("grid", "fixed", "score", "direction")
CHOICES = {  # flags that name something with options of its own, each a flag too
    "layers": "pellucid.core.network.rules:RULES",
    "objective": "pellucid.core.train.objective:OBJECTIVES",
}
COMMANDS: Registry[Callable[..., int]] = Registry("command", own="COMMANDS")


@dataclass(frozen=True)
class Plan:
    """A plan as `pellucid.search` describes it.

    grid: a list of values, or a range, for each flag
    fixed: the value of every other flag that is set
    scores: each as (file, keys of the number in it)
    """

    commands: tuple[str, ...]
    grid: dict[str, Any]
    fixed: dict[str, Any]
    scores: tuple[tuple[str, tuple[str, ...]], ...]
    direction: Literal["maximize", "minimize"]

    @property
    def size(self) -> int:
        """The number of combinations of the values in the grid."""
        return math.prod(map(len, self.grid.values()))

    def point(self, number: int) -> dict[str, Any]:
        """Combination `number` of the values in the grid; the last flag changes fastest."""
        found = {}
        for name, values in reversed(self.grid.items()):
            number, place = divmod(number, len(values))
            found[name] = values[place]
        return dict(reversed(found.items()))

    def arguments(self, command: str, point: Mapping[str, Any], folder: Path) -> tuple[list[str], dict[str, Any]]:
        """Positional arguments and flags, except --out, of one command of the trial in `folder`."""
        order = parameters(command)
        found: dict[str, Any] = {}
        for name, value in {**self.fixed, **point}.items():
            owner, _, own = _owner(name, self.commands)
            if owner == command or (owner is None and (own in order or len(self.commands) == 1)):
                found[own] = _placed(value, {c: folder / c for c in self.commands})
        return [str(found.pop(name)) for name, first in order.items() if first and name in found], found

    def scores_of(self, folder: Path) -> list[float]:
        """Read the scores that the trial's commands wrote; a file is looked up in the last command's folder first."""
        found = []
        for file, keys in self.scores:
            paths = [folder / command / file for command in reversed(self.commands)]
            path = next((path for path in paths if path.is_file()), None)
            if path is None:
                raise InputError(f"no {file!r} was written in {str(folder)!r}: check score in the plan")
            value = read_json(path, Any)
            try:
                for key in keys:
                    value = value[int(key)] if isinstance(value, list) else value[key]
                found.append(float(value))
            except (KeyError, IndexError, TypeError, ValueError):
                raise InputError(
                    f"{str(path)!r} has no number at {'.'.join(keys)!r}: check score in the plan"
                ) from None
        return found


def read_plan(commands: str, path: str, code: Sequence[str] = ()) -> Plan:
    """Read the plan in the YAML file `path` for commands joined by `+`.

    Args:
        commands: their names.
        path: of the file.
        code: the user's own code that the plan may name, which its trials then run.

    Raises:
        InputError: no such file or command, or a file that is not a valid plan, ranks by a score on test images, or
            names other code.
    """
    names = tuple(commands.split("+"))
    for name in names:
        if COMMANDS[name] is COMMANDS["search"]:
            raise InputError("The command 'search' cannot search over itself: name another command.")
    if len(set(names)) < len(names):
        raise InputError(f"{commands!r} names a command twice: name each once.")
    content = read_yaml(path)
    if not isinstance(content, dict) or not {"grid", "score"} <= set(content) <= set(KEYS):
        raise InputError(
            f"{path!r} is not a plan: give grid and score, optionally fixed and direction, and nothing else."
        )
    grid, fixed, direction = content["grid"], content.get("fixed") or {}, content.get("direction", "maximize")
    if not isinstance(grid, dict) or not grid or not isinstance(fixed, dict):
        raise InputError(f"{path!r}: grid and fixed must map flags to values, and grid must contain at least one flag.")
    if direction not in ("maximize", "minimize"):
        raise InputError(f"{path!r}: direction {shown(direction)} is unknown: choose maximize or minimize.")
    refuse_code([grid, fixed], shown(path, 200), code)  # a score looks like a reference, and is none
    for name, values in grid.items():
        if not _is_range(values) and not (isinstance(values, list) and values):
            raise InputError(f"{path!r}: {name} is {shown(values)}: give a list of values, or a range {{low, high}}.")
    for name in (*grid, *fixed):
        _check_flag(str(name), names, path)
    scores = []
    for text in content["score"] if isinstance(content["score"], list) else [content["score"]]:
        file, _, keys = str(text).partition(":")
        if not file or not keys or Path(file).is_absolute() or ".." in Path(file).parts:
            raise InputError(
                f"{path!r}: score {text!r} must be FILE.json:KEY.KEY, with a file that the command writes."
            )
        refuse_tested(file, keys.split("."))
        scores.append((file, tuple(keys.split("."))))
    return Plan(names, grid, fixed, tuple(scores), direction)


def _check_flag(name: str, commands: tuple[str, ...], path: str) -> None:
    """Refuse a flag that none of the commands has, nor the layers or the objective that they might choose."""
    owner, _, own = _owner(name, commands)
    takes = {key for command in commands if owner in (None, command) for key in parameters(command)}
    if own in takes or own.partition(".")[0] in takes:
        return
    if (owner is not None or len(commands) == 1) and own in set(_options(takes)):
        return
    hint = near(own, takes, limit=0)
    if not hint and len(commands) > 1:
        hint = f"write an option of the layers of one of them as {commands[0]}.{plain_text(name, 80)}."
    one = " and ".join(commands) if owner is None else owner
    raise InputError(
        f"{path!r}: {one} {'have' if ' ' in one else 'has'} no flag {shown(name)}: "
        f"{hint or f'pellucid {commands[0]} --help lists its flags.'}"
    )


def parameters(command: str) -> dict[str, bool]:
    """The parameters of a command, including the fields of its settings, and whether each is positional."""
    function = COMMANDS[command]
    kinds = typing.get_type_hints(function)
    found: dict[str, bool] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(kinds[name]):
            found |= dict.fromkeys((field.name for field in dataclasses.fields(kinds[name])), False)
        else:
            found[name] = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
    return found


def _options(takes: set[str]) -> Iterator[str]:
    """The options of all layers and objectives that a command with the flags `takes` can choose."""
    for flag, where in CHOICES.items():
        if flag not in takes:
            continue
        known = place(where)
        for owner in known.names():
            for option in inspect.signature(known[owner]).parameters:
                yield from (option, f"{owner.replace('-', '_')}_{option}")


def _owner(name: str, commands: tuple[str, ...]) -> tuple[str | None, str, str]:
    """`synthesize.lr` is the flag `lr` of `synthesize`; without a command, the flag of every command that has it."""
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
    """Replace the name of a command in braces by the folder that it writes in this trial."""
    if isinstance(value, str):
        for name, folder in folders.items():
            value = value.replace("{" + name + "}", str(folder))
    return [_placed(item, folders) for item in value] if isinstance(value, list) else value
