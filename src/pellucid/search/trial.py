"""One trial: its commands, one after the other, each a process that ends when the worker does."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pellucid.core.errors import InputError
from pellucid.search.plan import Plan


def run(plan: Plan, point: Mapping[str, Any], folder: Path) -> list[float]:
    """Run the commands of a trial in `folder`, each in a process that ends when this one does; its scores.

    Raises:
        InputError: what the command that failed said last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for command in plan.commands:
        with open(folder / "log.txt", "a") as log:
            said = words(plan, command, point, folder)
            log.write(f"$ {shlex.join(['pellucid', *said])}\n")
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "pellucid.search.trial", *said], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
            try:
                status = process.wait()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
        if status:
            last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1]
            raise InputError(f"{command} failed: {last.removeprefix('pellucid: ')}")
    return plan.scores_of(folder)


def words(plan: Plan, command: str, point: Mapping[str, Any], folder: Path) -> list[str]:
    """What to say to `pellucid`."""
    positional, flags = plan.arguments(command, point, folder)
    said = [command, *positional]
    for name, value in {**flags, "out": str(folder / command)}.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            said.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            said += [f"--{flag}", *map(str, value)]
        elif value is not None:
            said += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return said


def _main(words: list[str]) -> int:
    """One command of a trial: `pellucid WORDS`, which ends when the worker, at the other end of the pipe, is gone."""
    from pellucid.cli import main

    def watch() -> None:
        # Not sys.stdin: at the end of the program its lock would still be held.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return main(words)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
