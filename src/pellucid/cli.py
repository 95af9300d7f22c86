"""The table of commands, and how a function's typed signature becomes flags.

A command is a function that returns an exit status. Positional-only parameters become positional arguments,
keyword-only ones become flags, and so do the fields of a settings dataclass. Help texts come from the docstring's
`Args`. The functions are in modules that import nothing heavy, so that help is quick.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pellucid.core.errors import InputError, TrainingStopped
from pellucid.core.registry import place
from pellucid.ideas import COMMANDS


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A flag that names something with options of its own: the flag that holds them, and the registry of names."""

    options: str
    known: str
    none: str  # the name of what has no options


SPELLINGS = {"--arch": "--model"}  # other names of a flag

# A command with one of these flags, and the flag for its options, also takes each option of what is named as a flag.
CHOICES = {
    "layers": _Choice("options", "pellucid.core.network.rules:RULES", "plain"),
    "objective": _Choice("objective_options", "pellucid.core.train.objective:OBJECTIVES", "cross-entropy"),
}


# Flags of every command with a parameter `changes`: functions (value, model) -> model that change a loaded network.
CHANGES = {"decomposed": "pellucid.classfilters.commands:decomposed"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 bad input or usage, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from pellucid import __version__

        print(f"pellucid {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}."
        return _fail(f"there is no command {name!r}: {hint}", 2)
    try:
        run = bound(command(name), f"pellucid {name}", words[1:])
        return run()
    except InputError as error:
        return _fail(str(error), 2)
    except TrainingStopped as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "Interrupted.", 128 + getattr(error, "signal", 2))
    except BrokenPipeError:  # the reader of our output is gone, as in `pellucid evaluate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or 'no file named'}", 1)


def _fail(sentence: str, status: int) -> int:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # only one of several processes prints
        print(f"pellucid: {sentence}", file=sys.stderr)
    return status


def command(name: str) -> Callable[..., int]:
    """The function of a command."""
    return place(COMMANDS[name])


def overview() -> str:
    """The table of commands, with the first line of each function's docstring."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {(command(name).__doc__ or '').splitlines()[0]}" for name in COMMANDS]
    lines = ["usage: pellucid COMMAND [...]", "", *rows, "", "pellucid COMMAND --help lists a command's flags."]
    return "\n".join(lines)


def call(function: Callable[..., int], program: str, words: Sequence[str]) -> int:
    """Call `function` with the values that `words` give to its parameters."""
    return bound(function, program, words)()


def bound(function: Callable[..., int], program: str, words: Sequence[str]) -> Callable[[], int]:
    """`function`, bound to the values that `words` give to its parameters."""
    from jsonargparse import ActionYesNo, ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
            raise InputError(f"{' '.join(message.split())}; {program} --help lists the flags.")

    words = _with_recipes([_spelled(word) for word in words])
    parser = Parser(prog=program, description=(inspect.getdoc(function) or "").partition("Args:")[0])
    parser.add_argument("--config", action="config", help="YAML file, or a recipe's name, with values for the flags")
    types = typing.get_type_hints(function)
    settings: dict[str, Any] = {name: kind for name, kind in types.items() if dataclasses.is_dataclass(kind)}
    helps = _explained(function)
    flags = [flag for kind in settings.values() for flag in _flags(kind, positional=False)]
    flags = [dataclasses.replace(flag, help=helps.get(flag.name, flag.help)) for flag in flags]
    flags += [flag for flag in _flags(function) if flag.name not in settings and flag.name != "changes"]
    changes = {name: place(where) for name, where in CHANGES.items() if "changes" in types}
    flags += [
        _Flag(name, str | None, None, next(iter(_explained(change).values())), False)
        for name, change in changes.items()
    ]
    for flag in flags:
        flag.add_to(parser, ActionYesNo)
    chosen = _options({flag.name for flag in flags}, words)
    for options in chosen.values():
        named = f"--{options[0].key.replace('_', '-')}.NAME"
        group = parser.add_argument_group(f"options of {options[0].owner}, also as {named}")
        for option in options:
            option.flag.add_to(group, ActionYesNo)
    values = dict(vars(parser.parse_args(list(words))))
    for key, options in chosen.items():
        chose = {option.name: values[option.flag.name] for option in options if option.is_given(values, words)}
        values[key] = {**(values[key] or {}), **chose}
    keywords: dict[str, Any] = {}
    for name, kind in settings.items():
        keywords[name] = kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
    positional = []
    for flag in _flags(function):
        if flag.positional:
            positional.append(values[flag.name])
        elif flag.name == "changes":
            given = {name: change for name, change in changes.items() if values[name] is not None}
            keywords["changes"] = [functools.partial(change, values[name]) for name, change in given.items()]
        elif flag.name not in settings:
            keywords[flag.name] = values[flag.name]
    return functools.partial(function, *positional, **keywords)


def _spelled(word: str) -> str:
    flag, assigned, value = word.partition("=")
    return SPELLINGS.get(flag, flag) + assigned + value


@dataclasses.dataclass(frozen=True)
class _Flag:
    """One parameter as the command line shows it."""

    name: str
    kind: Any
    default: Any
    help: str
    positional: bool

    def add_to(self, parser: Any, yes_no: Any) -> None:
        flag = f"--{self.name.replace('_', '-')}"
        if self.positional:
            optional = {} if self.default is inspect.Parameter.empty else {"nargs": "?", "default": self.default}
            parser.add_argument(self.name, type=self.kind, help=self.help, **optional)
        elif self.kind is bool:
            parser.add_argument(flag, action=yes_no(no_prefix="no-"), default=self.default, help=self.help)
        elif {bool, str} <= set(typing.get_args(self.kind)):  # a flag whose value may be left out
            parser.add_argument(flag, type=self.kind, nargs="?", const=True, default=self.default, help=self.help)
        elif (item := _item(self.kind)) is not None:  # several values after the flag, or the flag several times
            more = {"action": "extend"} if self.default is None else {}
            parser.add_argument(flag, type=item, nargs="+", default=self.default, help=self.help, **more)
        elif self.default is inspect.Parameter.empty:
            parser.add_argument(flag, type=self.kind, required=True, help=self.help)
        else:
            parser.add_argument(flag, type=self.kind, default=self.default, help=self.help)


@dataclasses.dataclass(frozen=True)
class _Option:
    """The option `name` of what is called `owner`, its own flag, and the name `key` of the flag for all options."""

    owner: str
    key: str
    name: str
    flag: _Flag

    def is_given(self, values: dict[str, Any], words: Sequence[str]) -> bool:
        """Whether the user chose its value; only chosen values enter a run's settings and name."""
        flags = {f"--{prefix}{self.flag.name.replace('_', '-')}" for prefix in ("", "no-")}
        named = any(word.partition("=")[0].replace("_", "-") in flags for word in words)
        return named or values[self.flag.name] != self.flag.default


def _options(taken: set[str], words: Sequence[str]) -> dict[str, list[_Option]]:
    """Flags for the options of the layer rule, objective, ... that `words`, or a file that they name, select.

    An option with the name of another flag is prefixed with its owner's: --deconv-momentum.
    """
    found: dict[str, list[_Option]] = {}
    taken = taken | {"config", "help"}
    for key, choice in CHOICES.items():
        owner = _value_of(key, words) if {key, choice.options} <= taken else None
        if owner is None or owner == choice.none:
            continue
        options = []
        for flag in _flags(place(choice.known)[owner]):
            name = f"{owner}_{flag.name}".replace("-", "_") if flag.name in taken else flag.name
            options.append(_Option(owner, choice.options, flag.name, dataclasses.replace(flag, name=name)))
        if options:
            found[choice.options] = options
            taken = taken | {option.flag.name for option in options}
    return found


def _value_of(key: str, words: Sequence[str]) -> str | None:
    """The last value that `words`, which are not parsed yet, or the files they name, give to the flag `key`."""
    found = None
    for word, after in zip(words, [*words[1:], None], strict=True):
        flag, assigned, value = word.partition("=")
        text = value if assigned else after
        if flag == f"--{key}":
            found = text
        elif flag == "--config" and text is not None:
            import yaml

            try:
                content = yaml.safe_load(Path(text).read_text())
            except (OSError, ValueError, yaml.YAMLError):
                continue  # the parser will report what is wrong with it
            if isinstance(content, dict) and isinstance(content.get(key), str):
                found = content[key]
    return found


def _with_recipes(words: Sequence[str]) -> list[str]:
    """`words`, with the name of a recipe of this package after `--config` replaced by its file."""
    replaced = list(words)
    for index, word in enumerate(words):
        name = word.removeprefix("--config=")
        if (name != word or (index and words[index - 1] == "--config")) and not Path(name).exists():
            recipe = Path(__file__).parent / "recipes" / f"{name}.yaml"
            if os.sep not in name and recipe.is_file():
                replaced[index] = f"--config={recipe}" if name != word else str(recipe)
    return replaced


def _flags(function: Any, positional: bool = True) -> Iterator[_Flag]:
    """The parameters of a function or dataclass, with the help texts in its docstring's `Args`."""
    helps = _explained(function)
    types = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        if isinstance(function, type):
            field = next(field for field in dataclasses.fields(function) if field.name == name)
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
        first = positional and parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        yield _Flag(name, types[name], default, helps.get(name, ""), first)


def _explained(function: Any) -> dict[str, str]:
    """The text for each parameter in a docstring's `Args`."""
    import docstring_parser

    params = docstring_parser.parse(inspect.getdoc(function) or "").params
    return {param.arg_name: " ".join((param.description or "").split()) for param in params}


def _item(kind: Any) -> Any:
    """The type of the items of `list[T]` or `list[T] | None`; None for anything else."""
    for option in (kind, *typing.get_args(kind)):
        if typing.get_origin(option) is list:
            return typing.get_args(option)[0]
    return None
