"""Whether a layer's arithmetic is torch's own, and what remains of a norm without its normalisation."""

from __future__ import annotations

import copy
from collections import OrderedDict

from torch import nn

# torch has no public name for what all its convolutions, or all its batch norms, derive from.
CONVOLUTIONS = nn.modules.conv._ConvNd
TRANSPOSED = nn.modules.conv._ConvTransposeNd
BATCH_NORMS = nn.modules.batchnorm._BatchNorm

# Classes that write torch's arithmetic down again, for the sake of TorchScript.
_REPEATED = {"timm.layers.linear.Linear"}


def is_plain(module: nn.Module) -> bool:
    """Whether a convolution, linear or batch-norm layer computes exactly what torch's own layer of that type does.

    A subclass may add arguments, but no arithmetic (its own padding, standardised weights, a parametrization), and
    there may be no hooks. Modules of any other type are not plain.
    """
    cls = type(module)
    base = next((kind for kind in cls.__mro__ if kind.__module__.startswith("torch.nn.modules.")), nn.Module)
    own = base if f"{cls.__module__}.{cls.__qualname__}" in _REPEATED else cls
    kinds = (CONVOLUTIONS, nn.Linear, BATCH_NORMS)
    methods = ("forward", "_conv_forward")
    return (
        isinstance(module, kinds)
        and all(getattr(own, name, None) is getattr(base, name, None) for name in methods)
        and set(module._parameters) >= {"weight", "bias"}  # a parametrization or weight norm takes them out
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def without_norm(norm: nn.Module) -> nn.Module | None:
    """What remains of a batch-norm layer without the normalisation; None for a subclass that is not understood.

    Nothing remains of torch's own layers: an identity. Of timm's, which also apply dropout and activation, these two
    remain. The activation no longer works in place, since its input is now another layer's output, which may be read
    elsewhere too.
    """
    if not isinstance(norm, BATCH_NORMS):
        return None
    if is_plain(norm):
        return nn.Identity()
    children = dict(norm.named_children())
    if set(children) != {"drop", "act"}:
        return None
    kept = {name: out_of_place(child) for name, child in children.items() if not isinstance(child, nn.Identity)}
    return nn.Sequential(OrderedDict(kept)) if kept else nn.Identity()


def out_of_place(module: nn.Module) -> nn.Module:
    """A copy of a module without parameters that does not overwrite its input; any other module itself."""
    if not getattr(module, "inplace", False) or next(module.parameters(), None) is not None:
        return module
    copied = copy.deepcopy(module)
    vars(copied)["inplace"] = False
    return copied


def border(padding: str | tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """A convolution's padding before and after each axis, last axis first, as `functional.pad` takes it."""
    if isinstance(padding, str):
        spans = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        ends = [(span // 2, span - span // 2) for span in spans]
    else:
        ends = [(n, n) for n in padding]
    return tuple(n for pair in reversed(ends) for n in pair)
