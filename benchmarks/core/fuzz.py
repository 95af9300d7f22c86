"""Damaged files and nasty command lines for an hour: how many end otherwise than they may? None should.

    python benchmarks/core/fuzz.py [MINUTES [PROCESSES]]

Turn by turn, hypothesis draws damage to the files of a run, a synthesis, class filters and data
(`tests/mutations.py`), and command lines (`tests/strategies.py`), each from a seed of its own. A command may work, or
end with status 1 or 2 and one plain sentence; with status 2 it has changed no file. It may take 20 s of processor time
and 1 GiB. Whatever else happens is printed with the seed of its turn, and counted.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
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
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = list(pool.map(_part, range(processes), [processes] * processes, [minutes] * processes))
    counts: Counter[str] = sum((part[0] for part in parts), Counter())
    tried, failed = counts["files"] + counts["command lines"], counts["failures"]
    record(
        "core/fuzz",
        "Damaged files and command lines that end in a traceback, a crash, a changed file, over 20 s or 1 GiB",
        "0",
        (failed, failed, failed),
        n=tried,
        unit="cases",
        minutes=minutes,
        processes=processes,
        seeds=f"0 to {min(part[1] for part in parts) - 1}",
        counts=dict(sorted(counts.items())),
        worst={key: round(max(part[2][key] for part in parts), 1) for key in ("seconds", "bytes")},
    )


def _part(first: int, step: int, minutes: float) -> tuple[Counter[str], int, dict[str, float]]:
    """The turns `first`, `first + step`, ... for some minutes: counts, the first turn not run, the worst case."""
    began = time.monotonic()
    counts: Counter[str] = Counter()
    worst = {"seconds": 0.0, "bytes": 0.0}
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

        turn = first
        while time.monotonic() - began < 60 * minutes:
            _turn(turn, damages(), file, FILES, counts)
            with recorders():
                _turn(turn, command_lines(), line, LINES, counts)
            turn += step
            if turn // step % 10 == 0:
                passed = (time.monotonic() - began) / 60
                print(f"process {first}, {passed:.0f} min, {dict(sorted(counts.items()))}", flush=True)
    return counts, turn, worst


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
