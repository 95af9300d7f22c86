"""What is reported of one layer: what it keeps of images, and where each of its atoms is used most."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

ATOMS = 64  # atoms drawn, most used first
USES = 8  # positions shown per atom


@dataclass(frozen=True)
class View:
    """What one layer keeps of N images, and what its K atoms stand for.

    Attributes:
        reconstruction: (N, C, *size) the images computed from this layer's code alone, down through the dictionaries;
            None where no chain of dictionaries leads to the pixels. In a network without dictionaries, the first few
            images, found by optimisation.
        error: fraction of the images' variance that the reconstruction lacks; None without a reconstruction.
        control: the same with each image's code replaced by the next image's.
        residual: (N, *size) norm over the channels of x - D* z at each position of the layer's own input.
        residual_share: its energy over the input's.
        density: fraction of the code's entries that are non-zero.
        used: (K,) mean absolute entry of each atom.
        order: (K,) atoms, most used first.
        atoms: (A, C, *kernel) what the first A atoms of `order` draw in pixels; None without a reconstruction.
        images, places: (A, U) the images with the largest entries of these atoms, and the flat position in each.
        shape: size of the code's maps.
        field: side in pixels of the receptive field of a code entry.
    """

    reconstruction: Tensor | None
    error: float | None
    control: float | None
    residual: Tensor
    residual_share: float
    density: float
    used: Tensor
    order: Tensor
    atoms: Tensor | None
    images: Tensor
    places: Tensor
    shape: tuple[int, ...]
    field: int


@dataclass(frozen=True)
class Uses:
    """The attributes of a `View` that depend on the code alone."""

    density: float
    used: Tensor
    order: Tensor
    images: Tensor
    places: Tensor
    shape: tuple[int, ...]


def uses_of(code: Tensor) -> Uses:
    """How a code (N, K, *places) uses its K atoms."""
    used = code.abs().flatten(2).mean((0, 2))
    order = used.argsort(descending=True, stable=True)
    peak, place = code[:, order[:ATOMS]].abs().flatten(2).max(2)  # (N, A)
    best = peak.topk(min(USES, len(code)), 0).indices  # (U, A)
    density = float((code != 0).float().mean())
    return Uses(density, used, order, best.T, place.gather(0, best).T, tuple(code.shape[2:]))


def lack(images: Tensor, made: Tensor) -> float:
    """Fraction of the variance of images about their mean colour that `made` lacks."""
    images = images.to(made)
    axes = (0, *range(2, images.dim()))
    return float((images - made).square().sum() / (images - images.mean(axes, keepdim=True)).square().sum())
