"""What a layer without a dictionary keeps of an image: images are searched for on which its output is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError
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
    norm: Mapping[str, Any] | None = getattr(model, "normalization", None)
    if norm is None:
        raise InputError("The network does not say how its input is normalised: give its mean and std of each channel.")
    names = [layer] if layer is not None else [name for name, _ in model.named_children()]
    for name in names:
        module_at(model, name)
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), tap(model, names) as taps:
            model.eval()(images)
    finally:
        for module, mode in modes:
            module.training = mode
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
    mean, std = (torch.tensor(norm[key], device=images.device).reshape(-1, 1, 1) for key in ("mean", "std"))
    some = images[:IMAGES]
    views = {}
    for name, code in codes.items():
        made = reconstruct(model, (some * std + mean).clamp(0, 1), name).images.to(images)
        views[name] = _view(code, some, (made - mean) / std)
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
