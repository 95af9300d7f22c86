r"""Reconstruct images from the output of one layer.

Mahendran and Vedaldi, "Understanding deep image representations by inverting them", CVPR 2015.

Given the output $\Phi_0$ of a layer for an image, find the image x that minimises (equations 1 to 3, with $\beta = 2$,
and pixels clipped to their range in place of a penalty on their norm)

$$\frac{|\Phi(x) - \Phi_0|^2}{|\Phi_0|^2} + \frac{\lambda}{N} \sum_{ij} (x_{i,j+1} - x_{ij})^2
  + (x_{i+1,j} - x_{ij})^2,$$

where x is normalised and has N values. What the layer has kept comes back; what it has discarded does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.core.device import fitting, single
from pellucid.core.errors import InputError, first_line
from pellucid.core.facts import Normalization
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.network.tap import module_at, tap
from pellucid.core.source import Named
from pellucid.core.terminal import track
from pellucid.inversion.frozen import frozen
from pellucid.inversion.space import network_of, space_of
from pellucid.inversion.start import Noise


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Images reconstructed from a layer's output.

    Attributes:
        images: float32 (B, C, H, W) in [0, 1], on the CPU.
        error: (B,), $|\\Phi(x) - \\Phi_0| / |\\Phi_0|$ for each image.
        noise: (B,), the same for the noise that the search started from, as a control.
        layer: the dotted name.
    """

    images: Tensor
    error: Tensor
    noise: Tensor
    layer: str


def reconstruct(
    model: Named,
    images: Tensor,
    layer: str,
    *,
    steps: int = 300,
    lr: float = 0.1,
    smooth: float = 1e-3,
    normalization: Normalization | Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
) -> Reconstruction:
    """Starting from noise, find images for which `layer` has the same output as for `images`.

    Args:
        model: a network of normalised images: a module, or a run folder, checkpoint, MODEL=FILE, architecture (random
            weights) or `Run`. A module is afterwards as it was before.
        images: float (B, C, H, W) in [0, 1].
        layer: dotted name of a layer whose output is one tensor with a row per image.
        steps: number of Adam's steps.
        lr: its learning rate, which falls along a cosine.
        smooth: $\\lambda$ above.
        normalization: {"mean", "std"} of the input; default the model's own.
        seed: of the noise; image i starts from noise of its own.

    Raises:
        InputError: no such layer, an output that is not one tensor with a row per image, or numbers out of range.
    """
    if images.dim() != 4 or not len(images) or not images.is_floating_point():
        raise InputError(f"Images must be floats (B, C, H, W) in [0, 1], not {images.dtype} {tuple(images.shape)}.")
    if steps < 1 or not 0 < lr < math.inf or not 0 <= smooth < math.inf:
        raise InputError(f"steps={steps}, lr={lr:g} and smooth={smooth:g} must be at least 1, above 0 and at least 0.")
    model = network_of(model, normalization, seed)
    needs_layers(model, "Inverting")
    module_at(model, layer)
    space = space_of(model, images.shape[1:], normalization)
    x = Noise().draw(space, torch.arange(len(images)), seed)
    with frozen(model), tap(model, [layer]) as taps:

        def output(seen: Tensor) -> Tensor:
            try:
                model(fitting(model, seen))
            except (RuntimeError, ValueError) as error:
                raise InputError(f"The network cannot take these images ({first_line(error)}).") from None
            found = taps[layer].output
            if not isinstance(found, Tensor) or len(found) != len(seen):
                raise InputError(
                    f"The output of layer {layer!r} is not one tensor with a row per image: name another layer."
                )
            return single(found).flatten(1)

        with torch.no_grad():
            wanted = output(space.normalized(images.to(space.mean)))
            size = wanted.square().sum(1).clamp_min(1e-12)

        def errors(seen: Tensor) -> Tensor:
            return (output(seen) - wanted).square().sum(1) / size

        with torch.no_grad():
            noise = errors(x).sqrt().cpu()
        x = space.clamped(x).requires_grad_()
        optimizer = torch.optim.Adam([x], lr)
        for step in track(range(steps), steps, f"reconstructing from {layer}"):
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            gaps = (x.diff(dim=3).square().sum((1, 2, 3)) + x.diff(dim=2).square().sum((1, 2, 3))) / x[0].numel()
            # The sum over images: each image is reconstructed independently of its batch.
            (x.grad,) = torch.autograd.grad((errors(x) + smooth * gaps).sum(), [x])
            optimizer.step()
            with torch.no_grad():
                x.copy_(space.clamped(x))
        with torch.no_grad():
            error = errors(x).sqrt().cpu()
    return Reconstruction(space.pixels(x.detach()).clamp(0, 1).cpu(), error, noise, layer)
