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

errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str = "") -> None:
    """Print a line to standard output (markup is not interpreted)."""
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def show(title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print one table; the first column is left-aligned, the others right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", expand=False)
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if place else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(highlight=False).print(table)


def percent(share: float | None, interval: tuple[float, float] | None = None) -> str:
    """`97.8 % (96.0 to 98.8)`, or a dash for None."""
    if share is None:
        return "-"
    text = f"{100 * share:.2f} %"
    if interval is not None:
        text += f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"
    return text


class Bar:
    """One line of progress over all steps of a run, with what was last `update`d beside it."""

    def __init__(self, total: int, done: int, progress: Progress | None, quiet: bool) -> None:
        self._progress = progress
        self._quiet = quiet
        self._task = None if progress is None else progress.add_task("", total=total, completed=done)

    def update(self, done: int, text: str) -> None:
        """Move the bar to `done` steps and show `text`."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, description=text)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if not self._quiet:
            say(text)


@contextlib.contextmanager
def bar(total: int, done: int = 0, *, quiet: bool = False) -> Iterator[Bar]:
    """A progress bar while the block runs; on something that is not a terminal only `line`s are printed."""
    console = Console(highlight=False)
    if quiet or not console.is_terminal:
        yield Bar(total, done, None, quiet)
        return
    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    # While it is live, rich routes what other consoles print above the bar.
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(total, done, progress, quiet)


T = TypeVar("T")


def track(items: Iterable[T], total: int, note: str) -> Iterator[T]:
    """Yield `items`; after two seconds show `note` and a bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    begun = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(note, total=total, visible=False)
        for item in items:
            yield item
            bar.update(task, advance=1, visible=time.monotonic() - begun > 2)
