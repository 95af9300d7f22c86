"""The layer rule "deconv": any network on whitened input, without batch norm (Ye et al., ICLR 2020)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.network.plain import is_plain, out_of_place, without_norm
from pellucid.core.network.rules import Replacements
from pellucid.core.network.swap import twin
from pellucid.core.network.tap import module_at
from pellucid.whiten.base import DEFAULTS, HEAD, PUBLISHED, Blocking, Whitening
from pellucid.whiten.convolution import FastDeconv1d, FastDeconv2d, FastDeconv3d
from pellucid.whiten.pixels import ChannelDeconv, ChannelHead, FastDeconvLinear, FastDeconvTranspose2d
from pellucid.whiten.state import Grad

Head = Literal["linear", "all-linear", "channel", "plain"]

_TWINS: dict[type[nn.Module], type[Whitening]] = {
    nn.Conv1d: FastDeconv1d,
    nn.Conv2d: FastDeconv2d,
    nn.Conv3d: FastDeconv3d,
    nn.ConvTranspose2d: FastDeconvTranspose2d,
}
_CONVS = nn.modules.conv._ConvNd
_NORMS = nn.modules.batchnorm._BatchNorm


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
    average: Literal["covariance", "roots"] = DEFAULTS["average"],
    sync: bool = DEFAULTS["sync"],
) -> Deconv:
    """The rule that puts a network on whitened input.

    Every Conv1d, Conv2d, Conv3d and ConvTranspose2d becomes its FastDeconv twin with the same weights, and a bias, 0
    where there was none. Batch norm goes; other normalisation stays. What differs from torch's own in its arithmetic
    (padding of its own, standardised weights) stays too, with the batch norm right after it, and is listed. The first
    convolution and the head are the first convolution and the last linear layer in the model's own order of layers.

    Args:
        block: most channels that a convolution whitens together.
        block_fc: most features that the head whitens together. Its root is made at every step (`layers.HEAD`).
        head: what the classifier becomes. linear whitens its input by way of its weights; all-linear does so in every
            linear layer, as published for VGG's three; channel puts a layer before it that whitens its input; plain
            leaves it.
        first_block: block of the first convolution; default that of the others.
        first_n_iter: Newton steps of the first convolution.
        published: the paper's published arithmetic, for whatever is left at its default, at several times the cost.
        keep_norm: keep batch norm.
        n_iter: Newton steps towards the inverse square root, or the ridge that they amount to.
        eps: added to the covariance's diagonal.
        relative_eps: eps is in units of the mean variance.
        momentum: weight of a new batch in the running mean and covariance.
        debias: correct the running values for their start.
        sampling_stride: the covariance is taken at every so many strides.
        blocks: separate, or pooled into one matrix, as published.
        method: auto, newton, newton-warm, polynomial, eigh or cholesky.
        refresh: covariance and root are made every so many steps, after the first 50, which all do.
        freeze_after: steps after which statistics stay as they are; default never.
        grad: what the gradient flows through, full statistics and root (as published; refresh 1), the mean or none.
        average: evaluation takes the root of the pooled covariance, or the running average of roots, as published.
        sync: pool the statistics of all processes.

    Raises InputError for a head that is not one of these; layers refuse other values when they are made.
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
        block=block,
        block_fc=block_fc,
        head=head,
        first_block=first_block,
        first_n_iter=first_n_iter,
        keep_norm=keep_norm,
        sampling_stride=sampling_stride,
        blocks=blocks,
    )


