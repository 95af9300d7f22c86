"""Commands in processes that are forked from one that has imported everything: each starts in a hundredth of a second.

`Commands` starts the parent, which forks a child for each command and reports how it ended, what it printed, how much
memory it held at most and how long it took. A child that takes too long is killed; one that asks for too much memory is
refused it by the system.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SECONDS = 20  # of processor time that a command may take
PATIENCE = 90  # seconds on the clock, of a machine that may be busy, before a command is killed
ROOM = 3 * 2**30  # bytes of address space beyond what the parent holds


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    status: the exit status; -9 if it was killed for its time, another negative number for another signal
    out, err: what it printed
    peak: bytes of memory that it held at most, with what every such process holds
    seconds: of processor time
    """

    status: int
    out: str
    err: str
    peak: int
    seconds: float


def content(folder: Path) -> dict[str, bytes]:
    """What a folder holds: files with their content, other things with their type."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        regular = stat.S_ISREG(mode)
        found[str(path.relative_to(folder))] = path.read_bytes() if regular else str(stat.S_IFMT(mode)).encode()
    return found


class Commands:
    """Run commands one after another; a context manager."""

    def __enter__(self) -> Commands:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait(30)
        self._parent.stdout.close()

    def run(
        self, words: Sequence[str], cwd: str | os.PathLike[str], seconds: float = PATIENCE, largest: int | None = None
    ) -> Ended:
        """Run `pellucid WORDS` in the folder `cwd`.

        Args:
            words: the command and its arguments
            cwd: where to run it
            seconds: on the clock, after which it is killed
            largest: bytes beyond which the system refuses to write to a file, as if the disk were full
        """
        assert self._parent.stdin is not None and self._parent.stdout is not None
        asked = {"words": list(words), "cwd": os.fspath(cwd), "seconds": seconds, "largest": largest}
        self._parent.stdin.write(json.dumps(asked) + "\n")
        self._parent.stdin.flush()
        return Ended(**json.loads(self._parent.stdout.readline()))


def _serve() -> None:
    """Read commands from standard input, one JSON table per line, and write how each ended."""
    import importlib

    import torch
    from PIL import Image

    from pellucid.cli import main
    from pellucid.core.data.dataset import load_data

    for name in ("audit.page", "core.train.loop", "distillation.student", "inversion.invert", "search.study"):
        importlib.import_module(f"pellucid.{name}")
    for name in ("jsonargparse", "matplotlib.pyplot", "lightning_fabric"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    Image.init()
    load_data("digits")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(json.dumps(_forked(main, **asked)) + "\n")
        answers.flush()


def _forked(main: Any, words: list[str], cwd: str, seconds: float, largest: int | None) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(main, words, cwd, largest, out, err)
        while True:
            ended, status, usage = os.wait4(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() - began > seconds:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.002)
        took = usage.ru_utime + usage.ru_stime
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(2**20).decode("utf-8", "backslashreplace"))
    code = os.waitstatus_to_exitcode(status)
    return {"status": code, "out": texts[0], "err": texts[1], "peak": usage.ru_maxrss * 1024, "seconds": took}


def _child(main: Any, words: list[str], cwd: str, largest: int | None, out: IO[bytes], err: IO[bytes]) -> None:
    status = 70
    try:
        os.setpgid(0, 0)
        os.chdir(cwd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, held + ROOM))
        if largest is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        status = main(words)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
