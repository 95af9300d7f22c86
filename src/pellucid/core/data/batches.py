"""Batches of a split: which images, in which order, in which process, all a function of (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from pellucid.core.data.augment import Augment, normalize, send
from pellucid.core.data.policy import apply_policy, policy_seeds
from pellucid.core.data.splits import Split
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

LARGEST_BATCH = 512
PIXELS = 2**20  # of the images in a step


@dataclass(frozen=True)
class Batch:
    """One process's part of a global batch, on the device.

    Attributes:
        images: float32 (B, C, H, W), normalised.
        labels: int64 (B,).
        indices: int64 (B,), positions in the split.
        step: number of the global batch in its epoch.
        first: position of this part's first image in the global batch.
        total: images of the global batch, over all processes.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    step: int = 0
    first: int = 0
    total: int = 0


def usual_batch(image_size: tuple[int, int], world: int = 1) -> int:
    """Images per step where nothing is said: 512, or fewer, a multiple of `world`, where images are large.

    With a million pixels in a step, an ImageNet network needs a few hundred megabytes.
    """
    size = max(world, min(LARGEST_BATCH, PIXELS // (image_size[0] * image_size[1])))
    return size - size % world


def steps_per_epoch(n: int, batch_size: int, drop_last: bool = False) -> int:
    """Number of global batches in one pass over `n` images; an incomplete last one counts unless `drop_last`."""
    return n // batch_size if drop_last else -(-n // batch_size)


def batches(
    split: Split,
    batch_size: int,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: str | torch.device = "cpu",
    shuffle: bool = False,
    augment: Augment | None = None,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    drop_last: bool = False,
    workers: int = 0,
    channels_last: bool = False,
) -> Iterator[Batch]:
    """Make one pass over `split`, normalised by `mean` and `std` per channel (of pixels in [0, 1]).

    `batch_size` is global: of every batch, process `rank` of `world` gets the images [rank * b, (rank + 1) * b) with
    b = batch_size // world. The order depends on (seed, epoch), a batch's draws on (seed, epoch, step), and both are
    made for the whole batch before a process takes its part. Hence the union over the processes is the same for every
    `world`, and `start=k` continues from step k exactly as an uninterrupted pass would.

    Without `drop_last` every image comes exactly once; the last batch may be short, and a process whose part of it is
    empty gets no batch. `workers` processes decode a streamed split. No global random state is read or advanced.

    Raises:
        InputError: at the call, for arguments that do not fit each other or the images.
    """
    if batch_size < 1 or world < 1 or batch_size % world:
        raise InputError(
            f"a batch size of {batch_size} cannot be split evenly over {world} processes; give a multiple of {world}"
        )
    if not 0 <= rank < world:
        raise InputError(f"process {rank} of {world} does not exist; ranks run from 0 to {world - 1}")
    if start < 0 or workers < 0:
        raise InputError(f"start is {start} and workers is {workers}; neither can be negative")
    if len(mean) != split.channels or len(std) != split.channels:
        raise InputError(
            f"the normalisation has {len(mean)} means and {len(std)} deviations, the images {split.channels} channels"
        )
    batched = augment
    if augment is not None and split.streamed:
        # Streamed images arrive cropped and with the policy applied: workers do what works image by image.
        batched = replace(augment, crop=0, policy="none")
    if batched is not None:
        batched.check(split.image_size)
    steps = steps_per_epoch(len(split), batch_size, drop_last)
    if not steps:
        raise InputError(f"{len(split)} images do not fill one batch of {batch_size}; give a smaller batch size")

    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    order = torch.arange(len(split))
    if shuffle:
        rng = np.random.default_rng(seed_of("order", seed, epoch))
        order = torch.from_numpy(rng.permutation(len(split)))
    first, share = rank * (batch_size // world), batch_size // world
    spans = [
        (step, begin, min(begin + share, len(split)))
        for step in range(start, steps)
        if (begin := step * batch_size + first) < len(split)
    ]

    def run() -> Iterator[Batch]:
        labels, indices = split.labels.to(device), order.to(device)
        chunks = [order[begin:end] for _, begin, end in spans]
        read = split.read(chunks, device=device, augment=augment, seed=seed, epoch=epoch, workers=workers)
        for (step, begin, end), chunk, pixels in zip(spans, chunks, read, strict=True):
            total = min(batch_size, len(split) - step * batch_size)
            if batched is None:
                images = normalize(pixels, mean, std, channels_last=channels_last)
            else:
                draws = batched.draw(total, split.image_size, seed=seed, epoch=epoch, step=step)
                draws = send(draws[first : first + len(chunk)], device)
                pixels = batched.move(pixels, draws)
                pixels = apply_policy(pixels, batched.policy, policy_seeds(chunk, seed, epoch))
                images = batched.erase(normalize(pixels, mean, std, channels_last=channels_last), draws)
            own = indices[begin:end]
            yield Batch(images, labels[own], own, step, first, total)

    return run()