class Deconv:
    """The rule that `deconv` makes; `options` are those of every whitening layer, the rest are `deconv`'s."""

    def __init__(
        self,
        options: dict[str, Any],
        *,
        block: int,
        block_fc: int,
        head: Head,
        first_block: int | None,
        first_n_iter: int,
        keep_norm: bool,
        sampling_stride: int,
        blocks: Blocking,
    ) -> None:
        self.options = options
        self.block, self.block_fc, self.head = block, block_fc, head
        self.first_block, self.first_n_iter = first_block, first_n_iter
        self.keep_norm, self.sampling_stride, self.blocks = keep_norm, sampling_stride, blocks

    def __call__(self, model: nn.Module) -> Replacements:
        """The new layers of `model`, by name; `left` tells which stay and why."""
        found = Replacements()
        last = next((name for name, module in reversed([*model.named_modules()]) if isinstance(module, nn.Linear)), "")
        whitened = True  # whether the layer before a norm is: if it is not, the norm is all there is
        convolutions = 0
        inside = "\0"
        for name, module in model.named_modules():
            if not name or name.startswith(inside):
                continue
            new: nn.Module | None = None
            if isinstance(module, Whitening | ChannelHead):
                whitened = True
                inside = f"{name}."
            elif isinstance(module, _CONVS):
                new = self._convolution(module, first=not convolutions)
                convolutions += 1
                whitened = new is not None
                if new is None:
                    known = any(isinstance(module, kind) for kind in _TWINS)
                    why = "computes in a way of its own" if known else "has no whitening twin"
                    found.left[name] = f"{type(module).__name__} {why}"
            elif isinstance(module, nn.Linear):
                new = self._linear(name, module, last, found)
                whitened = new is not None
            elif isinstance(module, _NORMS) and not self.keep_norm:
                new = without_norm(module) if whitened else None
                if new is None:
                    why = "does more than normalise" if whitened else "follows a layer that is not whitened"
                    found.left[name] = f"{type(module).__name__} {why}"
            if new is not None:
                found[name] = new
                inside = f"{name}."
        if any(isinstance(module_at(model, name), _NORMS) for name in found):
            # Batch norm made a new tensor. What comes after it must not overwrite its input now that this is the
            # output of some layer, which others may read.
            for name, module in model.named_modules():
                if name and not any(name == other or name.startswith(f"{other}.") for other in found):
                    changed = out_of_place(module)
                    if changed is not module:
                        found[name] = changed
        return found

    def _convolution(self, module: nn.Module, first: bool) -> nn.Module | None:
        kind = next((kind for kind in _TWINS if isinstance(module, kind)), None)
        if kind is None or not is_plain(module):
            return None
        options: dict[str, Any] = {**self.options, "block": self.block, "sampling_stride": self.sampling_stride}
        if first:
            options |= {"block": self.first_block or self.block, "n_iter": self.first_n_iter}
        if kind is not nn.ConvTranspose2d:
            options["blocks"] = self.blocks
        new = twin(module, _TWINS[kind], bias=True, **options)
        if module.bias is None:
            nn.init.zeros_(cast(Tensor, new.bias))
        return new

    def _linear(self, name: str, module: nn.Linear, last: str, found: Replacements) -> nn.Module | None:
        wanted = self.head == "all-linear" or (name == last and self.head != "plain")
        if not wanted or isinstance(module, Whitening):
            return None
        # Attention reads the weights of its own kind of linear layer instead of calling it.
        if not is_plain(module) or type(module) is nn.modules.linear.NonDynamicallyQuantizableLinear:
            found.left[name] = f"{type(module).__name__} computes in a way of its own"
            return None
        if self.head == "channel":
            return ChannelHead(
                ChannelDeconv(module.in_features, block=self.block_fc, **cast(Any, self.options)), module
            )
        options = self.options
        if name == last and self.blocks != "pooled":  # the layer's own way of making its root, which suits a head
            options = {key: value for key, value in options.items() if key not in HEAD}
        return twin(module, FastDeconvLinear, block=self.block_fc, blocks=self.blocks, **options)

    def calibrate(self, plain: nn.Module, whitened: nn.Module, images: Iterable[Tensor]) -> None:
        """Set statistics and weights of `whitened` so that it computes, in evaluation, what `plain` does.

        One pass of `images` through `plain` gives the whitening layers their statistics. Then $W D^{-1}$ in the place
        of W, and $b + W \\mu$ in that of b, undo the whitening; the ridge in D makes it invertible.

        Args:
            plain: the network with the layers that this rule replaces, by the same names, and no batch norm among them.
            whitened: the same network after the swap.
            images: batches, normalised.

        Raises InputError for a transposed convolution, whose mean no bias can undo at the border.
        """
        pairs = dict(_whitening(whitened))
        for name, layer in pairs.items():
            if isinstance(layer, FastDeconvTranspose2d):
                raise InputError(
                    f"The transposed convolution {name!r} cannot keep its function at the border: leave out images."
                )

        def feed(layer: nn.Module) -> Any:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                layer(inputs[0])  # in training mode a layer takes the batch in

            return hook

        handles = []
        plain.eval()
        with torch.no_grad():
            try:
                for name, layer in pairs.items():
                    inner = cast(nn.Module, layer.whiten) if isinstance(layer, ChannelHead) else layer
                    inner.train()
                    handles.append(module_at(plain, name).register_forward_pre_hook(feed(inner)))
                for batch in images:
                    plain(batch)
            finally:
                for handle in handles:
                    handle.remove()
            for name, layer in pairs.items():
                _undo(layer.eval(), module_at(plain, name))


def _whitening(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inside = "\0"
    for name, module in model.named_modules():
        if isinstance(module, Whitening | ChannelHead) and not name.startswith(inside):
            yield name, module
            inside = f"{name}."


def _undo(layer: nn.Module, plain: nn.Module) -> None:
    """Weights for `layer` with which it computes what `plain` does."""
    weight, bias = cast(Tensor, plain.weight).double(), cast(Tensor | None, plain.bias)
    if isinstance(layer, ChannelHead):
        root, shift = (part.double() for part in layer.whiten.folded())
        held = layer.linear
        weight = torch.linalg.solve(root, weight, left=False)
        shift = weight @ shift
    else:
        assert isinstance(layer, FastDeconv1d | FastDeconv2d | FastDeconv3d | FastDeconvLinear)
        held = cast(nn.Linear, layer)
        mean, root = (part.double() for part in layer.whiten.at_eval())
        # Whitening by the inverse of the root is the inverse of whitening, whatever the order of the features.
        held.weight = nn.Parameter(weight)
        held.bias = nn.Parameter(weight.new_zeros(weight.shape[0]))
        weight, _ = layer.folded(torch.zeros_like(mean), torch.linalg.inv(root))
        held.weight = nn.Parameter(weight.detach())
        _, shift = layer.folded(mean, root)
    bias = torch.zeros_like(shift) if bias is None else bias.double()
    like = cast(Tensor, plain.weight)
    held.weight = nn.Parameter(weight.detach().to(like.dtype), like.requires_grad)
    held.bias = nn.Parameter((bias - shift).detach().to(like.dtype), like.requires_grad)
