"""Kill every command that takes time, at random moments, again and again: does it end in the files of a run in peace?

    OMP_NUM_THREADS=1 python benchmarks/core/kills.py [VARIANT ...]

For each variant one run in a fresh folder is left in peace: the reference. Then chains of kills follow, each in a
folder of its own: the command is started and killed with SIGKILL, with its whole process group, at a moment drawn
uniformly over the duration of the reference, start-up included; then the same command again, until it ends or has
been killed LONGEST times, after which it is left in peace. In every second chain that moment only begins the wait for
the next change of a file, and the kill follows within AFTER seconds: most faults lie in writing. In the end every
file is compared with the reference's, byte for byte, apart from what `leaves.py` lists, such as wall times and dates;
and after every kill every file that can be seen must be whole, and the one that the reference has if the command has
no intermediate files.

Most runs are forked from a process that has imported everything, so that a run takes seconds and kills fall into the
work; some kills per variant are of fresh processes. A run of two processes is forked as torchrun would start it. In
forked searches, a trial's process is forked too, and a dead worker is noticed after two seconds in place of a minute.

Each chain is a row of `results/core/kills.jsonl` as soon as it is done; chains that are there are not made again.
References are kept in a folder for temporary files, one per state of the package's source.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.core.leaves import MAY_DIFFER, broken, differing
from benchmarks.record import RESULTS, logged, record, run_rows

LONGEST = 5  # kills in one chain
AFTER = 0.01  # seconds
FORKED, FRESH = 18, 2  # kills per variant, at least
LOG = RESULTS / "core" / "kills.jsonl"

TRAIN = ("train", "--batch-size", "100", "--checkpoint-seconds", "0", "--out", "run", "--quiet")
SMALL = ("--model", "conv2", "--epochs", "2", "--limit-batches", "6")
DEEP = ("--model", "resnet20", "--epochs", "4", "--limit-batches", "6")
PLAN = """
grid: {lr: [0.05, 0.1]}
fixed: {model: conv2, epochs: 1, limit-batches: 4, batch-size: 100, checkpoint-seconds: 0}
score: result.json:best.val_accuracy
direction: maximize
"""


@dataclass(frozen=True)
class Variant:
    """A command, what it starts from, and the pattern of the files that show a first checkpoint ("" if it has none)."""

    title: str
    words: tuple[str, ...]
    checkpoint: str
    given: tuple[str, ...] = ()
    processes: int = 1


STATE = "run/last.ckpt/checkpoint.json"
VARIANTS = {
    "plain": Variant("train", (*TRAIN, *DEEP), STATE),
    "deconv": Variant("train, whitening", (*TRAIN, *DEEP, "--layers", "deconv"), STATE),
    "csc": Variant("train, sparse coding", (*TRAIN, *DEEP, "--layers", "csc"), STATE),
    "subnet": Variant("train, edge-popup", (*TRAIN, *DEEP, "--layers", "subnet"), STATE),
    "stateful": Variant(
        "train, moving average, mixup, cutout, AdamW",
        (*TRAIN, *DEEP, "--ema", "0.9", "--mixup", "0.2", "--cutout", "2", "--optimizer", "adamw"),
        STATE,
    ),
    "two": Variant("train, two processes", (*TRAIN, *DEEP, "--devices", "2"), STATE, processes=2),
    "keras": Variant(
        "train, Keras on torch",
        ("train", "--framework", "keras", "--backend", "torch", "--batch-size", "100", "--out", "run", "--quiet",
         "--model", "resnet20", "--epochs", "3", "--limit-batches", "3"),
        "run/last.keras",
    ),
    "synthesize": Variant(
        "synthesize",
        ("synthesize", "deep", "--per-class", "4", "--batch-size", "5", "--steps", "12", "--out", "images", "--quiet"),
        "images/.batches/*.safetensors",
        ("deep",),
    ),
    "search": Variant(
        "search over train",
        ("search", "train", "--grid", "plan.yaml", "--out", "study", "--quiet"),
        "study/trials/*/train/last.ckpt/checkpoint.json",
        ("plan.yaml",),
    ),
    "distill": Variant(
        "distill with its controls",
        ("distill", "deep", "conv2", "images", "--data", "digits", "--epochs", "2", "--real", "1", "--out", "students",
         "--quiet"),
        "students/*/last.ckpt/checkpoint.json",
        ("deep", "images"),
    ),
    "open": Variant("open", ("open", "small", "--out", "report", "--quiet"), "", ("small",)),
    "invert": Variant(
        "invert",
        ("invert", "deep", "--out", "inverted", "--count", "20", "--batch-size", "10", "--steps", "25", "--quiet"),
        "",
        ("deep",),
    ),
}  # fmt: skip
# What variants start from: the command that makes it, run once in the folder of references.
GIVEN = {
    "deep": ("train", "--model", "resnet20", "--epochs", "3", "--batch-size", "100", "--out", "deep", "--quiet"),
    "small": ("train", "--model", "conv2", "--epochs", "3", "--batch-size", "100", "--out", "small", "--quiet"),
    "images": ("synthesize", "deep", "--per-class", "6", "--steps", "5", "--out", "images", "--quiet"),
}


# --- processes ---


@dataclass
class Job:
    """A started command: the process that leads its group, or for `Popen` the object."""

    pid: int
    status: int | None = None

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit status, or None if it is still running after `seconds`."""
        until = None if seconds is None else time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif until is not None and time.monotonic() >= until:
                return None
            else:
                time.sleep(0.002)
        return self.status

    def kill(self) -> None:
        """SIGKILL to the group."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def start_fresh(words: tuple[str, ...], cwd: Path, processes: int) -> Job:
    """The command as a user starts it."""
    with open(cwd / "log", "ab") as log:
        command = [sys.executable, "-m", "pellucid", *words]
        return Job(subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log, start_new_session=True).pid)


def start_forked(words: tuple[str, ...], cwd: Path, processes: int) -> Job:
    """The command in a copy of this process, or in one copy per rank."""
    port = 20000 + random.SystemRandom().randrange(20000)

    def lead() -> int:
        os.setsid()
        os.chdir(cwd)
        log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        if processes == 1:
            return command(words)
        ranks = [fork(lambda rank=rank: command(words, rank, processes, port)) for rank in range(processes)]
        return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks)

    job = Job(fork(lead))
    while job.wait(0) is None and os.getpgid(job.pid) != job.pid:  # until then there is no group to kill
        time.sleep(0.0005)
    return job


def fork(body: Callable[[], int]) -> int:
    """Run `body` in a copy of this process, which exits with what it returns."""
    if pid := os.fork():
        return pid
    status = 70
    try:
        status = body()
        sys.stdout.flush(), sys.stderr.flush()
    finally:
        os._exit(status)


def command(words: tuple[str, ...], rank: int = 0, processes: int = 1, port: int = 0) -> int:
    """Run the command in this process, as one of several ranks if there are several."""
    import pellucid.search.study
    import pellucid.search.trial
    from pellucid.cli import main

    sys.argv = ["pellucid", *words]
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "GROUP_RANK": "0",
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "kills",
        }  # fmt: skip
    pellucid.search.study.BEAT, pellucid.search.study.SILENCE = 1, 2
    pellucid.search.trial.subprocess = _Forking
    return main(words)


class _Forking:
    """Stands for the module `subprocess` where a search starts its trials."""

    PIPE = subprocess.PIPE

    class Popen:
        def __init__(self, arguments: list[str], stdin: int, stdout: Any, stderr: Any) -> None:
            def body() -> int:
                os.dup2(stdout.fileno(), 1), os.dup2(stderr.fileno(), 2)
                return command(tuple(arguments[3:]))  # after python -m pellucid.search.trial

            self.pid = fork(body)

        def wait(self) -> int:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


# --- chains of kills ---


def changes(folder: Path) -> int:
    """The last change of any file or folder in `folder`, in nanoseconds."""
    with contextlib.suppress(FileNotFoundError):
        return max(file.stat().st_mtime_ns for file in folder.rglob("*"))
    return -1  # one went meanwhile, which is a change


class Bench:
    """The folder of references, and what is made in it."""

    def __init__(self) -> None:
        import pellucid

        sources = sorted(Path(pellucid.__file__).parent.rglob("*.py"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]
        self.path = Path(tempfile.gettempdir()) / f"pellucid-kills-{digest}"
        self.path.mkdir(exist_ok=True)

    def folder(self, place: Path, variant: Variant) -> Path:
        """A new folder with what the variant starts from."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name in variant.given:
            if name == "plan.yaml":
                (place / name).write_text(PLAN)
                continue
            if not (self.path / name).exists():
                making = self.folder(
                    self.path / f"{name}.making", Variant("", (), "", ("deep",) if name == "images" else ())
                )
                assert start_forked(GIVEN[name], making, 1).wait() == 0, (making / "log").read_text()
                (making / name).rename(self.path / name)
            shutil.copytree(self.path / name, place / name)
        return place

    def reference(self, name: str, fresh: bool) -> tuple[Path, float]:
        """The folder of the run in peace, and its duration in seconds."""
        variant, place = VARIANTS[name], self.path / f"{name}-{'fresh' if fresh else 'forked'}"
        seconds = place / "seconds"
        if not seconds.is_file():
            self.folder(place, variant)
            began = time.monotonic()
            status = (start_fresh if fresh else start_forked)(variant.words, place, variant.processes).wait()
            assert status == 0, (place / "log").read_text()
            seconds.write_text(str(time.monotonic() - began))
        return place, float(seconds.read_text())

    def chain(self, variant: str, chain: int, fresh: bool) -> dict[str, Any]:
        """Kill and start again until the command ends; the row of the log."""
        how, begin = VARIANTS[variant], start_fresh if fresh else start_forked
        reference, duration = self.reference(variant, fresh)
        rng = random.Random(f"{variant} {chain} {fresh}")
        place = self.folder(self.path / "chain", how)
        kills, early, starts, torn = [], 0, 0, []
        longest = 1 if fresh and variant == "search" else LONGEST  # a dead worker is noticed after a minute
        while True:
            starts += 1
            job = begin(how.words, place, how.processes)
            began = time.monotonic()
            moment, after = rng.uniform(0, duration), rng.uniform(0, AFTER)
            if (status := job.wait(None if len(kills) >= longest else moment)) is not None:
                break
            if chain % 2:
                before = changes(place)
                while (status := job.wait(0)) is None and changes(place) == before:
                    time.sleep(0.001)
                if status is not None or (status := job.wait(after)) is not None:
                    break
            job.kill()
            kills.append(round(time.monotonic() - began, 3))
            early += bool(how.checkpoint) and not any(place.glob(how.checkpoint))
            torn += broken(place, None if how.checkpoint else reference)
        if status != 0:
            torn.append(f"exit status {status}: {(place / 'log').read_text().strip().splitlines()[-1:]}")
        different = differing(place, reference)
        if different or torn:
            shutil.copytree(place, self.path / f"kept-{variant}-{chain}-{fresh}", dirs_exist_ok=True)
        return {"kills": kills, "early": early, "starts": starts, "torn": torn, "different": different}


