"""Devices by name, and tensors that must not become half precision."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError


def choose_device(name: str) -> str:
    """The device called `name`; "auto" is the first of cuda, mps and cpu that this machine has.

    Raises:
        InputError: this machine has no such device.
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


def at_least_single(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn`, as `Module._apply` passes it, without half() and bfloat16(): half precision would corrupt covariances and
    rankings."""

    def kept(tensor: Tensor) -> Tensor:
        made = fn(tensor)
        return tensor.to(made.device) if made.dtype in (torch.float16, torch.bfloat16) else made

    return kept


def has_double(device: torch.device | str) -> bool:
    """Whether `device` has float64; Apple's GPUs have not."""
    return (torch.device(device) if isinstance(device, str) else device).type != "mps"


def double(tensor: Tensor) -> Tensor:
    """`tensor` in float64: where it is, or on the CPU if its device has no float64."""
    return tensor.double() if has_double(tensor.device) else tensor.cpu().double()


def device_of(model: nn.Module) -> torch.device:
    """The device of the parameters of `model`, or else of its buffers; the CPU if it has neither."""
    sample = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if sample is None else sample.device


def single(tensor: Tensor) -> Tensor:
    """`tensor` in float32 if it is in half precision, in which sums and losses are too coarse; else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_values(model: nn.Module) -> None:
    """Refuse a model whose weights have no values, as on the device "meta".

    Raises:
        InputError: it is one.
    """
    if device_of(model).type == "meta":
        raise InputError("The model's weights have no values (they are on the device 'meta'): load them first.")


def fitting(model: nn.Module, images: Tensor) -> Tensor:
    """`images` on the model's device and in its floating-point type."""
    sample = next(model.parameters(), None)
    return images.to(device_of(model), sample.dtype if sample is not None else images.dtype)
