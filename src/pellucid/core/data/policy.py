"""Augmentation policies of torchvision, applied image by image, each with its own seed."""

from __future__ import annotations

import torch

from pellucid.core.seeds import seed_of

POLICIES = ("none", "trivial", "rand", "auto")


def policy_seeds(indices: torch.Tensor, seed: int, epoch: int) -> list[int]:
    """The seeds for `apply_policy` of the images at `indices` of a split in one epoch."""
    return [seed_of("policy", seed, epoch, int(index)) for index in indices]


def apply_policy(images: torch.Tensor, policy: str, seeds: list[int]) -> torch.Tensor:
    """Apply a torchvision policy to uint8 images (B, C, H, W), each with its own seed; "none" changes nothing.

    Only the CPU's generator is seeded, and its state is restored.
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
