r"""Edge-popup on layers that are there: frozen random weights, trained scores, by `torch.nn.utils.parametrize`.

A masked layer keeps its class, arguments and place; its `weight` is made of two tensors, the random weights and the
scores, each time it is read. What changes with training besides the scores is a function of a counter of training
forwards in the layer's state: the fraction kept, where it is annealed, and which pruned weights were drawn again when
(IteRand, Chijiwa et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pellucid.core.device import at_least_single
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of
from pellucid.edgepopup import draw
from pellucid.edgepopup.draw import INITS, Init
from pellucid.edgepopup.mask import Popup, annealed, binary, check_keep, kept, largest

Layer = nn.modules.conv._ConvNd | nn.Linear
NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Options:
    """What `subnet` is told, checked."""

    keep: float = 0.3
    ranking: Literal["layer", "global"] = "layer"
    init: Init = "signed_constant"
    scale_fan: bool = False
    affine: bool = False
    binary: bool = False
    anneal: int = 0
    redraw: int = 0
    redraw_share: float = 0.1

    def __post_init__(self) -> None:
        check_keep(self.keep)
        rules = [
            (self.ranking in ("layer", "global"), f"ranking={self.ranking!r}: give layer or global"),
            (self.init in INITS, f"init={self.init!r}: choose one of {', '.join(INITS)}"),
            (self.anneal >= 0, f"anneal={self.anneal} is out of range: give training steps, 0 for none"),
            (self.redraw >= 0, f"redraw={self.redraw} is out of range: give training steps, 0 for never"),
            (0 < self.redraw_share <= 1, f"redraw_share={self.redraw_share} is out of range: give above 0, at most 1"),
            (not self.redraw or self.init != "given", "redraw needs weights that are drawn: not init='given'"),
            (not self.scale_fan or self.init != "given", "scale_fan scales weights that are drawn: not init='given'"),
        ]
        for holds, sentence in rules:
            if not holds:
                raise InputError(f"{sentence[0].upper()}{sentence[1:]}.")


class Mask(nn.Module):
    """The parametrization of one weight: it makes weight * mask of the random weight.

    Args:
        layer: the layer that it goes into; only its shape is read.
        options: as in `subnet`.
        seed: of this layer's weights, scores and redraws.
        ranking: the layers whose scores are ranked together, or None to rank this one's alone.

    State: `scores`, a parameter of the weight's shape; the seed; with anneal or redraw, `steps` () int64, training
    forwards so far; with redraw, `rounds`, int64 of the weight's shape, the redraw that each weight is from.
    """

    def __init__(self, layer: Layer, options: Options, seed: int, ranking: Ranking | None) -> None:
        super().__init__()
        self.options, self.seed, self.ranking = options, seed, ranking
        weight = layer.weight
        fan_in, fan_out = fans(layer)
        fan = options.keep if options.scale_fan else 1.0
        self.std = draw.scale(options.init, fan_in * fan, fan_out * fan)
        # As published: Kaiming uniform with a = sqrt(5).
        scores = (2 * draw.uniform(seed_of("scores", seed), weight.shape, device=weight.device) - 1) / fan_in**0.5
        self.scores = nn.Parameter(scores.to(weight.dtype))
        self.steps: Tensor | None
        self.rounds: Tensor | None
        scheduled = options.anneal or options.redraw
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=weight.device) if scheduled else None)
        self.register_buffer("rounds", torch.zeros_like(weight, dtype=torch.int64) if options.redraw else None)
        self._count: int | None = 0  # of `steps`, kept beside it so that an eager step need not wait for the device

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in vars(self.options).items())

    # --- the weight ---

    def drawn(self, rounds: int | Tensor = 0) -> Tensor:
        """The random weights of a round, or of the round given for each place; float64, on the scores' device."""
        shape, device = self.scores.shape, self.scores.device
        return draw.weights(self.options.init, self.std, seed_of("weights", self.seed), shape, rounds, device)

    def keep(self) -> float | Tensor:
        """The fraction kept now: a tensor inside compiled code."""
        options = self.options
        if not options.anneal or cast(Tensor, self.steps).device.type == "meta":
            return options.keep
        if torch.compiler.is_compiling():
            return annealed(options.keep, cast(Tensor, self.steps).double(), options.anneal)
        return annealed(options.keep, self._counted(), options.anneal)

    @torch.no_grad()
    def mask(self) -> Tensor:
        """Which weights stay: bool, of the weight's shape."""
        if self.ranking is not None:
            return self.ranking.mask(self)
        return largest(self.scores.abs(), kept(self.keep(), self.scores.numel()))

    def forward(self, weight: Tensor) -> Tensor:
        mask = self.mask()
        if self.options.binary:
            weight = binary(weight, mask)
        elif self.options.redraw:
            weight = weight.clone()  # a later redraw must not change what backward reads
        return Popup.apply(self.scores, weight, mask)

    # --- what changes with training ---

    def advance(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Count a training forward of `layer` that sees an image, and draw pruned weights anew when it is time."""
        if not layer.training or (inputs and not inputs[0].numel()):
            return
        count = None if torch.compiler.is_compiling() else self._counted() + 1
        with torch.no_grad():
            cast(Tensor, self.steps).add_(1)
        self._count = count
        if self.options.redraw:
            self._redraw(cast(Any, layer).parametrizations.weight.original)

    @torch.compiler.disable  # compiled, the new weights would be used but not stored
    @torch.no_grad()
    def _redraw(self, weight: Tensor) -> None:
        """Draw `redraw_share` of the pruned weights anew (Chijiwa et al. 2021, algorithm 1 and section 3.2)."""
        now, rest = divmod(self._counted(), self.options.redraw)
        if rest:
            return
        chance = draw.uniform(seed_of("redraw", self.seed), weight.shape, now, weight.device)
        fresh = ~self.mask() & (chance < self.options.redraw_share)
        cast(Tensor, self.rounds).masked_fill_(fresh, now)
        weight.copy_(torch.where(fresh, self.drawn(now).to(weight.dtype), weight))

    def _counted(self) -> int:
        if self._count is None:
            self._count = int(cast(Tensor, self.steps))
        return self._count

    # --- state ---

    def _apply(self, fn: Any, recurse: bool = True) -> Mask:
        """half() and bfloat16() leave the scores alone: rounded, they would be ranked in another way."""
        return super()._apply(at_least_single(fn), recurse)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.seed, device="cpu")  # no buffer: averages of weights over time must leave it alone

    def set_extra_state(self, state: Any) -> None:
        self.seed = int(state)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._count = None if self.steps is not None else 0


class Ranking:
    """Layers whose scores are ranked together: one threshold for all of them.

    All masks are made when the first layer of a pass asks, and each is given once; scores that have changed since
    make them anew. Compiled code makes them in every layer, and the compiler keeps one.
    """

    def __init__(self) -> None:
        self.members: list[Mask] = []
        self._made: dict[int, Tensor] = {}
        self._of: object = None

    def mask(self, member: Mask) -> Tensor:
        """The mask of one layer."""
        place = next(place for place, other in enumerate(self.members) if other is member)
        scores: list[Tensor] = [other.scores for other in self.members]
        keep = member.keep()
        if torch.compiler.is_compiling() or any(s.is_inference() for s in scores):
            return self._all(scores, keep)[place]
        of = (keep, [(s.data_ptr(), s._version) for s in scores])
        if of != self._of or place not in self._made:
            self._made, self._of = dict(enumerate(self._all(scores, keep))), of
        return self._made.pop(place)

    def _all(self, scores: list[Tensor], keep: float | Tensor) -> list[Tensor]:
        sizes = [s.numel() for s in scores]
        together = torch.cat([s.detach().abs().flatten() for s in scores])
        parts = largest(together, kept(keep, len(together))).split(sizes)
        return [part.view_as(s) for part, s in zip(parts, scores, strict=True)]


def fans(layer: Layer) -> tuple[int, int]:
    """Inputs that one output of `layer` sums over, and outputs that one input enters (stride 1)."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    area = math.prod(layer.kernel_size)
    return layer.in_channels // layer.groups * area, layer.out_channels // layer.groups * area


def why_not(layer: nn.Module) -> str | None:
    """Why a convolution or linear layer cannot be masked, or None."""
    if parametrize.is_parametrized(layer):
        return "is parametrized already"
    # Attention reads the weights of its own kind of linear layer instead of calling it.
    if type(layer) is nn.modules.linear.NonDynamicallyQuantizableLinear or layer._parameters.get("weight") is None:
        return "computes in a way of its own"
    return None


def put_mask(layer: Layer, options: Options, seed: int, ranking: Ranking | None) -> None:
    """Mask `layer` in place: its weight drawn from `seed`, its bias gone, nothing but scores to train."""
    mask = Mask(layer, options, seed, ranking)
    if options.init != "given":
        layer.weight = nn.Parameter(mask.drawn().to(layer.weight.dtype))
        layer.bias = None
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", mask.train(layer.training), unsafe=True)
    if ranking is not None:
        ranking.members.append(mask)
    if mask.steps is not None:
        layer.register_forward_pre_hook(mask.advance)


def strip_norm(norm: nn.Module) -> None:
    """Batch norm without scale and shift; its running statistics stay."""
    cast(nn.BatchNorm2d, norm).affine = False
    norm.register_parameter("weight", None)
    norm.register_parameter("bias", None)


def model_seed(seed: int | None) -> int:
    """`seed` itself, or one that torch's random state gives."""
    return int(torch.randint(2**62, (), device="cpu")) if seed is None else seed


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
    r"""Look for a subnetwork of random weights in `module`, in place: edge-popup.

    Every convolution (1-D to 3-D, transposed, grouped) and linear layer gets random weights that stay as they are, and
    scores of the same shape that are trained: the layer computes with the weights of the largest |scores| alone. Its
    bias goes, as published. Everything else is frozen.

    Args:
        module: a network or a single layer.
        keep: the fraction of weights that stays, everywhere: ceil(keep n) of n exactly, ties by place.
        ranking: "layer" keeps that many in each layer, as published; "global" ranks all scores together.
        init: how weights are drawn. With s = sqrt(2 / fan_in), signed_constant is +s or -s, unsigned_constant s,
            kaiming_normal and kaiming_uniform of standard deviation s; xavier_constant, xavier_normal and
            xavier_uniform of sqrt(2 / (fan_in + fan_out)). "given" leaves weights and biases as they are.
        scale_fan: multiply the fans by `keep`, so that the kept weights alone have that scale.
        affine: leave scale and shift of normalisation, and other parameters of no masked layer, and train them. By
            default batch norm loses them, as published, and keeps its running statistics.
        binary: use alpha sign(w), with alpha the mean magnitude of the weights kept (multi-prize tickets).
        anneal: training steps in which the fraction kept falls from 1 to `keep`; 0 starts there.
        redraw: every so many training steps, draw pruned weights anew (IteRand); 0 never.
        redraw_share: the share of the pruned weights that are then drawn.
        seed: what weights and scores are drawn from; default a number from torch's random state.

    Returns `module`. Steps are counted in its state, at each forward in training mode.

    Raises InputError for values out of range, and for a module with no layer to mask.

    Source: Ramanujan et al. 2020, "What's Hidden in a Randomly Weighted Neural Network?", section 3.
    """
    options = Options(keep, ranking, init, scale_fan, affine, binary, anneal, redraw, redraw_share)
    base = model_seed(seed)
    together = Ranking() if ranking == "global" else None
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, Layer)]
    layers = [(name, layer) for name, layer in layers if not why_not(layer)]
    if not layers:
        raise InputError(
            f"This {type(module).__name__} has no convolution or linear layer to mask: none is there, or each is "
            "parametrized already."
        )
    if not affine:
        freeze(module)
    for name, layer in layers:
        put_mask(layer, options, seed_of("subnet", base, name), together)
    if not affine:
        for norm in [norm for norm in module.modules() if isinstance(norm, NORMS)]:
            strip_norm(norm)
    return module


def freeze(module: nn.Module) -> None:
    """Train nothing in `module`."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def masks(module: nn.Module) -> Iterator[tuple[str, nn.Module, Mask]]:
    """The masked layers of `module`: name, layer, and the mask that makes its weight."""
    for name, layer in module.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            for part in cast(Any, layer).parametrizations.weight:
                if isinstance(part, Mask):
                    yield name, layer, part
