"""Devices, processes and precision: what a training loop needs from the machine."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from pellucid.core import vision
from pellucid.core.device import choose_device
from pellucid.core.errors import InputError
from pellucid.core.train.settings import TrainSettings


def gradient_scaler(settings: TrainSettings) -> torch.amp.GradScaler | None:
    """The scaler that keeps small gradients of `--precision 16-mixed` above zero; None for any other precision."""
    if settings.precision != "16-mixed":
        return None
    return torch.amp.GradScaler(device=torch.device(choose_device(settings.device)).type)


def launch(settings: TrainSettings, scaler: torch.amp.GradScaler | None = None) -> Any:
    """Lightning's Fabric as the settings ask, launched.

    Args:
        settings: device, number of processes, strategy and precision.
        scaler: the caller's own, so that its state can be saved and restored; see `gradient_scaler`.
    """
    vision.repair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.precision import MixedPrecision

    device = torch.device(choose_device(settings.device))
    if settings.precision == "16-mixed" and device.type == "cpu":
        raise InputError("--precision 16-mixed needs a GPU: use bf16-mixed or 32 on the CPU.")
    devices: Any = settings.devices
    if device.type != "cpu" and device.index is not None and settings.devices == 1:
        devices = [device.index]
    precision: Any = "32-true" if settings.precision == "32" else settings.precision
    plugins = []
    if scaler is not None:  # Fabric takes precision either by name or as a plugin
        plugins, precision = [MixedPrecision("16-mixed", device.type, scaler)], None
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=settings.nodes,
        strategy=settings.strategy,
        precision=precision,
        plugins=plugins,
    )
    fabric.launch()
    return fabric
