"""Devices, processes and precision: what a training loop needs from the machine."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from pellucid.core import vision
from pellucid.core.device import choose_device
from pellucid.core.errors import InputError


def gradient_scaler(precision: str, device: str) -> torch.amp.GradScaler | None:
    """The scaler that keeps small gradients of `--precision 16-mixed` above zero; None for any other precision."""
    return torch.amp.GradScaler(device=torch.device(choose_device(device)).type) if precision == "16-mixed" else None


def launch(
    *,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    precision: str = "32",
    scaler: torch.amp.GradScaler | None = None,
) -> Any:
    """Lightning's Fabric, launched: it starts the script again for every further process.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps", ...
        devices: processes on each machine, one per device.
        nodes: machines that take part.
        strategy: how several devices work together, by Fabric's name.
        precision: "32", "bf16-mixed" or "16-mixed".
        scaler: the caller's own, so that its state can be saved and restored; see `gradient_scaler`.

    Raises:
        InputError: no such device, or 16-mixed on a CPU.
    """
    vision.repair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.precision import MixedPrecision

    where = torch.device(choose_device(device))
    if precision == "16-mixed" and where.type == "cpu":
        raise InputError("--precision 16-mixed needs a GPU: use bf16-mixed or 32 on the CPU.")
    chosen: Any = [where.index] if where.type != "cpu" and where.index is not None and devices == 1 else devices
    form: Any = "32-true" if precision == "32" else precision
    plugins: list[Any] = []
    if scaler is not None:  # Fabric takes precision either by name or as a plugin
        plugins, form = [MixedPrecision("16-mixed", where.type, scaler)], None
    fabric = Fabric(
        accelerator=where.type,
        devices=chosen,
        num_nodes=nodes,
        strategy=strategy,
        precision=form,
        plugins=plugins,
    )
    with _without_banner():
        fabric.launch()
    return fabric


@contextlib.contextmanager
def _without_banner() -> Iterator[None]:
    """Keep Fabric from announcing processes on stderr, where --quiet and --json promise nothing but errors."""
    log = logging.getLogger("lightning_fabric")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
