r"""Images from what one layer makes of them.

Mahendran and Vedaldi, "Understanding deep image representations by inverting them", CVPR 2015.

For the output $\Phi_0$ of a layer on an image, the image x with the least (equations 1 to 3, with $\beta = 2$ and the
range of pixels in place of the norm that keeps them small)

$$\frac{|\Phi(x) - \Phi_0|^2}{|\Phi_0|^2} + \frac{\lambda}{N} \sum_{ij} (x_{i,j+1} - x_{ij})^2
  + (x_{i+1,j} - x_{ij})^2,$$

x normalised, of N values. What the layer has kept comes back, what it has thrown away does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError, first_line
from pellucid.core.facts import Normalization
from pellucid.core.network.tap import module_at, tap
from pellucid.core.terminal import track
from pellucid.inversion.optimize import space_of, still
from pellucid.inversion.start import Noise


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """images: float32 (B, C, H, W) in [0, 1], on the CPU. error: (B,), $|\\Phi(x) - \\Phi_0| / |\\Phi_0|$ of each.
    noise: (B,), the same of the noise that the search began with, its control. layer: the dotted name."""

    images: Tensor
    error: Tensor
    noise: Tensor
    layer: str


def reconstruct(
    model: nn.Module,
    images: Tensor,
    layer: str,
    *,
    steps: int = 300,
    lr: float = 0.1,
    smooth: float = 1e-3,
    normalization: Normalization | Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
) -> Reconstruction:
    """Images that make the output of `layer` what it is on `images`, from noise.

    Args:
        model: a network of normalised images; it is left as it was.
        images: float (B, C, H, W) in [0, 1].
        layer: dotted name of a layer whose output is one tensor for each image.
        steps, lr: of Adam; the rate falls by a cosine.
        smooth: $\\lambda$ above.
        normalization: {"mean", "std"} of the input; default the model's own.
        seed: of the noise; image i starts from noise of its own.

    Raises:
        InputError: no such layer, an output that is no tensor of images, or numbers out of range.
    """
    if images.dim() != 4 or not len(images) or not images.is_floating_point():
        raise InputError(f"Images must be floats (B, C, H, W) in [0, 1], not {images.dtype} {tuple(images.shape)}.")
    if steps < 1 or not 0 < lr < math.inf or not 0 <= smooth < math.inf:
        raise InputError(f"steps={steps}, lr={lr:g} and smooth={smooth:g} must be at least 1, above 0 and at least 0.")
    module_at(model, layer)
    space = space_of(model, images.shape[1:], normalization)
    x = Noise().draw(space, torch.arange(len(images)), seed)
    with still(model), tap(model, [layer]) as taps:

        def output(seen: Tensor) -> Tensor:
            try:
                model(seen)
            except (RuntimeError, ValueError) as error:
                raise InputError(f"The network cannot take these images ({first_line(error)}).") from None
            found = taps[layer].output
            if not isinstance(found, Tensor) or len(found) != len(seen):
                raise InputError(f"The output of layer {layer!r} is not one tensor for each image: name another layer.")
            return found.flatten(1)

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
            # The sum over images: each goes its own way, whatever the batch.
            (x.grad,) = torch.autograd.grad((errors(x) + smooth * gaps).sum(), [x])
            optimizer.step()
            with torch.no_grad():
                x.copy_(space.clamped(x))
        with torch.no_grad():
            error = errors(x).sqrt().cpu()
    return Reconstruction(space.pixels(x.detach()).clamp(0, 1).cpu(), error, noise, layer)
