"""The layer rule "subnet": a network of random weights, of which training chooses (`layers.subnet`)."""

from __future__ import annotations

import copy
from typing import Literal

from torch import nn

from pellucid.core.network.rules import Replacements, Rule
from pellucid.core.seeds import seed_of
from pellucid.edgepopup.draw import Init
from pellucid.edgepopup.layers import NORMS, Layer, Options, Ranking, freeze, model_seed, put_mask, strip_norm, why_not


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
    """The rule that masks every convolution and linear layer, and freezes everything but their scores.

    Args:
        keep: fraction of the weights that stays.
        ranking: keep that fraction of each layer, or of all layers together (global).
        init: how the random weights are drawn; given leaves weights and biases as they are.
        scale_fan: scale the weights for the fan that is kept.
        affine: keep scale and shift of normalisation, and train them.
        binary: use the signs of the weights times their mean magnitude.
        anneal: training steps in which the fraction kept falls from 1 to keep.
        redraw: training steps from one redraw of pruned weights to the next; 0 is never.
        redraw_share: share of the pruned weights that are then drawn.
        seed: of weights and scores; default from the run's seed.

    Raises InputError for values out of range.
    """
    options = Options(keep, ranking, init, scale_fan, affine, binary, anneal, redraw, redraw_share)

    def rule(model: nn.Module) -> Replacements:
        found = Replacements()
        base = model_seed(seed)
        together = Ranking() if ranking == "global" else None
        if not affine:
            freeze(model)  # what no layer of the rule's owns, too
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
