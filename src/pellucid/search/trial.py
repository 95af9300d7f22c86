"""Run one trial: its commands one after the other, each in a process that ends when the worker does."""

from __future__ import annotations

import json
import os
import runpy
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
    """Run the commands of a trial in `folder`, each in a process that ends when this one does, and read its scores.

    Raises:
        InputError: a command failed; the sentence ends with its last line of output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for command in plan.commands:
        with open(folder / "log.txt", "a") as log:
            arguments = words(plan, command, point, folder)
            log.write(f"$ {shlex.join(['pellucid', *arguments])}\n")
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "pellucid.search.trial", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
            try:
                status = process.wait()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
            finally:
                if process.stdin is not None:
                    process.stdin.close()
        if status:
            last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1]
            raise InputError(f"{command} failed: {last.removeprefix('pellucid: ')}")
    return plan.scores_of(folder)


def words(plan: Plan, command: str, point: Mapping[str, Any], folder: Path) -> list[str]:
    """The arguments of `pellucid` on its command line, for one command of a trial."""
    positional, flags = plan.arguments(command, point, folder)
    arguments = [command, *positional]
    for name, value in {**flags, "out": str(folder / command)}.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            arguments += [f"--{flag}", *map(str, value)]
        elif value is not None:
            arguments += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return arguments


def _main() -> None:
    """Run the program `pellucid` with the arguments of this process; end when the worker, which holds stdin, does."""

    def watch() -> None:
        # Not sys.stdin: its lock would still be held when the program ends.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    runpy.run_module("pellucid", run_name="__main__")


if __name__ == "__main__":
    _main()
