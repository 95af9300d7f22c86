"""The run folder: settings, environment, metrics and checkpoints; each file is written whole or not at all.

settings.yaml       complete; `pellucid train --config settings.yaml` replays it
environment.json    versions, hardware, seed, data and its normalisation, git state, command
metrics.jsonl       one JSON row per epoch
events.out.*        the same for TensorBoard
last.ckpt/          checkpoint.json, the position in training, and the file of tensors that it names
best.safetensors    weights of the epoch with the best validation accuracy, with the model's description
objective.safetensors  what the objective trained along with the model, if anything, from the same epoch
result.json         the numbers on the test set; its presence means that the run is finished
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from pellucid.core.data.dataset import Dataset
from pellucid.core.errors import InputError, shown
from pellucid.core.files.atomic import remove_temporaries, write_atomic
from pellucid.core.files.conform import conform
from pellucid.core.files.structured import read_json, read_rows, read_yaml
from pellucid.core.files.tensors import read_tensors, save_tensors
from pellucid.core.ranges import Number, Part
from pellucid.core.terminal import warn
from pellucid.core.train.environment import describe_data, describe_environment
from pellucid.core.train.settings import NEUTRAL, TrainSettings

STATE = "last.ckpt"

# What is read back from the files of a folder, which anyone may have written; they hold more.
ENVIRONMENT = {"data": {"fingerprint": str}, "code": str | None}
EPOCH = {
    "epoch": Number,
    "step": Number,
    "train_loss": float,
    "train_accuracy": Part,
    "val_loss": float | None,  # without held-out images
    "val_accuracy": Part | None,
}
BEST = {"epoch": Number, "val_accuracy": Part | None, "val_loss": float | None}
TEST = {
    "n": Number,
    "top1": Part,
    "top1_interval": tuple[Part, Part],
    "top5": Part | None,
    "ece": float,
}
RESULT = {"test": TEST, "best": BEST, "data": {"images": {"val": Number}}}
STATE_POINTER = {"file": str, "total_steps": Number}


class Run:
    """A run folder. `Run(path)` only reads it; `Run.start(path, settings)` creates or continues it, and locks it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / "settings.yaml").is_file():
            raise InputError(f"{str(self.path)!r} is not a run folder: it has no settings.yaml.")
        self.settings = read_settings(self.path / "settings.yaml")
        self._lock: Any = None

    # --- creating, continuing, locking ---

    @classmethod
    def start(cls, path: str | os.PathLike[str], settings: TrainSettings) -> Run:
        """Create the folder `path`, or continue it if it was begun with the same settings; hold its lock.

        Raises:
            InputError: the folder holds something else, other settings, or is in use by another process.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"{str(path)!r} is a file: give a folder with --out.")
        cls._begun(path, settings)  # before anything is written there, a lock included
        path.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
        try:
            begun = cls._begun(path, settings)  # by a process that was faster
            if begun is None:
                write_atomic(path / "settings.yaml", _yaml(dataclasses.asdict(settings)))
            run = begun or cls(path)
            for folder in (path, path / STATE):
                remove_temporaries(folder)
            run._remove_old_states()
        except BaseException:
            lock.release()
            raise
        run._lock = lock
        return run

    @classmethod
    def _begun(cls, path: Path, settings: TrainSettings) -> Run | None:
        """The run that the folder `path` holds, which must have these settings; None if it holds nothing."""
        if (path / "settings.yaml").exists():
            run = cls(path)
            run._check_same(settings)
            return run
        if path.exists() and any(p.name != ".lock" and not p.name.endswith(".tmp") for p in path.iterdir()):
            raise InputError(f"{str(path)!r} holds files that are not a run: give an empty folder with --out.")
        return None

    def release(self) -> None:
        """Release the lock; the system does so too when the process dies."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _check_same(self, settings: TrainSettings) -> None:
        old, new = dataclasses.asdict(self.settings), dataclasses.asdict(settings)
        for key, value in new.items():
            if key not in NEUTRAL and old[key] != value:
                raise InputError(
                    f"{str(self.path)!r} was begun with {key} = {old[key]!r}, not {value!r}: continue it unchanged "
                    f"with --resume {self.path}, or give another folder with --out."
                )

    # --- environment ---

    def write_environment(self, dataset: Dataset, code: str | None = None) -> None:
        """Record versions, hardware and data, once; a continued run must have the same data.

        Args:
            dataset: the data.
            code: SHA-256 of the user's own code that builds the network; if another was recorded, that is said.

        Raises:
            InputError: the data are not those the run began with.
        """
        file = self.path / "environment.json"
        if file.exists():
            begun = self.environment()
            if begun["data"]["fingerprint"] != dataset.fingerprint:
                raise InputError(
                    f"The data of {dataset.name} have changed since {str(self.path)!r} was begun: train into another "
                    "folder with --out."
                )
            if begun["code"] != code:
                warn(f"The code of {self.settings.model} has changed since {str(self.path)!r} was begun.")
            return
        environment = {
            **describe_environment(), "seed": self.settings.seed, "data": describe_data(dataset), "code": code
        }  # fmt: skip
        write_atomic(file, json.dumps(environment, indent=2) + "\n")

    def environment(self) -> dict[str, Any]:
        """The content of `environment.json`."""
        return read_json(self.path / "environment.json", ENVIRONMENT)

    # --- metrics ---

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, without a last line that a killed process left unfinished."""
        file = self.path / "metrics.jsonl"
        return read_rows(file, EPOCH) if file.exists() else []

    def log(self, row: dict[str, Any]) -> None:
        """Append a row and flush it to disk."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def forget_from(self, epoch: int) -> None:
        """Drop the rows of `epoch` and later ones: they will be written again."""
        if (self.path / "metrics.jsonl").exists():
            rows = [row for row in self.metrics() if row["epoch"] < epoch]
            write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    # --- state, best, result ---

    def save_state(self, tensors: dict[str, Tensor], info: dict[str, Any], **description: Any) -> None:
        """Write the state of training: the tensors to a new file, then the small file that points to it.

        A kill or a full disk at any moment leaves the pointer on a complete older state.
        """
        folder = self.path / STATE
        folder.mkdir(exist_ok=True)
        name = f"state-{info['total_steps']:09d}.safetensors"
        save_tensors(tensors, folder / name, **description)
        write_atomic(folder / "checkpoint.json", json.dumps({**info, "file": name}) + "\n")
        self._remove_old_states()

    def _remove_old_states(self) -> None:
        """Delete the states that the pointer does not name, such as one from before a kill.

        None is deleted if the pointer is damaged, or the state that it names is not there.
        """
        folder = self.path / STATE
        name = None
        if (folder / "checkpoint.json").exists():
            try:
                name = read_json(folder / "checkpoint.json", STATE_POINTER)["file"]
            except InputError:
                return
            if folder / name not in folder.glob("state-*.safetensors"):
                return
        for old in folder.glob("state-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last saved state, (tensors, position), or None.

        Raises:
            InputError: it is damaged.
        """
        folder = self.path / STATE
        if not (folder / "checkpoint.json").exists():
            return None
        info = read_json(folder / "checkpoint.json", STATE_POINTER)
        name = info["file"]
        if Path(name).name != name:
            raise InputError(
                f"{str(folder / 'checkpoint.json')!r} names no file in its folder: delete {str(folder)!r}."
            )
        tensors, _ = read_tensors(folder / name)
        return tensors, info

    @property
    def best(self) -> Path:
        """The file of the best epoch's weights."""
        return self.path / "best.safetensors"

    @property
    def objective(self) -> Path:
        """The file of what the objective trained along with those weights; missing if it trained nothing."""
        return self.path / "objective.safetensors"

    def finish(self, result: dict[str, Any]) -> None:
        """Write the final numbers, which marks the run as finished."""
        write_atomic(self.path / "result.json", json.dumps(result, indent=2) + "\n")

    def result(self) -> dict[str, Any] | None:
        """The final numbers, or None while the run is unfinished."""
        file = self.path / "result.json"
        return read_json(file, RESULT) if file.exists() else None


def _acquire(path: Path) -> Any:
    from filelock import FileLock, Timeout

    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"Another process is training in {str(path)!r}: wait for it or give another --out.") from None
    return lock


def read_settings(file: str | os.PathLike[str]) -> TrainSettings:
    """Read settings from a YAML file.

    Raises:
        InputError: the file is not YAML, or does not hold the settings of a run.
    """
    what = f"{shown(os.fspath(file), 300)} does not hold the settings of a run"
    values = read_yaml(file)
    known = {field.name for field in dataclasses.fields(TrainSettings)}
    if isinstance(values, dict) and (unknown := sorted(set(values) - known)):
        raise InputError(f"{what}: this version of pellucid does not know {shown(unknown[0])}.")
    return TrainSettings(**conform(values, TrainSettings, what))


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False)
