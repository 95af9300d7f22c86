"""What a layer without a dictionary keeps of an image: images are searched for on which its output is the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.modes import evaluating
from pellucid.core.network.tap import module_at, tap
from pellucid.inversion.representation import reconstruct
from pellucid.views.view import View, lack, uses_of

IMAGES = 8  # images that are searched for; the others are only read


def plain_views(model: nn.Module, images: Tensor, layer: str | None) -> dict[str, View]:
    """A `View` of each part of the network at the top whose output has places, or of `layer` alone.

    The code is the layer's output, its atoms are the channels, and the residual is that of the images themselves: the
    first `IMAGES` of them are reconstructed.

    Raises:
        InputError: no normalisation, no such layer, or no layer with an output (N, K, *places).
    """
    norm = facts(model).normalization
    if norm is None:
        raise InputError("The network does not say how its input is normalised: give its mean and std of each channel.")
    names = [layer] if layer is not None else [name for name, _ in model.named_children()]
    for name in names:
        module_at(model, name)
    with torch.no_grad(), evaluating(model), tap(model, names) as taps:
        model(images)
    codes = {
        name: seen.output.float()
        for name, seen in taps.items()
        if isinstance(seen.output, Tensor) and seen.output.dim() == images.dim() and seen.calls == 1
    }
    if not codes:
        raise InputError(
            f"{layer!r} has no output with places: name a layer of convolutions with layer=."
            if layer is not None
            else "No part of this network at the top has an output with places: name a layer with layer=."
        )
    some = images[:IMAGES]
    views = {}
    for name, code in codes.items():
        made = reconstruct(model, norm.undo(some).clamp(0, 1), name).images.to(images)
        views[name] = _view(code, some, norm.apply(made))
    return views


def _view(code: Tensor, images: Tensor, made: Tensor) -> View:
    residual = images - made
    return View(
        reconstruction=made,
        error=lack(images, made),
        control=lack(images, made.roll(1, 0)),
        residual=residual.square().sum(1).sqrt(),
        residual_share=float(residual.square().sum() / images.square().sum().clamp_min(1e-30)),
        atoms=None,
        field=max(images.shape[2:]),
        **vars(uses_of(code)),
    )
