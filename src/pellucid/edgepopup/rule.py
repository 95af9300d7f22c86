"""The layer rule "subnet": mask a network of random weights, for training to choose among them (`subnet.subnet`)."""

from __future__ import annotations

import copy
from typing import Literal

from torch import nn

from pellucid.core.network.rules import Replacements, Rule
from pellucid.core.seeds import seed_of
from pellucid.edgepopup.draw import Init
from pellucid.edgepopup.layers import NORMS, Layer, freeze, put_mask, strip_norm, why_not
from pellucid.edgepopup.options import Options
from pellucid.edgepopup.ranking import Ranking
from pellucid.edgepopup.subnet import model_seed


def subnet(
    *,
    keep: float = Options.keep,
    ranking: Literal["layer", "global"] = Options.ranking,
    init: Init = Options.init,
    scale_fan: bool = Options.scale_fan,
    affine: bool = Options.affine,
    binary: bool = Options.binary,
    anneal: int = Options.anneal,
    redraw: int = Options.redraw,
    redraw_share: float = Options.redraw_share,
    seed: int | None = None,
) -> Rule:
    """Mask every convolution and linear layer, and freeze everything except their scores.

    Args:
        keep: fraction of the weights to keep.
        ranking: keep that fraction of each layer (layer), or of all layers together (global).
        init: how the random weights are drawn; given keeps the weights and biases that the network has.
        scale_fan: scale the weights by the fan of the kept ones.
        affine: keep and train scale and shift of normalisation layers.
        binary: use the signs of the weights times their mean magnitude.
        anneal: number of training steps over which the fraction kept falls from 1 to keep.
        redraw: draw pruned weights again every so many training steps; 0 never does.
        redraw_share: fraction of the pruned weights drawn again each time.
        seed: seed of weights and scores; default derived from the seed of the run.

    Raises InputError for values out of range.
    """
    options = Options(keep, ranking, init, scale_fan, affine, binary, anneal, redraw, redraw_share)

    def rule(model: nn.Module) -> Replacements:
        found = Replacements()
        base = model_seed(seed)
        together = Ranking() if ranking == "global" else None
        if not affine:
            freeze(model)  # also what belongs to none of the replaced layers
        for name, module in model.named_modules():
            new: nn.Module | None = None
            if isinstance(module, Layer):
                if reason := why_not(module):
                    found.left[name] = f"{type(module).__name__} {reason}"
                else:
                    new = copy.deepcopy(module)
                    put_mask(new, options, seed_of("subnet", base, name), together)
            elif isinstance(module, NORMS) and not affine:
                new = copy.deepcopy(module)
                strip_norm(new)
            if new is not None:
                found[name] = new
        return found

    return rule
