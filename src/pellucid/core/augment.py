"""Augmentation of whole batches: every image has its own draw, no loop over images, no random state.

The draws of a batch are a function of (seed, epoch, step) made for the *global* batch; a process applies the
rows of its own share, so that any number of processes sees the same images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

POLICIES = ("none", "trivial", "rand", "auto")


@dataclass(frozen=True)
class Augment:
    """What is done to a training image, in this order: crop, flip, policy, normalise, cutout.

    crop:   pixels of reflection padding before a random crop back to size (0: none). Streamed images get a
            random resized crop instead, whatever this says.
    flip:   mirror half of the images, left to right.
    cutout: side in pixels of a square set to zero after normalisation, that is, to the training mean; its
            centre is uniform over the image and its border is clipped there (DeVries and Taylor 2017,
            https://arxiv.org/abs/1708.04552).
    policy: "none", "trivial" (TrivialAugmentWide), "rand" (RandAugment) or "auto" (AutoAugment, the CIFAR
            policy up to 64 pixels, else ImageNet's), from torchvision: needs the extra `vision`, and runs
            image by image.
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
        """`InputError` if images (H, W) cannot be padded by `crop` (reflection needs a larger side)."""
        if self.crop >= min(size):
            raise InputError(
                f"a crop padding of {self.crop} pixels needs images larger than that, and these are "
                f"{size[0]}x{size[1]}; use at most {min(size) - 1}"
            )

    def draw(self, total: int, size: tuple[int, int], *, seed: int, epoch: int, step: int) -> torch.Tensor:
        """Draws of a global batch of `total` images (H, W): int64 (total, 5) on the CPU.

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
        return images.masked_fill_(_box(images, top, bottom, left, right), 0)


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Positions outside 0..size-1 mirrored at the first and last pixel (which are not repeated)."""
    return size - 1 - (size - 1 - index.abs()).abs()


def _box(
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
    """Scale and shift (C, 1, 1) of `normalize`; kept, since sending them to a GPU would make the host wait."""
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=device)
    return scale.view(-1, 1, 1), shift.view(-1, 1, 1)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on `device`; to CUDA through pinned memory, so that the host need not wait for the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def policy_seeds(indices: torch.Tensor, seed: int, epoch: int) -> list[int]:
    """The seeds under which `apply_policy` treats the images at `indices` of a split in one epoch."""
    return [seed_of("policy", seed, epoch, int(index)) for index in indices]


def apply_policy(images: torch.Tensor, policy: str, seeds: list[int]) -> torch.Tensor:
    """A torchvision policy on uint8 images (B, C, H, W), each under its own seed; "none" changes nothing.

    Seeds only the CPU generator, whose state is put back.
    """
    if policy == "none":
        return images
    from pellucid.core.vision import torchvision

    torchvision()
    from torchvision.transforms import v2

    small = max(images.shape[2:]) <= 64
    auto = v2.AutoAugmentPolicy.CIFAR10 if small else v2.AutoAugmentPolicy.IMAGENET
    transform = {
        "trivial": v2.TrivialAugmentWide,
        "rand": v2.RandAugment,
        "auto": lambda: v2.AutoAugment(auto),
    }[policy]()
    out = torch.empty_like(images)
    with torch.random.fork_rng(devices=[]):
        for row, image, seed in zip(out, images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            row.copy_(transform(image))
    return out


def mix(
    images: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    seed: int,
    epoch: int,
    step: int,
    total: int,
    first: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (https://arxiv.org/abs/1710.09412) and CutMix (https://arxiv.org/abs/1905.04899) of neighbours.

    images (B, C, H, W), float, and labels (B,) are items first .. first+B-1 of a global batch of `total`
    (`Batch.first`, `Batch.total`). Items 2j and 2j+1 are each other's partners: in a shuffled order that is
    as random as a permutation, and an even share needs no other process; an odd last item stays as it is.
    `mixup` and `cutmix` are the two parameters of the symmetric Beta distribution of a pair's weight, 0 is
    off; with both on, a pair gets either with probability 1/2. A pasted rectangle counts by the exact
    fraction of pixels it covers after clipping.

    Returns new images and targets (B, num_classes), rows summing to one, of the images' type. `InputError`
    for a negative parameter or for a share that parts a pair.
    """
    if mixup < 0 or cutmix < 0:
        raise InputError(f"mixup {mixup:g} and cutmix {cutmix:g} cannot be negative; 0 turns them off")
    targets = torch.nn.functional.one_hot(labels, num_classes).to(images.dtype)
    if not (mixup or cutmix):
        return images, targets
    count, _, height, width = images.shape
    if first % 2 or (count % 2 and first + count != total):
        raise InputError(
            f"mixup and cutmix join neighbours, and a share of {count} of {total} images from number {first} on "
            "parts a pair; choose a batch size that gives every process an even number"
        )

    rng = np.random.default_rng(seed_of("mix", seed, epoch, step))
    pairs = (total + 1) // 2
    paste = rng.random(pairs) < 0.5 if mixup and cutmix else np.full(pairs, bool(cutmix))
    weight = np.where(paste, rng.beta(cutmix or 1, cutmix or 1, pairs), rng.beta(mixup or 1, mixup or 1, pairs))
    side = np.sqrt(1 - weight)
    tall, wide = (side * height).astype(int), (side * width).astype(int)
    top = rng.integers(0, height, pairs) - tall // 2
    left = rng.integers(0, width, pairs) - wide // 2
    edges = np.stack([top, top + tall, left, left + wide]).clip(0, [[height], [height], [width], [width]])
    edges *= paste
    area = (edges[1] - edges[0]) * (edges[3] - edges[2])
    blend = np.where(paste, 1.0, weight)
    share = np.where(paste, 1 - area / (height * width), weight)

    item = torch.arange(count)
    pair = (first + item) // 2
    partner = (item ^ 1).clamp(max=count - 1)
    box = send(torch.from_numpy(edges)[:, pair], images.device)
    blend_, share_ = send(torch.from_numpy(np.stack([blend, share])).to(images.dtype)[:, pair], images.device)
    partner = send(partner, images.device)
    other = images[partner]
    mixed = torch.where(_box(images, *box.unbind(0)), other, other.lerp(images, blend_.view(-1, 1, 1, 1)))
    return mixed, targets[partner].lerp(targets, share_[:, None])
