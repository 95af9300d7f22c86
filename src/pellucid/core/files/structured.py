"""JSON and YAML from files that anyone may have written: bounded before they are parsed, checked before they are used.

A reader here takes a regular file of limited size, nested no deeper than `DEEPEST`, without YAML's aliases or tags and
without numbers that are not finite. Its form is then compared with what is expected (`core.files.conform`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pellucid.core.errors import InputError, first_line, shown
from pellucid.core.files.conform import conform

LARGEST = 2**26  # bytes of a JSON file; class filters of a thousand classes need 22 million
LARGEST_YAML = 2**18  # bytes; parsing a file of this size takes a second
DEEPEST = 32  # levels of lists and tables


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse a path that is not a regular file: a pipe or a device would block, or never end.

    Raises:
        InputError: no such file, or a folder, pipe, socket or device.
    """
    if not os.path.lexists(path):
        raise InputError(f"There is no file {shown(os.fspath(path), 300)}: check its path.")
    if not os.path.isfile(path):
        raise InputError(
            f"{shown(os.fspath(path), 300)} is a folder, pipe, device or broken link, not a file: remove or replace it."
        )


def read_bytes(path: str | os.PathLike[str], largest: int = LARGEST) -> bytes:
    """The content of a regular file of at most `largest` bytes.

    Raises:
        InputError: no such file, a folder, pipe or device, or more bytes.
    """
    file = Path(path)
    try:
        check_regular(file)
        if (size := file.stat().st_size) > largest:
            raise InputError(f"{shown(str(file), 300)} has {size} bytes, and such a file has at most {largest}.")
        with open(file, "rb") as stream:
            return stream.read(largest + 1)
    except OSError as error:
        raise InputError(f"{shown(str(file), 300)} cannot be read: {error.strerror}.") from None


def read_json(path: str | os.PathLike[str], kind: Any = dict[str, Any], *, largest: int = LARGEST) -> Any:
    """The JSON value in a file, which must conform to `kind`.

    Raises:
        InputError: not a regular file, too large, not JSON, nested too deeply, or of another form.
    """
    name, text = shown(os.fspath(path), 300), _text(path, largest)
    with _remedied():
        return parse_json(text, f"{name} is damaged", kind)


def read_rows(path: str | os.PathLike[str], kind: Any = dict[str, Any]) -> list[Any]:
    """The JSON values in the lines of a file, without a last line that a killed process left unfinished.

    Numbers need not be finite: the losses of a run that diverged are not.

    Raises:
        InputError: not a regular file, too large, or a line that is not a JSON value of that `kind`.
    """
    name = shown(os.fspath(path), 300)
    lines = _text(path, LARGEST).split("\n")  # a finished line ends in a line feed
    with _remedied():
        rows = [
            parse_json(line, f"{name} is damaged in line {number}", kind, finite=False)
            for number, line in enumerate(lines[:-1], 1)
            if line.strip()
        ]
    with contextlib.suppress(InputError):
        rows.append(parse_json(lines[-1], name, kind, finite=False))
    return rows


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The YAML value in a file, made of tables with text keys, lists, text, numbers, truth values and nulls.

    Raises:
        InputError: not a regular file, too large, nested too deeply, not YAML, or with tags, aliases or other values.
    """
    import yaml

    name = shown(os.fspath(path), 300)
    text = _text(path, LARGEST_YAML)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise InputError(f"{name} uses a YAML alias (*{str(event.anchor)[:20]}): write the value out.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise InputError(f"{name} is nested more than {DEEPEST} levels deep: no file of settings is.")
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        # The library's own message quotes the file, which may be any file that somebody named by mistake.
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        raise InputError(f"{name} is not valid YAML{where}: correct it there.") from None
    except InputError:
        raise
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        raise InputError(f"{name} holds a value that YAML cannot express ({type(error).__name__}).") from None
    _check_values(value, name)
    return value


def parse_json(text: str | bytes, what: str, kind: Any = dict[str, Any], *, finite: bool = True) -> Any:
    """The JSON value in `text`, which must conform to `kind`.

    Args:
        text: of any origin.
        what: begins the error message, such as "'x.json' is damaged".
        kind: see `conform`.
        finite: refuse NaN and infinities.

    Raises:
        InputError: not JSON, nested too deeply, or of another form.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: it is not JSON ({first_line(error)}).") from None
    _check_values(value, what, finite)
    return conform(value, kind, what)


@contextlib.contextmanager
def _remedied() -> Iterator[None]:
    """Add to a complaint about a file's content what can be done about it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}; restore the file from a copy, or make it again.") from None


def _text(path: str | os.PathLike[str], largest: int) -> str:
    try:
        return read_bytes(path, largest).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{shown(os.fspath(path), 300)} is not a text file.") from None


def _check_values(value: Any, what: str, finite: bool = True) -> None:
    """Refuse what is nested too deeply, and values other than JSON's, without recursion."""
    level = [value]
    for _ in range(DEEPEST + 1):
        if not level:
            return
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                if odd := [key for key in one if not isinstance(key, str)]:
                    raise InputError(f"{what}: the key {shown(odd[0])} is not text.")
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif finite and isinstance(one, float) and not math.isfinite(one):
                raise InputError(f"{what}: it holds a number that is not finite.")
            elif not (one is None or isinstance(one, str | bool | int | float)):
                raise InputError(f"{what}: {shown(one)} is a {type(one).__name__}, which settings cannot be.")
        level = below
    raise InputError(f"{what}: it is nested more than {DEEPEST} levels deep.")
