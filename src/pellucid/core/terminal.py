"""What a command shows: a progress bar on a terminal, plain lines elsewhere, one table, the next command."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pellucid.core.errors import plain_text

T = TypeVar("T")

PATIENCE = 2.0  # seconds; what takes no longer shows no bar


def _console(**options: Any) -> Console:
    """Text as it is: the names of a user's classes and files may look like markup."""
    return Console(highlight=False, markup=False, emoji=False, **options)


errors = _console(stderr=True, soft_wrap=True)


WIDEST = 120  # characters of a cell in a table; names from files may be longer


def say(text: str = "") -> None:
    """Print a line to standard output; control characters, which may come from a name in a file, as escapes."""
    _console(soft_wrap=True).print("\n".join(_plain(line, len(line) * 10) for line in text.split("\n")))


def warn(text: str) -> None:
    """Print a line to standard error."""
    errors.print(_plain(text, len(text) * 10))


def assumed(sentences: Iterable[str]) -> None:
    """Print what was assumed, one sentence per line, above a command's tables."""
    for sentence in sentences:
        say(sentence)


def show(title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print one table; the first column is left-aligned, the others right."""
    table = Table(
        title=_plain(title, 2 * WIDEST), title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", expand=False
    )
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if place else "left")
    for row in rows:
        table.add_row(*(_plain(str(cell), WIDEST) for cell in row))
    _console().print(table)


def _plain(text: str, limit: int) -> str:
    """`text` on one line without control characters, cut to `limit`; the page's no-break spaces as spaces."""
    return plain_text(text.replace("\u00a0", " "), limit)


def percent(fraction: float | None, interval: tuple[float, float] | None = None) -> str:
    """`97.8 % (96.0 to 98.8)`, or a dash for None."""
    if fraction is None:
        return "-"
    text = f"{100 * fraction:.2f} %"
    if interval is not None:
        text += f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"
    return text


class Bar:
    """One line of progress; see `bar`."""

    def __init__(self, total: int, done: int, note: str, progress: Progress | None, quiet: bool) -> None:
        self._progress = progress
        self._quiet = quiet
        self._began = time.monotonic()
        self._task = None if progress is None else progress.add_task(note, total=total, completed=done, visible=False)

    def update(self, done: int, text: str | None = None) -> None:
        """Move the bar to `done` steps, and show `text` next to it in place of what was there."""
        if self._progress is not None and self._task is not None:
            late = time.monotonic() - self._began > PATIENCE
            description = None if text is None else _plain(text, 2 * WIDEST)
            self._progress.update(self._task, completed=done, description=description, visible=late)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if not self._quiet:
            say(text)


@contextlib.contextmanager
def bar(total: int, done: int = 0, *, note: str = "", quiet: bool = False) -> Iterator[Bar]:
    """While the block runs, show on stderr, if that is a terminal, a bar of `total` steps and `note` next to it.

    It appears after two seconds. Elsewhere, only `line`s are printed.
    """
    console = _console(stderr=True)
    if quiet or not console.is_terminal:
        yield Bar(total, done, note, None, quiet)
        return
    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    # Lines for a terminal go above the live bar; those for a file go to the file.
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        yield Bar(total, done, note, progress, quiet)


def track(items: Iterable[T], total: int, note: str) -> Iterator[T]:
    """Yield `items` under a `bar` of `total` steps."""
    with bar(total, note=note) as shown:
        for done, item in enumerate(items, 1):
            yield item
            shown.update(done)
