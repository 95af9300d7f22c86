"""References to a user's own code, path/to/file.py:factory or package.module:factory, told from other names.

Code runs only where its user names it: in a call of Python, or on the command line. Whatever else holds such a
reference (a file of settings, a plan, the description in a checkpoint) may have been written by a stranger.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pellucid.core.errors import InputError, shown

# A module without a dot is no reference: cifar10:data and resnet20:x are other things. Its file, mine.py:net, is one.
_NAME = r"[^\W\d]\w*"
_FORM = re.compile(rf"(?:(?P<file>[^=]*\.py)|(?P<module>{_NAME}(?:\.{_NAME})+)):(?P<factory>{_NAME}(?:\.{_NAME})*)")


def is_code(name: object) -> bool:
    """Whether `name` has the form of a reference to code."""
    return isinstance(name, str) and _FORM.fullmatch(name) is not None


def parts_of(name: str) -> tuple[str, str, str]:
    """(file, module, factory) of a reference; of file and module, the one that it does not name is "".

    Raises:
        ValueError: it is none.
    """
    match = _FORM.fullmatch(name)
    if match is None:
        raise ValueError(name)
    return match["file"] or "", match["module"] or "", match["factory"]


def refuse_code(value: Any, where: str, allowed: Any = ()) -> None:
    """Refuse a reference to code anywhere in `value`, which comes from the file `where`.

    Args:
        value: text, or lists and tables that hold some; MODEL=FILE is looked into.
        where: the file's name as errors show it.
        allowed: the same of what the user named: code among that may be named by the file too.

    Raises:
        InputError: there is one.
    """
    named = set(_references(allowed))
    for code in _references(value):
        if code not in named:
            raise InputError(
                f"{where} names code to run, {shown(code, 100)}, which only you may do: name it on the command line as "
                "well if you trust it."
            )


def _references(value: Any) -> Iterable[str]:
    return (part.strip() for text in _texts(value) for part in text.split("=") if is_code(part.strip()))


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for inner in value:
            yield from _texts(inner)
