"""How long the command takes to show its help. Budget: 1 second, whatever is installed.

    python benchmarks/core/startup.py

The table of commands and every `--help` import neither torch nor numpy (a test checks that); this measures
what is left.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.record import record, spread
from benchmarks.timing import interleaved

RUNS = 15
CASES = {
    "import": ("`import pellucid`", ["-c", "import pellucid"]),
    "help": ("`pellucid --help`", ["-m", "pellucid", "--help"]),
    "train-help": ("`pellucid train --help`", ["-m", "pellucid", "train", "--help"]),
}


def main() -> None:
    calls = {
        name: functools.partial(subprocess.run, [sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        for name, (_, words) in CASES.items()
    }
    times = interleaved(calls, RUNS, clock=time.perf_counter)  # the first turn only warms the file cache
    for name, (title, _) in CASES.items():
        record(f"core/startup-{name}", f"{title}, wall time", "under 1 s", spread(times[name]), n=RUNS, unit="s")


if __name__ == "__main__":
    main()
