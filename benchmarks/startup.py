"""How long the command takes to say what it can do. Budget: 1 second, whatever is installed.

The table of commands and every `--help` import neither torch nor numpy (a test holds that); this measures what is left.
"""

from __future__ import annotations

import subprocess
import sys
import time

from results import record, spread

RUNS = 15
CASES = {
    "startup-import": ("`import pellucid`", ["-c", "import pellucid"]),
    "startup-help": ("`pellucid --help`", ["-m", "pellucid", "--help"]),
    "startup-train-help": ("`pellucid train --help`", ["-m", "pellucid", "train", "--help"]),
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(RUNS + 1):  # interleaved; the first turn only warms the file cache
        for name, (_, words) in CASES.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    for name, (title, _) in CASES.items():
        record(name, f"{title}, wall time", "under 1 s", spread(seconds[name]), n=RUNS, unit="s")


if __name__ == "__main__":
    main()
