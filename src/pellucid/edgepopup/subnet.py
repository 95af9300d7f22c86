"""Edge-popup on a whole network, in place: `pellucid.subnet`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from pellucid.core.errors import InputError
from pellucid.core.facts import unwrapped
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.seeds import seed_of
from pellucid.edgepopup.draw import Init
from pellucid.edgepopup.layers import NORMS, Layer, freeze, put_mask, strip_norm, why_not
from pellucid.edgepopup.options import Options
from pellucid.edgepopup.ranking import Ranking


def subnet(
    module: nn.Module,
    keep: float = 0.3,
    *,
    ranking: Literal["layer", "global"] = "layer",
    init: Init = "signed_constant",
    scale_fan: bool = False,
    affine: bool = False,
    binary: bool = False,
    anneal: int = 0,
    redraw: int = 0,
    redraw_share: float = 0.1,
    seed: int | None = None,
) -> nn.Module:
    r"""Mask every convolution and linear layer of `module` in place, for training to find a subnetwork: edge-popup.

    Each of these layers (convolutions of 1 to 3 dimensions, transposed and grouped ones too) gets random weights that
    are never trained, and trainable scores of the same shape; it computes with only the weights that have the largest
    |scores|. Its bias is removed, as published, and all other parameters are frozen.

    Args:
        module: a network or a single layer.
        keep: fraction of the weights that is kept, above 0, at most 1: exactly ceil(keep n) of n; of equal |scores|
            the first in memory.
        ranking: "layer" keeps that fraction of each layer, as published; "global" ranks the scores of all layers
            together.
        init: how the weights are drawn. With s = sqrt(2 / fan_in), signed_constant is +s or -s at random,
            unsigned_constant is s, and kaiming_normal and kaiming_uniform have standard deviation s; xavier_constant,
            xavier_normal and xavier_uniform use s = sqrt(2 / (fan_in + fan_out)). "given" keeps the weights and biases
            that the layers have.
        scale_fan: multiply the fans by `keep`, so that the kept weights alone have that scale.
        affine: keep and train scale and shift of normalisation layers, and any other parameter outside the masked
            layers. By default batch norm loses its scale and shift, as published, and keeps its running statistics.
        binary: use alpha sign(w), where alpha is the mean magnitude of the kept weights (multi-prize tickets).
        anneal: number of training steps over which the fraction kept falls from 1 to `keep`; 0 starts at `keep`.
        redraw: draw pruned weights again every `redraw` training steps (IteRand); 0 never does.
        redraw_share: fraction of the pruned weights that is drawn again each time, above 0, at most 1.
        seed: seed of weights and scores; by default one is drawn from torch's global random state, which advances as
            it does when a layer is created. With a seed that state is neither read nor changed.

    Returns `module`. Training steps are counted in its state: one at each forward pass in training mode.

    Raises InputError for values out of range, and for a module without a layer that can be masked.

    Source: Ramanujan et al. 2020, "What's Hidden in a Randomly Weighted Neural Network?", section 3.
    """
    needs_layers(module, "Masking")
    options = Options(keep, ranking, init, scale_fan, affine, binary, anneal, redraw, redraw_share)
    layers = [(name, layer) for name, layer in unwrapped(module).named_modules() if isinstance(layer, Layer)]
    layers = [(name, layer) for name, layer in layers if not why_not(layer)]
    if not layers:
        raise InputError(
            f"This {type(module).__name__} has no convolution or linear layer to mask: it contains none, or each is "
            "parametrized already."
        )
    base = model_seed(seed)
    together = Ranking() if ranking == "global" else None
    if not affine:
        freeze(module)
    for name, layer in layers:
        put_mask(layer, options, seed_of("subnet", base, name), together)
    if not affine:
        for norm in [norm for norm in module.modules() if isinstance(norm, NORMS)]:
            strip_norm(norm)
    return module


def model_seed(seed: int | None) -> int:
    """`seed` itself, or by default one drawn from torch's random state."""
    return int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
