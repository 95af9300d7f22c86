"""Damaged files and nasty command lines for an hour: how many end otherwise than they may? None should.

    python benchmarks/core/fuzz.py [MINUTES]

Turn by turn, hypothesis draws damage to the files of a run, a synthesis, class filters and data
(`tests/mutations.py`), and command lines (`tests/strategies.py`), each from a seed of its own. A command may work, or
end with status 1 or 2 and one plain sentence; with status 2 it has changed no file. It may take 20 s and 1 GiB.
Whatever else happens is printed with the seed of its turn, and counted.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from benchmarks.record import record
from forked import Commands
from mutations import check_damage, damages, make_files
from strategies import check_command_line, command_lines, recorders, sandbox

MINUTES = 60
FILES, LINES = 40, 400  # examples in a turn


def main() -> None:
    began, minutes = time.monotonic(), float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES
    counts: Counter[str] = Counter()
    worst: dict[str, float] = {"seconds": 0.0, "bytes": 0}
    with tempfile.TemporaryDirectory() as name, Commands() as commands:
        files, folder = make_files(Path(name) / "files"), sandbox(Path(name) / "sandbox")

        def file(damage: Any) -> None:
            counts["files"] += 1
            ended = check_damage(damage, files, commands)
            counts[f"files, status {ended.status}"] += 1
            worst["seconds"] = max(worst["seconds"], ended.seconds)
            worst["bytes"] = max(worst["bytes"], ended.peak)

        def line(words: list[str]) -> None:
            counts["command lines"] += 1
            status, _ = check_command_line(words, folder)
            counts[f"command lines, status {status}"] += 1

        turn = 0
        while time.monotonic() - began < 60 * minutes:
            _turn(turn, damages(), file, FILES, counts)
            with recorders():
                _turn(turn, command_lines(), line, LINES, counts)
            turn += 1
            if turn % 10 == 0:
                _record(turn, (time.monotonic() - began) / 60, counts, worst)
    _record(turn, (time.monotonic() - began) / 60, counts, worst)


def _record(turns: int, minutes: float, counts: Counter[str], worst: dict[str, float]) -> None:
    tried, failed = counts["files"] + counts["command lines"], counts["failures"]
    print(f"{minutes:.0f} min, {dict(sorted(counts.items()))}", flush=True)
    record(
        "core/fuzz",
        "Damaged files and command lines that end in a traceback, a crash, a changed file, over 20 s or 1 GiB",
        "0",
        (failed, failed, failed),
        n=tried,
        unit="cases",
        minutes=round(minutes, 1),
        seeds=f"0 to {turns - 1}",
        counts=dict(sorted(counts.items())),
        worst=dict(worst),
    )


def _turn(number: int, drawn: st.SearchStrategy[Any], check: Callable[[Any], None], most: int, counts: Any) -> None:
    """One run of hypothesis from the seed `number`; a failure is printed, in its smallest form, and counted."""
    options = settings(max_examples=most, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    try:
        seed(number)(options(given(drawn)(check)))()
    except Exception as error:  # whatever an example ends in
        counts["failures"] += 1
        print(f"seed {number}: {type(error).__name__}: {error}", *getattr(error, "__notes__", []), sep="\n", flush=True)


if __name__ == "__main__":
    main()
