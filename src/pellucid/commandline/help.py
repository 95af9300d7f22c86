"""What --help prints: every flag with its type, its default and what it means."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from pellucid.commandline.flags import Flag
from pellucid.commandline.options import Option
from pellucid.core.ranges import without_none


def print_help(function: Any, program: str, flags: Iterable[Flag], options: Mapping[str, Mapping[str, Option]]) -> None:
    """Print the help of a command.

    Args:
        function: the command.
        program: its name, such as "pellucid train".
        flags: its own.
        options: the options of the layers, the objective, ... that the command line chose.
    """
    from jsonargparse import ActionYesNo, ArgumentParser

    parser = ArgumentParser(prog=program, description=(inspect.getdoc(function) or "").partition("Args:")[0])
    parser.add_argument("--config", type=str, help="YAML file, or a recipe's name, with values for the flags")
    for flag in flags:
        _add(parser, flag, ActionYesNo)
    for group in filter(None, options.values()):
        first = next(iter(group.values()))
        named = f"--{first.key.replace('_', '-')}.NAME"
        of_owner = parser.add_argument_group(f"options of {first.owner}, also as {named}")
        for option in group.values():
            _add(of_owner, option.flag, ActionYesNo)
    parser.print_help()


def _add(parser: Any, flag: Flag, yes_no: Any) -> None:
    flag = flag.unannotated()
    if flag.positional:
        optional = {} if flag.required else {"nargs": "?", "default": flag.default}
        parser.add_argument(flag.name, type=flag.kind, help=flag.help, **optional)
    elif flag.kind is bool:
        parser.add_argument(flag.spelled, action=yes_no(no_prefix="no-"), default=flag.default, help=flag.help)
    elif flag.value_may_be_left_out or flag.switch:
        parser.add_argument(flag.spelled, type=flag.kind, nargs="?", const=True, default=flag.default, help=flag.help)
    elif flag.several:
        item = without_none(flag.kind)[0].__args__[0]
        parser.add_argument(flag.spelled, type=item, nargs="+", default=flag.default, help=flag.help)
    elif flag.required:
        parser.add_argument(flag.spelled, type=flag.kind, required=True, help=flag.help)
    else:
        parser.add_argument(flag.spelled, type=flag.kind, default=flag.default, help=flag.help)
