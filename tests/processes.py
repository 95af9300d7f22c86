"""Real processes for tests: the command as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# One thread each: tests share the cores, and sums in another order would not be bit-identical.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def start(*words: str, cwd: Path, **options) -> subprocess.Popen[str]:
    """Start `pellucid WORDS` in `cwd`."""
    command = [sys.executable, "-m", "pellucid", *map(str, words)]
    return subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def run(*words: str, cwd: Path, timeout: float = 240, **options) -> subprocess.CompletedProcess[str]:
    """Run `pellucid WORDS` in `cwd` to its end."""
    process = start(*words, cwd=cwd, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command prints; no traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("pellucid: ")
    return lines[0]
