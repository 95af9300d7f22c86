"""State that a call borrows and gives back: training mode of every submodule, random state, determinism, device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import nn

from pellucid.core.device import device_of


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while the block runs; afterwards every submodule is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def seeded(seed: int | None = None) -> Iterator[None]:
    """torch's random state on every device, set to `seed` (None: left as it is), and restored after the block."""
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    # Named one by one, since torch would warn where there are several.
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            yield
        finally:
            if mps is not None:
                torch.mps.set_rng_state(mps)


@contextlib.contextmanager
def determinism(on: bool) -> Iterator[None]:
    """Deterministic algorithms, or not, while the block runs; torch's and cuBLAS's settings are restored after it."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    torch.use_deterministic_algorithms(on, warn_only=True)
    torch.backends.cudnn.benchmark = not on
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        else:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


@contextlib.contextmanager
def on_device(model: nn.Module, device: str | torch.device | None) -> Iterator[None]:
    """`model` on `device` while the block runs (None: where it is), and back where it was afterwards."""
    before = device_of(model)
    if device is not None:
        model.to(device)
    try:
        yield
    finally:
        if device is not None:
            model.to(before)
