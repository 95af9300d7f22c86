r"""Where images start, and what of them is varied: their pixels, their spectrum, or a network that draws them.

A start draws the variables of a batch, and `decode` makes normalised images (B, C, H, W) of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of


@dataclass(frozen=True)
class Space:
    """The images that a network takes: their shape (C, H, W) and the normalisation, (C, 1, 1) each, of pixels in
    [0, 1]."""

    shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor

    def normalized(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def pixels(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean

    def clamped(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, -self.mean / self.std), (1 - self.mean) / self.std)


class Start(Protocol):
    """Variables of images and what they decode to."""

    pixels: bool  # the variables are the normalised images themselves, and can be kept in range

    def draw(self, space: Space, numbers: Tensor, seed: int) -> Tensor: ...

    def decode(self, variables: Tensor, space: Space) -> Tensor: ...


@dataclass(frozen=True)
class Noise:
    """Normalised pixels from a normal distribution of this scale, each image a function of (seed, its number).

    twice: normalise what was drawn once more, as the 2020 system does.
    """

    scale: float = 1.0
    twice: bool = False
    pixels = True

    def draw(self, space: Space, numbers: Tensor, seed: int) -> Tensor:
        x = self.scale * _normal(space.shape, numbers, seed).to(space.mean.device)
        return space.normalized(x) if self.twice else x

    def decode(self, variables: Tensor, space: Space) -> Tensor:
        return variables


@dataclass(frozen=True, eq=False)
class Images:
    """Given images (B, C, H, W) in [0, 1], one for each target."""

    images: Tensor
    pixels = True

    def draw(self, space: Space, numbers: Tensor, seed: int) -> Tensor:
        if self.images.shape != (len(numbers), *space.shape):
            raise InputError(
                f"The start holds images of shape {tuple(self.images.shape)}, but {(len(numbers), *space.shape)} are "
                "asked for."
            )
        return space.normalized(self.images.detach().to(space.mean))

    def decode(self, variables: Tensor, space: Space) -> Tensor:
        return variables


@dataclass(frozen=True)
class Fourier:
    """The spectrum of the image, which a sigmoid brings into [0, 1] (Olah et al. 2017, "Feature visualization").

    Amplitudes are divided by frequency, so that one step moves all scales alike. phase_only: amplitudes are those of
    $1/f$ and only phases vary (MACO: Fel et al. 2023, section 3).
    """

    scale: float = 1.0
    phase_only: bool = False
    pixels = False

    def draw(self, space: Space, numbers: Tensor, seed: int) -> Tensor:
        """(B, 2, C, H, W // 2 + 1) real and imaginary parts, or (B, C, H, W // 2 + 1) phases."""
        c, h, w = space.shape
        form = (c, h, w // 2 + 1) if self.phase_only else (2, c, h, w // 2 + 1)
        drawn = _normal(form, numbers, seed).to(space.mean.device)
        return torch.pi * drawn if self.phase_only else 0.1 * drawn

    def decode(self, variables: Tensor, space: Space) -> Tensor:
        _, h, w = space.shape
        rows = torch.fft.fftfreq(h, device=variables.device)[:, None]
        columns = torch.fft.rfftfreq(w, device=variables.device)
        frequency = (rows.square() + columns.square()).sqrt().clamp(min=1 / max(h, w))
        if self.phase_only:
            spectrum = torch.polar((1 / frequency).expand_as(variables).contiguous(), variables)
        else:
            real, imaginary = variables.unbind(1)
            spectrum = torch.complex(real, imaginary) / frequency
        x = torch.fft.irfft2(spectrum, (h, w), norm="ortho")
        if self.phase_only:
            x = x / x.std((1, 2, 3), keepdim=True).clamp_min(1e-6)
        return space.normalized(torch.sigmoid(self.scale * x))


@dataclass(frozen=True)
class Generator:
    """The weights of a small network that draws all images of a batch, and a code for each.

    A few convolutions draw what is smooth and repeats itself, as photographs are, and hardly the fine noise that a
    classifier takes for a class (Ulyanov, Vedaldi and Lempitsky 2018, "Deep image prior"). Weights and codes are found
    together, anew for each batch, as in Fang et al. 2021 ("Contrastive model inversion", section 3.2).

    A linear layer of the code, two doublings each followed by a 3x3 convolution, batch norm over the batch and a leaky
    ReLU, then a 3x3 convolution, batch norm and a sigmoid.

    codes: numbers in a code. width: channels of the first convolution; the second has half. speed: how many times
    faster than weights codes move. again: share of the steps for those batches of a set that begin with the weights
    found for its first, in place of random ones (Fang et al. 2022, "Up to 100x faster data-free knowledge
    distillation", carry them on likewise); 1 is all steps and random weights for each. weights: to begin with.
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
                f"{self.again:g} draws nothing: give at least 1, 2, above 0, and a share of the steps."
            )

    def after(self, variables: Tensor, images: int) -> Generator:
        """This start with the weights that were found for a batch of so many images."""
        return replace(self, weights=variables[: len(variables) - images * self.codes].detach().clone())

    def draw(self, space: Space, numbers: Tensor, seed: int) -> Tensor:
        """One vector: the weights, a function of the seed, then the codes, each of (seed, its number)."""
        generator = torch.Generator().manual_seed(seed_of("generator", seed))
        parts = []
        for name, form in self._forms(space).items():
            bound = (form[1:].numel() or 1) ** -0.5  # of uniform weights, as in torch's own layers
            uniform = bound * (2 * torch.rand(form, generator=generator) - 1)
            parts.append({"scale": torch.ones(form), "shift": torch.zeros(form)}.get(name.split(".")[-1], uniform))
        if self.weights is not None:
            if self.weights.numel() != sum(part.numel() for part in parts):
                raise InputError(f"The {self.weights.numel()} weights given are not those of this generator.")
            parts = [self.weights.cpu()]
        parts.append(_normal((self.codes,), numbers, seed) / self.speed)
        return torch.cat([part.flatten() for part in parts]).to(space.mean.device)

    def decode(self, variables: Tensor, space: Space) -> Tensor:
        forms = self._forms(space)
        sizes = [form.numel() for form in forms.values()]
        *weights, codes = variables.split([*sizes, len(variables) - sum(sizes)])
        p = {name: part.view(form) for (name, form), part in zip(forms.items(), weights, strict=True)}
        _, h, w = space.shape
        x = self.speed * codes.view(-1, self.codes) @ p["linear"].T
        x = _standard(x.view(-1, self.width, *_base(h, w)), p, "0")
        for layer, size in (("1", (-(-h // 2), -(-w // 2))), ("2", (h, w))):
            x = F.conv2d(F.interpolate(x, size), p[f"{layer}.weight"], padding=1)
            x = F.leaky_relu(_standard(x, p, layer), 0.2)
        x = _standard(F.conv2d(x, p["3.weight"], padding=1), p, "3")
        return space.normalized(torch.sigmoid(x))

    def _forms(self, space: Space) -> dict[str, torch.Size]:
        """The shapes of all weights."""
        c, h, w = space.shape
        base = _base(h, w)
        wide, half = self.width, self.width // 2
        forms = {"linear": (wide * base[0] * base[1], self.codes), "0.scale": (wide,), "0.shift": (wide,)}
        for layer, (out, into) in {"1": (wide, wide), "2": (half, wide), "3": (c, half)}.items():
            forms |= {f"{layer}.weight": (out, into, 3, 3), f"{layer}.scale": (out,), f"{layer}.shift": (out,)}
        return {name: torch.Size(form) for name, form in forms.items()}


def _base(height: int, width: int) -> tuple[int, int]:
    """The grid from which two doublings reach an image."""
    return -(-height // 4), -(-width // 4)


def _standard(x: Tensor, p: dict[str, Tensor], layer: str) -> Tensor:
    """Batch norm of (B, C, H, W) over the batch itself."""
    return F.batch_norm(x, None, None, p[f"{layer}.scale"], p[f"{layer}.shift"], training=True)


def _normal(shape: tuple[int, ...], numbers: Tensor, seed: int) -> Tensor:
    return torch.stack(
        [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed_of("start", seed, number)))
            for number in numbers.tolist()
        ]
    )
