"""Devices, processes and signals: what a loop needs from the machine."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from pellucid.core import vision
from pellucid.core.errors import InputError
from pellucid.core.settings import TrainSettings


def launch(settings: TrainSettings) -> Any:
    """Lightning's Fabric as the settings ask, launched."""
    vision.repair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric

    device = torch.device(choose_device(settings.device))
    if settings.precision == "16-mixed" and device.type == "cpu":
        raise InputError("--precision 16-mixed needs a GPU: use bf16-mixed or 32 on the CPU.")
    torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    devices: Any = settings.devices
    if device.type != "cpu" and device.index is not None and settings.devices == 1:
        devices = [device.index]
    precision: Any = "32-true" if settings.precision == "32" else settings.precision
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=settings.nodes,
        strategy=settings.strategy,
        precision=precision,
    )
    fabric.launch()
    return fabric


def choose_device(name: str) -> str:
    """`auto` becomes cuda, mps or cpu, whichever is there first; others are checked.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise InputError(f"There is no device {name!r} here: use --device auto or cpu.") from None
    return name


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM while the block runs; a second one of a kind acts at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {}
    try:
        before |= {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread (a notebook's worker): signals stay as they are
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
