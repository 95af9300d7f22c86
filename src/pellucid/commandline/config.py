"""Values for flags from YAML files, which name no other files and of which errors show nothing but names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pellucid.commandline.flags import Flag
from pellucid.commandline.values import value_of
from pellucid.core.errors import InputError, near, shown
from pellucid.core.files.structured import read_yaml
from pellucid.core.references import refuse_code

RECIPES = Path(__file__).parents[1] / "recipes"
_SELF = ("config", "help")


def file_of(name: str) -> str:
    """The file that --config names: itself, or that of a recipe of this package.

    Raises:
        InputError: neither.
    """
    if "\0" in name or not name.strip():
        raise InputError(f"--config {shown(name)} names no file: give a YAML file, or the name of a recipe.")
    if os.path.lexists(name):
        return name
    recipes = sorted(file.stem for file in RECIPES.glob("*.yaml") if not file.stem.startswith("search-"))
    if (RECIPES / f"{name}.yaml").is_file() and name in recipes:
        return str(RECIPES / f"{name}.yaml")
    hint = near(name, recipes, limit=0) if os.sep not in name else ""
    hint = hint or "give a YAML file with values for the flags."
    raise InputError(f"--config {shown(name)} is neither a file nor a recipe: {hint}")


def read_table(name: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """The table in the file or recipe `name`, whose keys and values are not checked yet.

    Args:
        name: of the file or recipe.
        words: the command line, whose user alone names code to run.

    Raises:
        InputError: no such file, or one that does not hold a table, or names code that the words do not name.
    """
    file = file_of(name)
    content = read_yaml(file)
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{shown(file)} does not map flags to values: write one 'flag: value' on each line.")
    refuse_code(content, shown(name, 200), words)
    return content or {}


def values_for(flags: Mapping[str, Flag], table: Mapping[Any, Any], name: str, program: str) -> dict[str, Any]:
    """The values in the `table` of the file `name`, by the flag's name.

    Raises:
        InputError: a key that is no flag, or would name another file to read.
    """
    found = {}
    for key, value in table.items():
        own = str(key).removeprefix("--").replace("-", "_")
        if own in _SELF:
            raise InputError(f"{shown(name)} sets {own}: a file for --config cannot name another one; leave it out.")
        if own not in flags:
            hint = near(own, flags, limit=0) or f"{program} --help lists its flags."
            raise InputError(f"{shown(name)} sets {shown(key, 40)}, which {program} does not have: {hint}")
        found[own] = value_of(flags[own].kind, value, f"{own} in {shown(name)}:")
    return found
