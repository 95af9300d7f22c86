"""The exceptions whose message a command prints instead of a traceback, and how such a message quotes what it found."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: one sentence that names the value or file and the remedy.

    Commands print the sentence and exit with status 2; in Python it is an ordinary `ValueError`.
    """


class WorkFailed(RuntimeError):
    """Work was begun and came to nothing; the message says why and what to try. Commands exit with status 1."""


class TrainingStopped(WorkFailed):
    """Training cannot continue; the message says where it stopped and what to try. The last checkpoint is kept."""


class Interrupted(KeyboardInterrupt):
    """The user or the system asked to stop, by `signal`; the state is saved and the run can be resumed.

    Commands exit with status 128 + signal: 130 after Ctrl-C.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def first_line(error: BaseException) -> str:
    """A library's error message for a sentence of ours: its first line, at most 300 characters, or else its type."""
    return (plain_text(str(error).strip().partition("\n")[0], 300) or type(error).__name__).rstrip(".")


def shown(value: object, limit: int = 80) -> str:
    """`value` as a message quotes it: its `repr`, with what a terminal would act on escaped, and its middle cut out.

    Args:
        value: a name or number from a file or a command line.
        limit: most characters of the result.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a container within itself
        text = f"a value of type {type(value).__name__}"
    return plain_text(text, limit)


def plain_text(text: str, limit: int) -> str:
    """`text` on one line without control characters, which are written as escapes, cut to `limit` characters."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 3]}...{text[len(text) - end :]}"


def near(name: str, known: Iterable[str], limit: int = 12, least: float = 0.6) -> str:
    """The end of a sentence about an unknown `name`: the names most like it, or else all of them, if they are few.

    Args:
        name: what was given.
        known: what could have been meant.
        limit: most names to list if all are unlike it.
        least: how much alike, from 0 to 1, a name must be to be suggested.

    Returns:
        `did you mean 'deconv'?`, `choose a, b or c.`, or "".
    """
    names = list(dict.fromkeys(known))
    name = name[:100].lower()
    alike = {one: difflib.SequenceMatcher(None, one.lower(), name).ratio() for one in names}
    best = max(alike.values(), default=0.0)
    if best >= least:
        closest = sorted((one for one in names if alike[one] >= best - 0.05), key=lambda one: -alike[one])[:3]
        return f"did you mean {' or '.join(map(shown, closest))}?"
    return f"choose {listed(names)}." if 0 < len(names) <= limit else ""


def listed(names: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *most, last = [plain_text(name, 80) for name in names]
    return f"{', '.join(most)} or {last}" if most else last
