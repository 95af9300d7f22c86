"""Things that users name, such as layers or objectives: ours from a table, those of other packages by registration.

Ours are listed in `pellucid.ideas` by name and place, and imported when they are asked for. Another package adds its
own with an entry point of the group `pellucid.ideas`: a module that calls `register` when it is imported.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from pellucid.core.errors import InputError, first_line, plain_text, shown

GUESTS = "pellucid.ideas"  # the group of entry points

T = TypeVar("T")

_guests: dict[str, str] = {}  # entry points that were imported -> what went wrong, "" if nothing did


def load_guests() -> None:
    """Import every module that another package lists under `pellucid.ideas`, each once.

    A package that cannot be imported is skipped, and named when something unknown is asked for: a broken plugin must
    not make our own ideas unavailable.
    """
    for entry in importlib.metadata.entry_points(group=GUESTS):
        if entry.value not in _guests:
            _guests[entry.value] = ""
            try:
                entry.load()
            except Exception as error:  # whatever importing foreign code may raise
                _guests[entry.value] = first_line(error)


def broken_guests() -> dict[str, str]:
    """Modules named under `pellucid.ideas` that could not be imported -> why."""
    load_guests()
    return {module: why for module, why in _guests.items() if why}


def place(where: str) -> Any:
    """The object at "package.module:name"."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


class Registry(Generic[T]):
    """Values of one kind by name.

    Args:
        kind: what an error message calls one of the values, such as "layers" or "objective".
        own: table from name to "package.module:name" of what comes with this package; or, for registries in `core`,
            which names no idea, the name of such a table in `pellucid.ideas`.
    """

    def __init__(self, kind: str, own: Mapping[str, str] | str) -> None:
        self.kind = kind
        self._own = own
        self._registered: dict[str, T] = {}

    def register(self, name: str, value: T) -> None:
        """Register `value` as `name`, in place of what had that name before."""
        self._registered[name] = value

    def names(self) -> list[str]:
        """All names in alphabetical order, those of other packages included."""
        load_guests()
        return sorted({*self._table(), *self._registered})

    def __getitem__(self, name: str) -> T:
        """The value called `name`.

        Raises:
            InputError: there is none; the message lists the names and the plugins that could not be imported.
        """
        if name not in self._registered and name not in self._table():
            load_guests()
        if name in self._registered:
            return self._registered[name]
        if (where := self._table().get(name)) is not None:
            return place(where)
        known = self.names()
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}? The choices are" if near else "choose one of"
        broken = [f"the plugin {module!r} could not be imported ({why})" for module, why in broken_guests().items()]
        remedy = "; ".join([f"{hint} {', '.join(known)}", *broken])
        raise InputError(f"Unknown {self.kind} {shown(name)}: {remedy}.")

    def _table(self) -> Mapping[str, str]:
        if isinstance(self._own, str):
            return getattr(importlib.import_module("pellucid.ideas"), self._own)
        return self._own


def made(what: str, factory: Callable[..., T], options: Mapping[str, Any]) -> T:
    """`factory(**options)`.

    Args:
        what: what an error message calls the result, such as "layers 'deconv'".

    Raises:
        InputError: an unknown or missing option.
    """
    signature = inspect.signature(factory)
    try:
        signature.bind(**options)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "no options"
        raise InputError(f"{what}: {plain_text(str(error), 200)}; it takes {takes}.") from None
    return factory(**options)
