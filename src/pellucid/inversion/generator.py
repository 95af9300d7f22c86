"""A start that draws images by a small network, whose weights are optimised in place of pixels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of
from pellucid.inversion.space import Space
from pellucid.inversion.start import normal


@dataclass(frozen=True)
class Generator:
    """The weights of a small network that draws all images of a batch, and one code per image.

    A few convolutions easily draw what is smooth and repeats itself, as photographs are, and hardly draw the fine noise
    that a classifier takes for a class (Ulyanov, Vedaldi and Lempitsky 2018, "Deep image prior"). Weights and codes are
    optimised together, afresh for each batch, as in Fang et al. 2021 ("Contrastive model inversion", section 3.2).

    The network: a linear layer of the code; two doublings of the size, each followed by a 3x3 convolution, batch norm
    over the batch and a leaky ReLU; then a 3x3 convolution, batch norm and a sigmoid.

    Args:
        codes: numbers in a code.
        width: channels of the first convolution; the second has half as many.
        speed: how many times faster codes move than weights.
        again: in a set of several batches, those after the first start from the weights found for the first instead
            of random ones, and take this fraction of the steps (Fang et al. 2022, "Up to 100x faster data-free
            knowledge distillation", reuse weights likewise). 1 means random weights and all steps for every batch.
        weights: weights to start from; default random ones.

    Raises:
        InputError: fewer than 1 code or 2 channels, a speed that is not above 0, or `again` outside (0, 1].
    """

    codes: int = 128
    width: int = 64
    speed: float = 10.0
    again: float = 0.2
    weights: Tensor | None = field(default=None, repr=False, compare=False)
    pixels = False

    def __post_init__(self) -> None:
        if self.codes < 1 or self.width < 2 or not self.speed > 0 or not 0 < self.again <= 1:
            raise InputError(
                f"A generator of {self.codes} codes, {self.width} channels, speed {self.speed:g} and again "
                f"{self.again:g} cannot draw: give at least 1, at least 2, above 0, and above 0 up to 1."
            )

    def after(self, variables: Tensor, images: int) -> Generator:
        """This start with the weights that were found for a batch of `images` images."""
        return replace(self, weights=variables[: len(variables) - images * self.codes].detach().clone())

    def draw(self, space: Space, numbers: Tensor, seed: int) -> Tensor:
        """One vector: the weights, a function of the seed, and the codes, each a function of (seed, image number)."""
        generator = torch.Generator().manual_seed(seed_of("generator", seed))
        parts = []
        for name, shape in self._shapes(space).items():
            bound = (shape[1:].numel() or 1) ** -0.5  # of uniform weights, as in torch's own layers
            uniform = bound * (2 * torch.rand(shape, generator=generator) - 1)
            parts.append({"scale": torch.ones(shape), "shift": torch.zeros(shape)}.get(name.split(".")[-1], uniform))
        if self.weights is not None:
            if self.weights.numel() != sum(part.numel() for part in parts):
                raise InputError(
                    f"The {self.weights.numel()} weights given do not fit this generator: give those of an equal one."
                )
            parts = [self.weights.cpu()]
        parts.append(normal((self.codes,), numbers, seed) / self.speed)
        return torch.cat([part.flatten() for part in parts]).to(space.mean.device)

    def decode(self, variables: Tensor, space: Space) -> Tensor:
        shapes = self._shapes(space)
        sizes = [shape.numel() for shape in shapes.values()]
        *weights, codes = variables.split([*sizes, len(variables) - sum(sizes)])
        p = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), weights, strict=True)}
        _, h, w = space.shape
        x = self.speed * codes.view(-1, self.codes) @ p["linear"].T
        x = _normed(x.view(-1, self.width, *_base(h, w)), p, "0")
        for layer, size in (("1", (-(-h // 2), -(-w // 2))), ("2", (h, w))):
            x = F.conv2d(F.interpolate(x, size), p[f"{layer}.weight"], padding=1)
            x = F.leaky_relu(_normed(x, p, layer), 0.2)
        x = _normed(F.conv2d(x, p["3.weight"], padding=1), p, "3")
        return space.normalized(torch.sigmoid(x))

    def _shapes(self, space: Space) -> dict[str, torch.Size]:
        """The shapes of all weights, by name."""
        c, h, w = space.shape
        base = _base(h, w)
        wide, half = self.width, self.width // 2
        shapes = {"linear": (wide * base[0] * base[1], self.codes), "0.scale": (wide,), "0.shift": (wide,)}
        for layer, (out, into) in {"1": (wide, wide), "2": (half, wide), "3": (c, half)}.items():
            shapes |= {f"{layer}.weight": (out, into, 3, 3), f"{layer}.scale": (out,), f"{layer}.shift": (out,)}
        return {name: torch.Size(shape) for name, shape in shapes.items()}


def _base(height: int, width: int) -> tuple[int, int]:
    """The size from which two doublings reach that of an image."""
    return -(-height // 4), -(-width // 4)


def _normed(x: Tensor, p: dict[str, Tensor], layer: str) -> Tensor:
    """Batch norm of x (B, C, H, W) by the statistics of the batch itself."""
    return F.batch_norm(x, None, None, p[f"{layer}.scale"], p[f"{layer}.shift"], training=True)
