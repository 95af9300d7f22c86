"""What a layer without a dictionary keeps of an image: an image is optimised until the layer's output is the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.core.device import fitting
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization
from pellucid.core.modes import evaluating
from pellucid.core.network.tap import module_at, tap
from pellucid.inversion.representation import reconstruct
from pellucid.views.view import View, lack, uses_of

IMAGES = 8  # images that are reconstructed; the others only contribute to the statistics of the atoms


def plain_views(
    model: nn.Module, images: Tensor, layer: str | None, norm: Normalization | None, batch_size: int
) -> dict[str, View]:
    """A `View` of each direct child of the network whose output has positions, or of `layer` alone.

    The code is the layer's output, its atoms are the channels, and the residual is that of the images themselves: the
    first `IMAGES` of them are reconstructed.

    Args:
        model: any network of images (N, C, H, W).
        images: normalised as it expects.
        layer: dotted name, or None.
        norm: how its input is normalised.
        batch_size: images per forward pass.

    Raises:
        InputError: no normalisation, no such layer, or no layer with an output (N, K, *positions).
    """
    if norm is None:
        raise InputError(
            "The network does not say how its input is normalised: say so by "
            "pellucid.declare(model, normalization={'mean': [...], 'std': [...]})."
        )
    names = [layer] if layer is not None else [name for name, _ in model.named_children()]
    for name in names:
        module_at(model, name)
    codes: dict[str, list[Tensor]] = {}
    with torch.no_grad(), evaluating(model):
        for part in images.split(batch_size):
            with tap(model, names) as taps:
                model(fitting(model, part))
            for name, seen in taps.items():
                if isinstance(seen.output, Tensor) and seen.output.dim() == images.dim() and seen.calls == 1:
                    codes.setdefault(name, []).append(seen.output.float())
    if not codes:
        raise InputError(
            f"{layer!r} has no output with positions: name a convolutional layer with layer=."
            if layer is not None
            else "No direct child of this network has an output with positions: name a layer with layer=."
        )
    some = images[:IMAGES]
    views = {}
    for name, parts in codes.items():
        made = reconstruct(model, norm.undo(some).clamp(0, 1), name, normalization=norm).images.to(images)
        views[name] = _view(torch.cat(parts), some, norm.apply(made))
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
