"""A pretended device without float64, on any machine: what Apple's GPUs refuse is refused here too.

Inside `pretended()` tensors can be moved to the device "mps". Their numbers stay in the processor's memory; what is on
the device is known by the storage, so views, in-place operations and gradients are followed:

- The results of an operation are on the device if one of its tensors is, and so is what it makes inside; those of a
  factory are where `device=` says.
- `to`, `cpu` and factories with `device=` cross over, by copying. `Tensor.device` says where a tensor is.
- As on the real device, float64 is refused wherever it would come to lie there, tensors of both places cannot be
  combined (but for scalars, and indices on the processor), nothing on the device turns into numpy, and a generator of
  the processor draws nothing there. A tensor must leave the device before it becomes float64, not on the way.

Not pretended are operations that the real device lacks, and its rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAME = "mps"
DEVICE, HOST = torch.device(NAME, 0), torch.device("cpu")
WIDE = (torch.float64, torch.complex128)
REFUSED = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)
MIXING = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "set_", "_unsafe_index"}


class Storages:
    """Which storages are on the device. Weak references keep their addresses from being used again."""

    def __init__(self) -> None:
        self.known: dict[int, StorageWeakRef] = {}
        self.inside = False  # in a call with a tensor on the device, which makes others where that one is

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.known

    def put(self, tensor: Tensor, on_device: bool) -> None:
        storage = tensor.untyped_storage()
        if not on_device:
            self.known.pop(storage._cdata, None)
        elif storage._cdata not in self.known:
            if len(self.known) % 1000 == 999:
                self.known = {key: ref for key, ref in self.known.items() if not ref.expired()}
            self.known[storage._cdata] = StorageWeakRef(storage)


_STORAGES = Storages()  # of all blocks: the package keeps some tensors for later calls


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Operations(TorchDispatchMode):
    """Follows the device through every operation, those of the backward pass included, and refuses float64 there."""

    def __init__(self, storages: Storages) -> None:
        super().__init__()
        self.storages = storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, storages = kwargs or {}, self.storages
        given = tensors((args, kwargs))
        there = [tensor for tensor in given if storages.has(tensor)]
        name = func.__name__.partition(".")[0]
        if there:
            if name not in MIXING and any(t.ndim and not storages.has(t) for t in given):
                shapes = [(tuple(t.shape), t.dtype, NAME if storages.has(t) else "cpu") for t in given]
                raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {shapes}")
            drawing = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Generator)]
            if drawing:
                raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu': {func}")
            if name == "copy_" and not storages.has(args[0]) and args[0].dtype in WIDE:
                raise TypeError(f"{REFUSED} ({func}: convert after the copy)")
        result = func(*args, **kwargs)
        if there or (storages.inside and not given):
            for tensor in tensors(result):
                if name != "copy_" or storages.has(args[0]):
                    storages.put(tensor, True)
        for tensor in (*there, *tensors(result)):
            if tensor.dtype in WIDE and storages.has(tensor):
                raise TypeError(f"{REFUSED} ({func})")
        return result


class Crossings(TorchFunctionMode):
    """Moves tensors to and from the device where a call names one."""

    def __init__(self, storages: Storages) -> None:
        super().__init__()
        self.storages = storages

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, storages = dict(kwargs or {}), self.storages
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return DEVICE if storages.has(args[0]) else func(*args)
        if name in ("numpy", "__array__") and storages.has(args[0]):
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func is Tensor.cpu:
            return self._to(args[0], HOST)
        if name == "__deepcopy__":
            copied = func(*args, **kwargs)
            storages.put(copied, storages.has(args[0]))
            return copied
        if kwargs.get("device") is None and name.startswith("new_"):
            kwargs["device"] = DEVICE if storages.has(args[0]) else HOST
        if kwargs.get("device") is None or name == "_parse_to":  # which reads the arguments of Module.to
            before, storages.inside = storages.inside, any(storages.has(t) for t in tensors((args, kwargs)))
            try:
                return func(*args, **kwargs)
            finally:
                storages.inside = before
        there = torch.device(kwargs.pop("device")).type == NAME
        if there and kwargs.get("generator") is not None:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu': {name}")
        if not there and tensors((args, kwargs)):
            kwargs["device"] = HOST
        made = func(*args, **kwargs)
        for tensor in tensors(made):
            if there and tensor.dtype in WIDE:
                raise TypeError(f"{REFUSED} ({name})")
            storages.put(tensor, there)
        return made

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to` in all its forms: (device, dtype), (dtype), (other)."""
        args_list, target = list(args), kwargs.pop("device", None)
        for place, value in enumerate(args_list):
            if isinstance(value, Tensor):
                kwargs["dtype"], target = value.dtype, DEVICE if self.storages.has(value) else HOST
                del args_list[place]
                break
            if isinstance(value, str | torch.device):
                target = value
                del args_list[place]
                break
        for place, value in enumerate(args_list):
            if isinstance(value, torch.dtype):
                kwargs["dtype"] = value
                del args_list[place]
                break
            if isinstance(value, bool):  # non_blocking, after a device that was given by position
                kwargs["non_blocking"] = value
        here = self.storages.has(tensor)
        there = here if target is None else torch.device(target).type == NAME
        dtype = kwargs.pop("dtype", None) or tensor.dtype
        kwargs = {key: value for key, value in kwargs.items() if value is not None and key in ("copy", "memory_format")}
        if (here or there) and dtype in WIDE:
            raise TypeError(f"{REFUSED} (to)")
        if here == there:
            return Tensor.to(tensor, dtype=dtype, **kwargs)
        return Crossing.apply(tensor, dtype, there, kwargs, self.storages)


class Crossing(torch.autograd.Function):
    """A copy on the other side, whose gradient crosses back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dtype: torch.dtype, there: bool, kwargs: Any, storages: Storages) -> Tensor:
        ctx.back = tensor.dtype, not there, storages
        moved = tensor.to(dtype=dtype, **{**kwargs, "copy": True})
        storages.put(moved, there)
        return moved

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        dtype, there, storages = ctx.back
        return Crossing.apply(grad, dtype, there, {}, storages), None, None, None, None


@contextlib.contextmanager
def pretended() -> Iterator[Storages]:
    """Pretend a device "mps" without float64 while the block runs."""
    storages = _STORAGES
    crossings, run_backward = Crossings(storages), torch.autograd._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:  # torch turns the mode off for what it calls here
        before, storages.inside = storages.inside, False
        try:
            with crossings:
                return run_backward(*args, **kwargs)
        finally:
            storages.inside = before

    torch.autograd._engine_run_backward = backward
    try:
        with Operations(storages), crossings:
            yield storages
    finally:
        torch.autograd._engine_run_backward = run_backward
