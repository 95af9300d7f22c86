"""The flags of a function or settings dataclass: its typed parameters, and the help texts in its docstring."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Iterator
from typing import Any

from pellucid.core.ranges import plain, without_none


@dataclasses.dataclass(frozen=True)
class Flag:
    """One parameter as the command line shows it.

    Attributes:
        name: of the parameter, with underscores.
        kind: its type.
        default: its default value; `inspect.Parameter.empty` if it must be given.
        help: what it means.
        positional: whether it is given by its place and not by its name.
    """

    name: str
    kind: Any
    default: Any
    help: str
    positional: bool

    @property
    def spelled(self) -> str:
        """As the user types it: --batch-size, or the bare name of a positional argument."""
        return self.name if self.positional else f"--{self.name.replace('_', '-')}"

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    @property
    def switch(self) -> bool:
        """Whether it is on or off, and takes no value: --quiet, --no-quiet."""
        return without_none(self.kind)[0] is bool

    @property
    def value_may_be_left_out(self) -> bool:
        """Whether the flag alone means True, as for --resume [RUN]."""
        return {bool, str} <= set(typing.get_args(self.kind))

    @property
    def several(self) -> bool:
        """Whether it takes a list of values."""
        return typing.get_origin(without_none(self.kind)[0]) is list

    @property
    def table(self) -> bool:
        """Whether it takes named values: --options.NAME VALUE."""
        return typing.get_origin(without_none(self.kind)[0]) is dict

    def unannotated(self) -> Flag:
        """The same without a range in its type, for libraries that know none."""
        base, optional = without_none(self.kind)
        if self.several:
            base = list[plain(typing.get_args(base)[0])[0]]  # type: ignore[misc]
        elif typing.get_origin(base) is typing.Union:
            base = typing.Union[tuple(plain(option)[0] for option in typing.get_args(base))]  # noqa: UP007
        else:
            base = plain(base)[0]
        return dataclasses.replace(self, kind=base | None if optional else base)


def flags_of(function: Any, positional: bool = True) -> Iterator[Flag]:
    """The parameters of a function or dataclass, with the help texts in its docstring's `Args`."""
    helps = explained(function)
    types = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        if isinstance(function, type):
            field = next(field for field in dataclasses.fields(function) if field.name == name)
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
        first = positional and parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        yield Flag(name, types[name], default, helps.get(name, ""), first)


def explained(function: Any) -> dict[str, str]:
    """The text for each parameter in a docstring's `Args`, and in those of the classes that a class is made from."""
    sources = reversed(function.__mro__) if isinstance(function, type) else [function]
    return {name: text for source in sources for name, text in _explained(inspect.cleandoc(source.__doc__ or ""))}


@functools.cache
def _explained(text: str) -> tuple[tuple[str, str], ...]:
    import docstring_parser

    params = docstring_parser.parse(text).params
    return tuple((param.arg_name, " ".join((param.description or "").split())) for param in params)
