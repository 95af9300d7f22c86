"""The last linear layer of a classifier, found by comparing its outputs with the network's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.core.device import fitting, single
from pellucid.core.errors import InputError
from pellucid.core.measure.fits import check_logits
from pellucid.core.modes import evaluating
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.network.fold import folded_module
from pellucid.core.network.plain import CONVOLUTIONS
from pellucid.core.network.tap import tap

_CLOSE = 1e-4  # tolerated difference between a layer's output and the network's, relative to the largest output


@dataclass(frozen=True)
class Head:
    """The linear layer whose outputs are the logits; of one that whitens its input, or is masked, what it folds to.

    Attributes:
        name: dotted.
        weight: (K, C), float64 on the CPU.
        bias: (K,), float64 on the CPU; zeros if the layer has none.
        spatial: it is a 1x1 convolution, whose input (and hence output) is averaged over positions.
    """

    name: str
    weight: Tensor
    bias: Tensor
    spatial: bool


def linear_form(module: nn.Module) -> tuple[nn.Linear | nn.Conv2d, bool] | None:
    """The plain linear layer, or 1x1 convolution, that `module` amounts to in evaluation, and whether it is the latter.

    A layer that whitens its input, has masked weights, or is decomposed amounts to one (`pellucid.core.network.fold`).
    None for any other layer.
    """
    if isinstance(module, CONVOLUTIONS) and not (isinstance(module, nn.Conv2d) and _is_pointwise(module)):
        return None  # before folding it, which would compute a root
    plain = folded_module(module) or module
    if isinstance(plain, nn.Linear):
        return plain, False
    return (plain, True) if isinstance(plain, nn.Conv2d) and _is_pointwise(plain) else None


def matrix(module: nn.Module) -> tuple[Tensor, Tensor, bool] | None:
    """(weight (K, C), bias (K,), whether it is a 1x1 convolution) of a linear layer; None for any other layer."""
    found = linear_form(module)
    if found is None:
        return None
    plain, spatial = found
    weight = plain.weight.detach().flatten(1)
    return weight, weight.new_zeros(len(weight)) if plain.bias is None else plain.bias.detach(), spatial


def linear_layers(model: nn.Module) -> dict[str, tuple[Tensor, Tensor, bool]]:
    """`matrix` of every layer of `model` that has one, by name; not of layers inside such a layer."""
    table: dict[str, tuple[Tensor, Tensor, bool]] = {}
    inside = "\0"
    for name, module in model.named_modules():
        if not name.startswith(inside) and (found := matrix(module)) is not None:
            table[name] = found
            inside = f"{name}." if name else ""
    return table


def _is_pointwise(module: nn.Conv2d) -> bool:
    return (
        module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        and module.padding in (0, (0, 0), "valid", "same")
    )  # fmt: skip


@torch.no_grad()
def find_head(model: nn.Module, images: Tensor) -> Head:
    """Find the linear layer (or 1x1 convolution before or after pooling) whose outputs are the network's.

    Every candidate's output on `images` is compared with the network's: equal, or equal after (log-)softmax. This
    excludes auxiliary heads, which do not run in evaluation mode or whose outputs differ.

    Args:
        model: any classifier, images (N, ...) -> logits (N, K).
        images: a few, normalised as the network expects.

    Raises:
        InputError: an output that is not a tensor (N, K), or not that of a single linear layer; the message names the
            layers that have K outputs.
    """
    needs_layers(model, "Reading class filters")
    images = fitting(model, images[:8])
    with evaluating(model):
        linear = linear_layers(model)
    with evaluating(model), tap(model, list(linear)) as taps:
        logits = model(images)
        check_logits(logits, len(images))
    if not bool(logits.isfinite().all()):
        raise InputError("The network returns NaN or infinity: check its weights and the normalisation.")
    close = max(_CLOSE, 2 * torch.finfo(logits.dtype).eps)  # of half precision, as exact as it is
    logits = single(logits)
    scale = logits.abs().max().clamp(min=1e-12)
    found, near = [], []
    for name, (weight, bias, spatial) in linear.items():
        own = taps[name].output
        if len(weight) != logits.shape[1]:
            continue
        near.append(name)
        if taps[name].calls != 1 or not isinstance(own, Tensor):
            continue
        if spatial and own.ndim == 4:
            # In-place layers after it may have changed its output, so compute it again.
            own = single(taps[name].input).mean((2, 3)) @ single(weight).T + single(bias)
        elif own.ndim == 2:
            own = single(taps[name].input) @ single(weight).T + single(bias)
        forms = [own, own.log_softmax(-1), own.softmax(-1)] if own.shape == logits.shape else []
        if any(bool((form - logits).abs().max() <= close * scale) for form in forms):
            found.append(Head(name, weight.cpu().double(), bias.cpu().double(), spatial))
    if found:
        return found[-1]
    listed = ", ".join(map(repr, near))
    raise InputError(
        f"The {logits.shape[1]} outputs of this {type(model).__name__} are not those of a single linear layer"
        + (f", though {listed} have as many outputs" if near else "")
        + ": name a layer, and a rule that needs no last layer (gradient, frequency, mass)."
    )
