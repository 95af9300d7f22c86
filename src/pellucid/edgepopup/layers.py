"""Masking single layers of a network, in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from pellucid.core.facts import unwrapped
from pellucid.core.network.statistics import BATCH_NORMS
from pellucid.edgepopup.options import Options
from pellucid.edgepopup.parametrization import Layer as Layer
from pellucid.edgepopup.parametrization import Mask
from pellucid.edgepopup.ranking import Ranking

NORMS = BATCH_NORMS


def why_not(layer: nn.Module) -> str | None:
    """Why a convolution or linear layer cannot be masked, as the rest of a sentence about it; None if it can."""
    if parametrize.is_parametrized(layer):
        return "is parametrized already"
    # Attention reads the weight of its linear layer instead of calling the layer.
    if type(layer) is nn.modules.linear.NonDynamicallyQuantizableLinear:
        return "has its weight read by other code"
    if "weight" not in dict(layer.named_parameters(recurse=False)):
        return "has no parameter named weight"
    return None


@runtime_checkable
class Measures(Protocol):
    """A layer that keeps a number that depends on its weights, such as the norm of a dictionary."""

    def measure(self) -> Tensor: ...


def put_mask(layer: Layer, options: Options, seed: int, ranking: Ranking | None) -> None:
    """Mask `layer` in place: draw its weight from `seed`, remove its bias, and leave only scores to train."""
    mask = Mask(layer, options, seed, ranking)
    if options.init != "given":
        layer.weight = nn.Parameter(mask.drawn().to(layer.weight))
        layer.bias = None
    freeze(layer)
    parametrize.register_parametrization(layer, "weight", mask.train(layer.training), unsafe=True)
    if ranking is not None:
        ranking.members.append(mask)
    if mask.steps is not None:
        layer.register_forward_pre_hook(mask.advance)
    if isinstance(layer, Measures) and not layer.weight.is_meta:
        layer.measure()


def strip_norm(norm: nn.Module) -> None:
    """Remove scale and shift from a batch-norm layer; its running statistics stay."""
    cast(nn.BatchNorm2d, norm).affine = False
    norm.register_parameter("weight", None)
    norm.register_parameter("bias", None)


def freeze(module: nn.Module) -> None:
    """Freeze every parameter of `module`."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def masks(module: nn.Module) -> Iterator[tuple[str, nn.Module, Mask]]:
    """List the masked layers of `module`: for each its name, the layer, and the mask that makes its weight.

    `mask.mask()` is the mask itself: bool, of the weight's shape, True for weights that are kept.
    """
    for name, layer in unwrapped(module).named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            for part in cast(Any, layer).parametrizations.weight:
                if isinstance(part, Mask):
                    yield name, layer, part
