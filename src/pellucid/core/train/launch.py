"""Devices, processes and signals: what a loop needs from the machine."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from pellucid.core import vision
from pellucid.core.device import choose_device
from pellucid.core.errors import InputError
from pellucid.core.train.settings import TrainSettings


def launch(settings: TrainSettings) -> Any:
    """Lightning's Fabric as the settings ask, launched."""
    vision.repair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric

    device = torch.device(choose_device(settings.device))
    if settings.precision == "16-mixed" and device.type == "cpu":
        raise InputError("--precision 16-mixed needs a GPU: use bf16-mixed or 32 on the CPU.")
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