def main(names: list[str]) -> None:
    os.environ |= {"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    import torch

    import pellucid.audit.page
    import pellucid.cli
    import pellucid.core.train.loop
    import pellucid.distillation.student
    import pellucid.distillation.synthesize
    import pellucid.inversion.invert
    import pellucid.keras.training  # noqa: F401
    from pellucid.core import vision

    torch.set_num_threads(1)
    vision.repair()
    import lightning_fabric  # noqa: F401
    import optuna  # noqa: F401
    import torch.utils.tensorboard

    bench = Bench()
    for name, fresh in itertools.product(names, (False, True)):
        wanted, chain = FRESH if fresh else FORKED, 0
        while sum(len(row["kills"]) for row in _rows(name, fresh)) < wanted:
            run_rows(LOG, [{"variant": name, "fresh": fresh, "chain": chain}], bench.chain)
            chain += 1
    for name in names:
        rows = _rows(name)
        different = sum(len(row["different"]) + len(row["torn"]) for row in rows)
        kills = sum(len(row["kills"]) for row in rows)
        record(
            f"core/kills-{name}",
            VARIANTS[name].title,
            "0",
            (different, different, different),
            n=kills,
            unit="files",
            kills=kills,
            before_the_first_checkpoint=sum(row["early"] for row in rows) if VARIANTS[name].checkpoint else "-",
            of_fresh_processes=sum(len(row["kills"]) for row in rows if row["fresh"]),
            resumed_runs=sum(row["starts"] - 1 for row in rows),
            differing_files=different,
            may_differ=MAY_DIFFER[name if name in MAY_DIFFER else "train"],
            seed="variant and chain",
        )


def _rows(name: str, fresh: bool | None = None) -> list[dict[str, Any]]:
    return [row for row in logged(LOG) if row["variant"] == name and fresh in (None, row["fresh"])]


if __name__ == "__main__":
    main(sys.argv[1:] or list(VARIANTS))
