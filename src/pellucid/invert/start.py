r"""Where images start, and what of them is varied: their pixels, or their spectrum.

A start draws the variables of a batch, and `decode` makes normalised images (B, C, H, W) of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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


def _normal(shape: tuple[int, ...], numbers: Tensor, seed: int) -> Tensor:
    return torch.stack(
        [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed_of("start", seed, number)))
            for number in numbers.tolist()
        ]
    )
