"""The layer rule "deconv": any network on whitened input, without batch norm (Ye et al., ICLR 2020)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.network.parametrized import beneath, on_top
from pellucid.core.network.plain import BATCH_NORMS, CONVOLUTIONS, is_plain, out_of_place, without_norm
from pellucid.core.network.rules import Replacements
from pellucid.core.network.swap import twin
from pellucid.core.network.tap import module_at
from pellucid.whiten.base import Whitening
from pellucid.whiten.calibrate import calibrate
from pellucid.whiten.channels import ChannelDeconv, ChannelHead
from pellucid.whiten.convolution import FastDeconv1d, FastDeconv2d, FastDeconv3d
from pellucid.whiten.linear import FastDeconvLinear
from pellucid.whiten.options import DEFAULTS, HEAD, PUBLISHED, Average, Blocking, Grad
from pellucid.whiten.transposed import FastDeconvTranspose2d

Head = Literal["linear", "all-linear", "channel", "plain"]

_TWINS: dict[type[nn.Module], type[Whitening]] = {
    nn.Conv1d: FastDeconv1d,
    nn.Conv2d: FastDeconv2d,
    nn.Conv3d: FastDeconv3d,
    nn.ConvTranspose2d: FastDeconvTranspose2d,
}
# The layers' own defaults: none is written down twice.
_CONV = {name: option.default for name, option in inspect.signature(FastDeconv2d.__init__).parameters.items()}
_LINEAR = {name: option.default for name, option in inspect.signature(FastDeconvLinear.__init__).parameters.items()}


def deconv(
    *,
    block: int = _CONV["block"],
    block_fc: int = _LINEAR["block"],
    head: Head = "linear",
    first_block: int | None = None,
    first_n_iter: int = 15,
    published: bool = False,
    keep_norm: bool = False,
    kept_norms: list[str] | None = None,
    n_iter: int = DEFAULTS["n_iter"],
    eps: float = DEFAULTS["eps"],
    relative_eps: bool = DEFAULTS["relative_eps"],
    momentum: float = DEFAULTS["momentum"],
    debias: bool = DEFAULTS["debias"],
    sampling_stride: int = _CONV["sampling_stride"],
    blocks: Blocking = _CONV["blocks"],
    method: str = DEFAULTS["method"],
    refresh: int = DEFAULTS["refresh"],
    freeze_after: int | None = DEFAULTS["freeze_after"],
    grad: Grad = DEFAULTS["grad"],
    average: Average = DEFAULTS["average"],
    sync: bool = DEFAULTS["sync"],
) -> Deconv:
    """The rule that lets every convolution of a network whiten its input, in the place of batch norm.

    Every Conv1d, Conv2d, Conv3d and ConvTranspose2d becomes its FastDeconv twin with the same weights, and with a bias,
    0 where there was none. Batch norm is removed; other normalisation stays. A layer whose arithmetic differs from
    torch's (its own padding, standardised weights) also stays, as does the batch norm right after it, and is listed.
    The masks of a masked layer (`pellucid.subnet`) go to its twin, which gets no bias that the layer does not have.
    The first convolution and the head are the first convolution and the last linear layer in the model's own order.
    Linear layers with as many outputs as that one, which no other can take in, are heads too: some networks average
    several, or train auxiliary ones.

    Args:
        block: maximum number of channels that a convolution whitens together.
        block_fc: maximum number of features that the head whitens together. The head's root is recomputed at every
            step (`layers.HEAD`).
        head: what the classifier becomes. linear whitens its input by way of its weights; all-linear does so in every
            linear layer, as published for the three of VGG; channel adds a layer before it that whitens its input;
            plain leaves it alone.
        first_block: block of the first convolution; default that of the others.
        first_n_iter: number of Newton steps of the first convolution.
        published: use the paper's published arithmetic for whatever is left at its default, at several times the cost.
        keep_norm: keep batch norm.
        kept_norms: names of batch-norm layers to keep where others are removed.
        n_iter: number of Newton steps towards the inverse square root, or the strength of the equivalent ridge.
        eps: added to the diagonal of the covariance.
        relative_eps: measure eps in units of the mean variance.
        momentum: weight of a new batch in the running mean and covariance.
        debias: correct the running values for their start.
        sampling_stride: take the covariance from every so many positions along each axis.
        blocks: separate blocks, or blocks pooled into one matrix, as published.
        method: auto, newton, newton-warm, polynomial, eigh or cholesky.
        refresh: recompute covariance and root every so many steps (every step for the first 50).
        freeze_after: number of steps after which the statistics stay as they are; default never.
        grad: what the gradient flows through: full statistics and root (as published; needs refresh=1), mean or none.
        average: whiten in evaluation with the root of the running covariance, or with the running average of roots, as
            published.
        sync: pool the statistics over all processes.

    Raises:
        InputError: an unknown head; other values are checked when the layers are made.
    """
    given = dict(locals())
    if head not in ("linear", "all-linear", "channel", "plain"):
        raise InputError(f"head={head!r} must be linear, all-linear, channel or plain.")
    options = {name: given[name] for name in DEFAULTS}
    if published:
        options |= {name: value for name, value in PUBLISHED.items() if options[name] == DEFAULTS[name]}  # type: ignore[literal-required]
        if blocks == _CONV["blocks"]:
            blocks = "pooled"
        if block == _CONV["block"]:
            block = FastDeconv2d.published_block
        if block_fc == _LINEAR["block"]:
            block_fc = FastDeconvLinear.published_block
    return Deconv(
        options,
        block,
        block_fc,
        head,
        first_block,
        first_n_iter,
        keep_norm,
        sampling_stride,
        blocks,
        tuple(kept_norms or ()),
    )


@dataclass(frozen=True)
class Deconv:
    """The rule that `deconv` makes; `options` are those of every whitening layer, the others are those of `deconv`."""

    options: dict[str, Any]
    block: int
    block_fc: int
    head: Head
    first_block: int | None
    first_n_iter: int
    keep_norm: bool
    sampling_stride: int
    blocks: Blocking
    kept_norms: tuple[str, ...] = ()

    def __call__(self, model: nn.Module) -> Replacements:
        """The new layers of `model`, by name; `left` says which stay and why."""
        found = Replacements()
        for name in self.kept_norms:
            if not isinstance(module_at(model, name), BATCH_NORMS):
                raise InputError(f"kept_norms names {name!r}, which is not a batch norm: leave it out.")
        heads = _heads(model)
        whitened = True  # whether the layer before a norm is; if not, the norm is all the normalisation there is
        convolutions = 0
        inside = "\0"
        for name, module in model.named_modules():
            if not name or name.startswith(inside):
                continue
            new: nn.Module | None = None
            if isinstance(module, Whitening | ChannelHead):
                whitened = True
                inside = f"{name}."
                convolutions += isinstance(module, CONVOLUTIONS)
                found.left[name] = f"{type(module).__name__} whitens its input already"
            elif isinstance(module, CONVOLUTIONS):
                new = self._convolution(module, first=not convolutions)
                convolutions += 1
                whitened = new is not None
                if new is None:
                    known = any(isinstance(module, kind) for kind in _TWINS)
                    why = "has its own arithmetic" if known else "has no whitening twin"
                    found.left[name] = f"{type(module).__name__} {why}"
            elif isinstance(module, nn.Linear):
                new = self._linear(name, module, name in heads, found)
                whitened = new is not None
            elif isinstance(module, BATCH_NORMS) and not self.keep_norm and name not in self.kept_norms:
                new = without_norm(module) if whitened else None
                if new is None:
                    why = "does more than normalise" if whitened else "follows a layer that is not whitened"
                    found.left[name] = f"{type(module).__name__} {why}"
            if new is not None:
                found[name] = new
                inside = f"{name}."
        if any(isinstance(module_at(model, name), BATCH_NORMS) for name in found):
            # Batch norm made a new tensor. Without it, what follows must not overwrite its input in place: that is now
            # the output of some layer, which others may read.
            for name, module in model.named_modules():
                if name and not any(name == other or name.startswith(f"{other}.") for other in found):
                    changed = out_of_place(module)
                    if changed is not module:
                        found[name] = changed
        return found

    def _convolution(self, module: nn.Module, first: bool) -> nn.Module | None:
        kind = next((kind for kind in _TWINS if isinstance(module, kind)), None)
        bare = beneath(module)
        if kind is None or not is_plain(bare):
            return None
        options: dict[str, Any] = {**self.options, "block": self.block, "sampling_stride": self.sampling_stride}
        if first:
            options |= {"block": self.first_block or self.block, "n_iter": self.first_n_iter}
        if kind is not nn.ConvTranspose2d:
            options["blocks"] = self.blocks
        if bare is not module:  # a masked layer has no bias unless it was given one
            return on_top(twin(bare, _TWINS[kind], **options), module)
        new = twin(module, _TWINS[kind], bias=True, **options)
        if module.bias is None:
            nn.init.zeros_(cast(Tensor, new.bias))
        return new

    def _linear(self, name: str, module: nn.Linear, head: bool, found: Replacements) -> nn.Module | None:
        wanted = self.head == "all-linear" or (head and self.head != "plain")
        if not wanted or isinstance(module, Whitening):
            return None
        # Attention reads the weights of its special linear layer instead of calling it.
        bare = beneath(module)
        if not is_plain(bare) or type(module) is nn.modules.linear.NonDynamicallyQuantizableLinear:
            found.left[name] = f"{type(module).__name__} has its own arithmetic"
            return None
        if self.head == "channel":
            return ChannelHead(
                ChannelDeconv(module.in_features, block=self.block_fc, **cast(Any, self.options)), module
            )
        options = self.options
        if head and self.blocks != "pooled":  # the layer's own defaults suit a head
            options = {key: value for key, value in options.items() if key not in HEAD}
        return on_top(twin(bare, FastDeconvLinear, block=self.block_fc, blocks=self.blocks, **options), module)

    def keeping(self, norms: Iterable[str]) -> tuple[Deconv, dict[str, Any]]:
        """This rule but for the batch norm named `norms`, which stays too; and the option that says so."""
        kept = (*self.kept_norms, *norms)
        return dataclasses.replace(self, kept_norms=kept), {"kept_norms": list(kept)}

    def calibrate(self, plain: nn.Module, whitened: nn.Module, images: Iterable[Tensor]) -> None:
        """Set statistics and weights of `whitened` so that in evaluation it computes what `plain` does.

        See `pellucid.whiten.calibrate.calibrate`.
        """
        calibrate(plain, whitened, images)


def _heads(model: nn.Module) -> set[str]:
    """Names of the linear layers that compute the classes' outputs."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        return set()
    outputs = layers[-1][1].out_features
    nexts = [*(layer.in_features for _, layer in layers[1:]), None]
    return {
        name
        for (name, layer), taken in zip(layers, nexts, strict=True)
        if layer.out_features == outputs and (taken is None or taken != outputs)
    }
