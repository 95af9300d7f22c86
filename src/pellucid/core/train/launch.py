"""Devices and processes: what a loop needs from the machine."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from pellucid.core import vision
from pellucid.core.device import choose_device
from pellucid.core.errors import InputError


def launch(
    *,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    precision: str = "32",
) -> Any:
    """Lightning's Fabric, launched: it starts the script again for every further process.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps", ...
        devices: processes on each machine, one per device.
        nodes: machines that take part.
        strategy: how several devices work together, by Fabric's name.
        precision: "32", "bf16-mixed" or "16-mixed".

    Raises:
        InputError: no such device, or 16-mixed on a CPU.
    """
    vision.repair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric

    where = torch.device(choose_device(device))
    if precision == "16-mixed" and where.type == "cpu":
        raise InputError("--precision 16-mixed needs a GPU: use bf16-mixed or 32 on the CPU.")
    chosen: Any = [where.index] if where.type != "cpu" and where.index is not None and devices == 1 else devices
    form: Any = "32-true" if precision == "32" else precision
    fabric = Fabric(accelerator=where.type, devices=chosen, num_nodes=nodes, strategy=strategy, precision=form)
    fabric.launch()
    return fabric
