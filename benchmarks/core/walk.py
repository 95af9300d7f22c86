"""Walk through networks of timm and torchvision, and do to each what this package does to networks.

    python benchmarks/core/walk.py [--only PATTERN] [--fresh]

Each network (`networks.txt`) has random weights and a process of its own. Each operation (`operations.py`) ends as

- done: its result is what a plain computation says;
- refused: InputError, with its sentence;
- wrong: it ended without a word, and its result is another;
- traceback: any other error;
- late: it took more than three minutes, or its process died.

Operations on the result of a conversion that was refused are skipped, and not counted. Rows go to
`results/core/walk.jsonl`, one for each network and operation as soon as it has ended: a walk that was stopped goes on
where it was. `--only` walks the networks whose names contain PATTERN, and `--fresh` also those that were walked before.
What was measured is recorded when all networks have been walked.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import torch
from operations import OPERATIONS, Skipped, Subject, Wrong, subject

from benchmarks.record import RESULTS, Row, logged, percent, record
from pellucid.core import vision
from pellucid.core.errors import InputError, first_line

LOG = RESULTS / "core" / "walk.jsonl"
SECONDS = 180  # for one operation
COUNTED = ("done", "refused", "wrong", "traceback", "late")


def networks() -> dict[str, tuple[str, int]]:
    """The family and the image size in pixels of each network, by name."""
    lines = (Path(__file__).parent / "networks.txt").read_text().splitlines()
    rows = (line.split() for line in lines if line and not line.startswith("#"))
    return {name: (family, int(size)) for family, name, size in rows}


def rows_of(log: Path) -> dict[tuple[str, str], Row]:
    """The last row of each network and operation in a log."""
    return {(row["network"], row["operation"]): row for row in logged(log)}


def walk(name: str, size: int) -> None:
    """Walk one network in a process of its own, and append the rows to the log."""
    context = multiprocessing.get_context("fork")  # timm is imported once
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_walked, args=(name, size, theirs))
    began = time.monotonic()
    process.start()
    theirs.close()
    for operation in OPERATIONS:
        row = None
        while row is None:
            try:
                if ours.poll(1):
                    row = ours.recv()
                elif time.monotonic() - began > 2 * SECONDS:
                    process.kill()
            except EOFError:  # killed, here or by the system
                row = {"result": "late", "seconds": round(time.monotonic() - began, 1)}
        began = time.monotonic()
        row = {"network": name, "operation": operation, **row}
        with open(LOG, "a") as file:
            file.write(json.dumps(row) + "\n")
        if row["result"] not in ("done", "skipped"):
            print(name, operation, row["result"], row.get("sentence", ""), sep=" | ", flush=True)
    process.join()


def _walked(name: str, size: int, rows: Connection) -> None:
    """Send a row for each operation."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _late)
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Subject] = {}

        def build() -> None:
            made[""] = subject(name, size, Path(folder))

        failed = {**_ended(build), "result": "traceback"}  # a network that is not built has no business here
        for operation in OPERATIONS.values():
            began = time.process_time()
            row = failed if "" not in made else _ended(lambda: operation(made[""]))  # noqa: B023
            rows.send({**row, "seconds": round(time.process_time() - began, 1)})


def _ended(operation: Any) -> Row:
    """How an operation ends."""
    signal.alarm(SECONDS)
    try:
        operation()
    except InputError as error:
        return {"result": "refused", "sentence": str(error)}
    except (Wrong, Skipped) as error:
        return {"result": type(error).__name__.lower(), "sentence": str(error)}
    except TimeoutError:
        return {"result": "late"}
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return {"result": "traceback", "sentence": f"{type(error).__name__}: {first_line(error)} ({where})"}
    finally:
        signal.alarm(0)
    return {"result": "done"}


def _late(*_: object) -> None:
    raise TimeoutError


def summarise(known: dict[str, tuple[str, int]], rows: list[Row]) -> None:
    """Record what was measured of all networks."""
    counts = Counter(row["result"] for row in rows)
    n = sum(counts[result] for result in COUNTED)
    facts: Row = {
        "networks": len(known),
        "families": len({family for family, _ in known.values()}),
        "operations": len(OPERATIONS),
        "counts": {result: counts[result] for result in (*COUNTED, "skipped")},
        "timm": vision.timm().__version__,
        "torchvision": vision.torchvision().__version__,
        "seed": "0",
    }
    titles = {"wrong": "silently wrong", "traceback": "end in a traceback"}
    for result, title in titles.items():
        measured = (counts[result],) * 3
        record(f"core/walk-{result}", f"Operations that {title}", "0", measured, n=n, unit="operations", **facts)
    record("core/walk", "Operations done", "97 or more", percent(counts["done"], n), n=n, unit="%", **facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="part of the names of the networks to walk")
    parser.add_argument("--fresh", action="store_true", help="walk again what was walked before")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    vision.timm()
    known = networks()
    LOG.parent.mkdir(parents=True, exist_ok=True)
    for number, (name, (_, size)) in enumerate(known.items(), 1):
        rows = rows_of(LOG)
        walked = all((name, operation) in rows for operation in OPERATIONS)
        if arguments.only not in name or (walked and not arguments.fresh):
            continue
        print(f"{number} of {len(known)}: {name}", flush=True)
        walk(name, size)
    rows = rows_of(LOG)
    wanted = [(name, operation) for name in known for operation in OPERATIONS]
    if all(key in rows for key in wanted):
        LOG.write_text("".join(json.dumps(rows[key]) + "\n" for key in wanted))  # one row for each, in their order
        summarise(known, [rows[key] for key in wanted])


if __name__ == "__main__":
    main()
