"""Mixup and CutMix of neighbouring images."""

from __future__ import annotations

import numpy as np
import torch

from pellucid.core.data.augment import box_mask, send
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of


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

    Items 2j and 2j+1 of the global batch are each other's partners: in a shuffled order this is as random as a
    permutation, and a process with an even number of images needs no other process. An odd last item is not mixed. With
    both methods on, a pair gets either with probability 1/2. A pasted rectangle counts by the exact fraction of pixels
    that it covers after clipping.

    Args:
        images: (B, C, H, W), float; items first .. first+B-1 of a global batch of `total`, as in `Batch`.
        labels: (B,).
        num_classes: K.
        mixup, cutmix: parameter of the symmetric Beta distribution of a pair's weight; 0 turns the method off.
        seed, epoch, step: what the draws are a function of.
        total, first: see `images`.

    Returns:
        New images, and targets (B, K) of the images' type whose rows sum to one.

    Raises:
        InputError: a negative parameter, or a part of the batch that separates a pair.
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
    mixed = torch.where(box_mask(images, *box.unbind(0)), other, other.lerp(images, blend_.view(-1, 1, 1, 1)))
    return mixed, targets[partner].lerp(targets, share_[:, None])
