r"""The module that makes a masked weight: frozen random weights and trained scores, by `torch.nn.utils.parametrize`.

A masked layer keeps its class, its arguments and its place in the network; each time its `weight` is read, it is made
from two tensors, the random weights and the scores. Whatever else changes in training is a function of a counter of
training forward passes in the layer's state: the fraction kept while it is annealed, and which pruned weights are drawn
again when (IteRand, Chijiwa et al. 2021).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from pellucid.core.device import at_least_single, double
from pellucid.core.network.plain import CONVOLUTIONS
from pellucid.core.seeds import seed_of
from pellucid.edgepopup import draw
from pellucid.edgepopup.mask import Popup, annealed, binary, kept, largest
from pellucid.edgepopup.options import Options
from pellucid.edgepopup.ranking import Ranking

Layer = CONVOLUTIONS | nn.Linear


class Mask(nn.Module):
    """The parametrization of one weight: turn the random weight into weight * mask.

    Args:
        layer: the layer to mask; only the shape, type and device of its weight are read.
        options: as in `pellucid.subnet`.
        seed: seed of this layer's weights, scores and redraws.
        ranking: the layers whose scores are ranked together, or None to rank this layer's alone.

    State: `scores`, a parameter of the weight's shape; the seed; with `anneal` or `redraw`, `steps`, () int64, the
    number of training forward passes so far; with `redraw`, `rounds`, int64 of the weight's shape, the redraw that each
    weight is from (0 for the first draw).
    """

    moves = True  # with the weight to another layer, when this one is replaced

    def __init__(self, layer: Layer, options: Options, seed: int, ranking: Ranking | None) -> None:
        super().__init__()
        self.options, self.seed, self.ranking = options, seed, ranking
        weight = layer.weight
        fan_in, fan_out = fans(layer)
        fan = options.keep if options.scale_fan else 1.0
        self.std = draw.scale(options.init, fan_in * fan, fan_out * fan)
        # As published: Kaiming uniform with a = sqrt(5).
        scores = (2 * draw.uniform(seed_of("scores", seed), weight.shape, device=weight.device) - 1) / fan_in**0.5
        self.scores = nn.Parameter(scores.to(weight))
        self.steps: Tensor | None
        self.rounds: Tensor | None
        scheduled = options.anneal or options.redraw
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=weight.device) if scheduled else None)
        self.register_buffer("rounds", torch.zeros_like(weight, dtype=torch.int64) if options.redraw else None)
        self._count: int | None = 0  # `steps` as a number, so that an eager step need not wait for the device
        self.register_load_state_dict_post_hook(_forget_count)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in vars(self.options).items())

    # --- the weight ---

    def drawn(self, rounds: int | Tensor = 0, device: torch.device | str | None = None) -> Tensor:
        """Draw the random weights of a round, or with a tensor of one round per place: float64, of the weight's shape.

        device: where they are drawn, and `rounds` is; default the scores' device.
        """
        shape, device = self.scores.shape, self.scores.device if device is None else device
        return draw.weights(self.options.init, self.std, seed_of("weights", self.seed), shape, rounds, device)

    def keep(self) -> float | Tensor:
        """The fraction kept at the current step: a tensor inside compiled code."""
        options = self.options
        if not options.anneal or cast(Tensor, self.steps).device.type == "meta":
            return options.keep
        if torch.compiler.is_compiling():
            return annealed(options.keep, double(cast(Tensor, self.steps)), options.anneal)
        return annealed(options.keep, self._counted(), options.anneal)

    @torch.no_grad()
    def mask(self) -> Tensor:
        """Which weights are kept: bool, of the weight's shape."""
        if self.ranking is not None:
            return self.ranking.mask(self)
        return largest(self.scores.abs(), kept(self.keep(), self.scores.numel()))

    def forward(self, weight: Tensor) -> Tensor:
        mask = self.mask()
        if self.options.binary:
            weight = binary(weight, mask)
        elif self.options.redraw:
            weight = weight.clone()  # a later redraw must not change what the backward pass reads
        return Popup.apply(self.scores, weight, mask)

    # --- what changes with training ---

    def advance(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Count a training forward pass of `layer` on at least one image, and draw pruned weights again when due."""
        if not layer.training or (inputs and not inputs[0].numel()):
            return
        count = None if torch.compiler.is_compiling() else self._counted() + 1
        with torch.no_grad():
            cast(Tensor, self.steps).add_(1)
        self._count = count
        if self.options.redraw:
            self._redraw(cast(Any, layer).parametrizations.weight.original)

    @torch.compiler.disable  # compiled code would use the new weights but not store them
    @torch.no_grad()
    def _redraw(self, weight: Tensor) -> None:
        """Draw the fraction `redraw_share` of pruned weights again (Chijiwa et al. 2021, algorithm 1, section 3.2)."""
        now, rest = divmod(self._counted(), self.options.redraw)
        if rest:
            return
        chance = draw.uniform(seed_of("redraw", self.seed), weight.shape, now, weight.device)
        fresh = ~self.mask() & (chance < self.options.redraw_share).to(weight.device)
        cast(Tensor, self.rounds).masked_fill_(fresh, now)
        weight.copy_(torch.where(fresh, self.drawn(now).to(weight), weight))

    def _counted(self) -> int:
        if self._count is None:
            self._count = int(cast(Tensor, self.steps))
        return self._count

    # --- state ---

    def _apply(self, fn: Any, recurse: bool = True) -> Mask:
        """Keep the scores as they are in half() and bfloat16(): rounding would change their ranking."""
        return super()._apply(at_least_single(fn), recurse)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.seed, device="cpu")  # not a buffer: averaging weights must not average it

    def set_extra_state(self, state: Any) -> None:
        self.seed = int(state)


def _forget_count(mask: nn.Module, incompatible: Any) -> None:
    """After a state dict is loaded, read the number of steps from `steps` again."""
    cast(Mask, mask)._count = None if mask.steps is not None else 0


def fans(layer: Layer) -> tuple[int, int]:
    """Fan-in and fan-out of `layer`: inputs that one output sums over, outputs that one input enters at stride 1."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    area = math.prod(layer.kernel_size)
    return layer.in_channels // layer.groups * area, layer.out_channels // layer.groups * area
