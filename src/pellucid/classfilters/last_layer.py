"""The linear layer whose outputs are the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.device import fitting
from pellucid.core.errors import InputError
from pellucid.core.modes import evaluating
from pellucid.core.network.tap import module_at, tap

_CLOSE = 1e-4  # of the largest output: what rounding may leave between a layer's output and the network's


# --- the last layer ---


@dataclass(frozen=True)
class Head:
    """The linear layer whose outputs are the classes.

    name: dotted; weight: (K, C); bias: (K,), zeros where it has none; spatial: a 1x1 convolution, whose input (and so
    its output) is averaged over positions. Both float64 on the CPU.
    """

    name: str
    weight: Tensor
    bias: Tensor
    spatial: bool


def matrix(module: nn.Module) -> tuple[Tensor, Tensor, bool] | None:
    """(weight (K, C), bias (K,), whether it is a 1x1 convolution) of a linear layer, None for any other."""
    if isinstance(module, nn.Linear):
        weight, spatial = module.weight, False
    elif isinstance(module, nn.Conv2d) and _is_pointwise(module):
        weight, spatial = module.weight.flatten(1), True
    elif hasattr(module, "to_linear"):  # a decomposed head is linear as well
        linear: Any = module.to_linear()  # type: ignore[operator]
        return linear.weight.detach(), _bias(linear), bool(getattr(module, "spatial", False))
    else:
        return None
    return weight.detach(), _bias(module), spatial


def _bias(module: Any) -> Tensor:
    return torch.zeros_like(module.weight.detach().flatten(1)[:, 0]) if module.bias is None else module.bias.detach()


def _is_pointwise(module: nn.Conv2d) -> bool:
    return (
        module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        and module.padding in (0, (0, 0), "valid", "same")
    )  # fmt: skip


@torch.no_grad()
def find_head(model: nn.Module, images: Tensor) -> Head:
    """The linear layer (or 1x1 convolution before or after pooling) whose outputs are the network's.

    Every candidate's output is compared with the network's on `images`: equal, or equal after (log-)softmax. Auxiliary
    heads, which do not run in evaluation or whose outputs are others, are thereby left out.

    Args:
        model: any classifier, images (N, ...) -> logits (N, K).
        images: a few, normalised as the network expects.

    Raises:
        InputError: an output that is no tensor (N, K), or that of no single linear layer; the sentence names those
            layers that have K outputs.
    """
    linear = [name for name, module in model.named_modules() if matrix(module) is not None]
    images = fitting(model, images[:8])
    with evaluating(model), tap(model, linear) as taps:
        logits = logits_of(model(images))
    if not bool(logits.isfinite().all()):
        raise InputError("The network answers NaN or infinity: its weights or the normalisation are off.")
    scale = logits.abs().max().clamp(min=1e-12)
    found, near = [], []
    for name in linear:
        weight, bias, spatial = matrix(module_at(model, name)) or (torch.zeros(0, 0), torch.zeros(0), False)
        own = taps[name].output
        if len(weight) != logits.shape[1]:
            continue
        near.append(name)
        if taps[name].calls != 1 or not isinstance(own, Tensor):
            continue
        if spatial and own.ndim == 4:
            # In-place layers after it may have changed its output, so compute it again.
            own = taps[name].input.mean((2, 3)) @ weight.T + bias
        elif own.ndim == 2:
            own = taps[name].input @ weight.T + bias
        forms = [own, own.log_softmax(-1), own.softmax(-1)] if own.shape == logits.shape else []
        if any(bool((form - logits).abs().max() <= _CLOSE * scale) for form in forms):
            found.append(Head(name, weight.double().cpu(), bias.double().cpu(), spatial))
    if found:
        return found[-1]
    listed = ", ".join(map(repr, near))
    raise InputError(
        f"The {logits.shape[1]} outputs of this {type(model).__name__} are not those of one linear layer"
        + (f", though {listed} have as many" if near else "")
        + ": name a layer and a rule that needs no last layer (gradient, frequency, mass)."
    )


def logits_of(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 2:
        form = f"shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InputError(f"The network answers {form}: it must give one tensor (images, classes) in evaluation.")
    return output
