"""Things that a user names, such as layers or objectives: ours by a table, those of guests by registration.

Ours stand in `pellucid.ideas`, name beside place, and are imported when they are asked for. Another package adds its
own by an entry point of the group `pellucid.ideas`: a module that calls `register` when it is imported.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from pellucid.core.errors import InputError, first_line

GUESTS = "pellucid.ideas"  # the group of entry points

T = TypeVar("T")

_guests: dict[str, str] = {}  # entry points that were imported -> what went wrong, "" for nothing


def load_guests() -> None:
    """Import every module that another package names under `pellucid.ideas`, each once.

    A package that cannot be imported is left out, and named when something that nobody registered is asked for: one
    broken plugin must not take away what is ours.
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
    """What "package.module:name" names."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


class Registry(Generic[T]):
    """Values of one kind by name.

    Args:
        kind: what the values are, as an error would call one: "layers", "objective".
        own: name -> "package.module:name" of what comes with this package; or the name of such a table in
            `pellucid.ideas`, for registries in `core`, which names no idea.
    """

    def __init__(self, kind: str, own: Mapping[str, str] | str) -> None:
        self.kind = kind
        self._own = own
        self._registered: dict[str, T] = {}

    def register(self, name: str, value: T) -> None:
        """Make `value` known as `name`, in place of what was known so before."""
        self._registered[name] = value

    def forget(self, name: str) -> None:
        """Take back what was registered as `name`."""
        self._registered.pop(name, None)

    def names(self) -> list[str]:
        """All names in alphabetical order, those of guests included."""
        load_guests()
        return sorted({*self._table(), *self._registered})

    def __getitem__(self, name: str) -> T:
        """What is known as `name`.

        Raises:
            InputError: nothing is; the sentence lists the names and says which plugins could not be imported.
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
        said = "; ".join([f"{hint} {', '.join(known)}", *broken])
        raise InputError(f"Unknown {self.kind} {name!r}: {said}.")

    def _table(self) -> Mapping[str, str]:
        if isinstance(self._own, str):
            return getattr(importlib.import_module("pellucid.ideas"), self._own)
        return self._own


def made(what: str, factory: Callable[..., T], options: Mapping[str, Any]) -> T:
    """`factory(**options)`.

    Args:
        what: what is being made, as the error calls it: "layers 'deconv'".

    Raises:
        InputError: an option that the factory does not take, or one missing.
    """
    signature = inspect.signature(factory)
    try:
        signature.bind(**options)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "no options"
        raise InputError(f"{what}: {error}; it takes {takes}.") from None
    return factory(**options)
