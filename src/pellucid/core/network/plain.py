"""What a layer computes: whether it is torch's own arithmetic, and what is left of it without its normalisation."""

from __future__ import annotations

import copy
from collections import OrderedDict

from torch import nn

# torch has no public name for what all its convolutions, or all its batch norms, derive from.
CONVOLUTIONS = nn.modules.conv._ConvNd
BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def is_plain(module: nn.Module) -> bool:
    """Whether a convolution, linear or batch-norm layer computes as torch's own of its kind does.

    A subclass may add arguments, but no arithmetic (padding of its own, standardised weights, a parametrization),
    and nobody may hook in between. Any other module is not plain.
    """
    base = next((cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn.modules.")), nn.Module)
    kinds = (CONVOLUTIONS, nn.Linear, BATCH_NORMS)
    methods = ("forward", "_conv_forward")
    return (
        isinstance(module, kinds)
        and all(getattr(type(module), name, None) is getattr(base, name, None) for name in methods)
        and set(module._parameters) >= {"weight", "bias"}  # a parametrization or weight norm takes them out
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def without_norm(norm: nn.Module) -> nn.Module | None:
    """What is left of a batch-norm layer without the normalisation; None for a subclass that is not understood.

    torch's own leaves nothing, an identity; timm's, which drop and activate in the same module, leave that. The
    activation no longer works in place: its input is now another layer's output, which may be read elsewhere too.
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
