"""Augmentation of whole batches: one draw per image, no loop over images, no random state.

The draws of a batch are a function of (seed, epoch, step) for the *global* batch; each process applies the rows of its
own part, so that the images are the same for any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from pellucid.core.data.policy import POLICIES
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of


@dataclass(frozen=True)
class Augment:
    """What is done to a training image, in this order: crop, flip, policy, normalise, cutout.

    Attributes:
        crop: pixels of reflection padding before a random crop back to size; 0 for none. Streamed images get a random
            resized crop instead, whatever this value.
        flip: mirror half of the images, left to right.
        cutout: side in pixels of a square set to zero after normalisation, that is, to the training mean. Its centre is
            uniform over the image, and it is clipped at the border (DeVries and Taylor 2017,
            https://arxiv.org/abs/1708.04552).
        policy: "none", "trivial" (TrivialAugmentWide), "rand" (RandAugment) or "auto" (AutoAugment, the CIFAR policy up
            to 64 pixels, else ImageNet's), from torchvision: needs the extra `vision`, and runs image by image.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    policy: str = "none"

    def __post_init__(self) -> None:
        for name in ("crop", "cutout"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it counts pixels and cannot be negative")
        if self.policy not in POLICIES:
            raise InputError(f"augmentation policy {self.policy!r} is unknown; choose from {', '.join(POLICIES)}")

    def check(self, size: tuple[int, int]) -> None:
        """Check that images (H, W) can be padded by `crop`: reflection needs a larger side.

        Raises:
            InputError: they cannot.
        """
        if self.crop >= min(size):
            raise InputError(
                f"a crop padding of {self.crop} pixels needs images larger than that, and these are "
                f"{size[0]}x{size[1]}; use at most {min(size) - 1}"
            )

    def draw(self, total: int, size: tuple[int, int], *, seed: int, epoch: int, step: int) -> torch.Tensor:
        """Draw for a global batch of `total` images (H, W): int64 (total, 5) on the CPU.

        Columns: row and column of the crop in the padded image, flip (0 or 1), row and column of the cutout's
        centre.
        """
        rng = np.random.default_rng(seed_of("augment", seed, epoch, step))
        high = [2 * self.crop + 1, 2 * self.crop + 1, 2 if self.flip else 1, *size]
        return torch.from_numpy(rng.integers(0, high, (total, 5)))

    def move(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Crop and flip: images (B, C, H, W) of any type and the rows (B, 5) of `draw` on the same device."""
        if not (self.crop or self.flip):
            return images
        count, channels, height, width = images.shape
        rows = _reflect(torch.arange(height, device=images.device) + draws[:, :1] - self.crop, height)
        columns = _reflect(torch.arange(width, device=images.device) + draws[:, 1:2] - self.crop, width)
        columns = torch.where(draws[:, 2:3].bool(), columns.flip(1), columns)
        pixels = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
        return images.reshape(count, channels, -1).gather(2, pixels).view_as(images)

    def erase(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Cutout, in place: normalised images (B, C, H, W) and the rows (B, 5) of `draw`."""
        if not self.cutout:
            return images
        top, left = (draws[:, 3:] - self.cutout // 2).unbind(1)
        bottom, right = top + self.cutout, left + self.cutout
        return images.masked_fill_(box_mask(images, top, bottom, left, right), 0)


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Positions outside 0..size-1, mirrored at the first and last pixel, which are not repeated."""
    return size - 1 - (size - 1 - index.abs()).abs()


def box_mask(
    images: torch.Tensor, top: torch.Tensor, bottom: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """Mask (B, 1, H, W) of the rectangles [top, bottom) x [left, right), each (B,)."""
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    inside_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(1)


def normalize(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...], *, channels_last: bool = False
) -> torch.Tensor:
    """uint8 images (B, C, H, W) to float32 (image / 255 - mean) / std, `mean` and `std` per channel."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    scale, shift = _affine(tuple(mean), tuple(std), images.device)
    return images.to(torch.float32, memory_format=layout).mul_(scale).add_(shift)


@lru_cache(maxsize=16)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift (C, 1, 1) of `normalize`; cached, since sending them to a GPU would make the host wait."""
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=device)
    return scale.view(-1, 1, 1), shift.view(-1, 1, 1)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on `device`; to CUDA through pinned memory, so that the host need not wait for the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
