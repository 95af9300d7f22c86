"""What the search optimises, and where it starts: the pixels of images, or their spectrum; see `generator` too.

A start draws the variables of a batch, and `decode` turns them into normalised images (B, C, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of
from pellucid.inversion.space import Space


class Start(Protocol):
    """Variables of a batch, and the images that they stand for."""

    pixels: bool  # whether the variables are the normalised images themselves, which can be clipped

    def draw(self, space: Space, numbers: Tensor, seed: int) -> Tensor:
        """The variables to start from, for images of these numbers (B,)."""
        ...

    def decode(self, variables: Tensor, space: Space) -> Tensor:
        """The normalised images (B, C, H, W) of these variables."""
        ...


@dataclass(frozen=True)
class Noise:
    """Normalised pixels drawn from a normal distribution; each image is a function of (seed, its number).

    Args:
        scale: standard deviation.
        twice: normalise the drawn values once more, as the system of Botach and Cohen (2020) does.
    """

    scale: float = 1.0
    twice: bool = False
    pixels = True

    def draw(self, space: Space, numbers: Tensor, seed: int) -> Tensor:
        x = self.scale * normal(space.shape, numbers, seed).to(space.mean.device)
        return space.normalized(x) if self.twice else x

    def decode(self, variables: Tensor, space: Space) -> Tensor:
        return variables


@dataclass(frozen=True, eq=False)
class Images:
    """Given images (B, C, H, W) in [0, 1], one per target."""

    images: Tensor
    pixels = True

    def draw(self, space: Space, numbers: Tensor, seed: int) -> Tensor:
        if self.images.shape != (len(numbers), *space.shape):
            raise InputError(
                f"The start holds images of shape {tuple(self.images.shape)}, but the search needs "
                f"{(len(numbers), *space.shape)}: give one image per target."
            )
        return space.normalized(self.images.detach().to(space.mean))

    def decode(self, variables: Tensor, space: Space) -> Tensor:
        return variables


@dataclass(frozen=True)
class Fourier:
    """The spectrum of each image, whose inverse transform a sigmoid maps to [0, 1] (Olah et al. 2017, "Feature
    visualization").

    Amplitudes are divided by frequency, so that a step changes all scales equally.

    Args:
        scale: factor before the sigmoid.
        phase_only: fix the amplitudes to $1/f$ and optimise the phases alone (MACO: Fel et al. 2023, section 3).
    """

    scale: float = 1.0
    phase_only: bool = False
    pixels = False

    def draw(self, space: Space, numbers: Tensor, seed: int) -> Tensor:
        """(B, 2, C, H, W // 2 + 1) real and imaginary parts, or (B, C, H, W // 2 + 1) phases."""
        c, h, w = space.shape
        form = (c, h, w // 2 + 1) if self.phase_only else (2, c, h, w // 2 + 1)
        drawn = normal(form, numbers, seed).to(space.mean.device)
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


def normal(shape: tuple[int, ...], numbers: Tensor, seed: int) -> Tensor:
    """Standard normal values (B, *shape), row i a function of (seed, numbers[i])."""
    return torch.stack(
        [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed_of("start", seed, number)))
            for number in numbers.tolist()
        ]
    )
