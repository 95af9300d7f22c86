"""The images to visualize: of a data set, or loose files in a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pellucid.core.data.pictures import centre_view, decode, suffixes
from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings
from pellucid.core.seeds import seed_of
from pellucid.core.source import Source, open_source


def open_gallery(
    checkpoint: str, images: str | None, settings: SourceSettings, *, count: int, device: str, seed: int
) -> tuple[Source, Tensor]:
    """Open the network, its data, and at most `count` images, uint8 (N, C, H, W) of the data's size.

    Args:
        checkpoint, settings, device, seed: as in `core.source.open_source`.
        images: a folder of image files, of which the centre squares are taken, resized to the model's image size, in
            the order of their names; or the name of data as in `load_data`, whose test images are taken; None for the
            test images of `settings.data`, or of the run's own data.
        count: maximum number of images; those of a data set are sampled by seed.

    Raises:
        InputError: nothing there, files that are not images, or images with another number of channels.
    """
    loose = Path(images) if images is not None and Path(images).is_dir() else None
    files = [] if loose is None else sorted(file for file in loose.iterdir() if file.suffix.lower() in suffixes())
    if images is not None and not files:
        if settings.data is not None:
            raise InputError(f"{images!r} and --data {settings.data!r} both name data: leave out one of them.")
        settings = replace(settings, data=images if loose is None else f"folder:{images}")
    source = open_source(checkpoint, settings, device=device, seed=seed)
    if not files:
        test = source.dataset.test
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed_of("visualize", seed)))
        return source, test.fetch(order[:count].sort().values)
    height, width = source.dataset.image_size
    if height != width:
        raise InputError(
            f"Image files are cropped to squares, but the model takes {height}x{width}: name data instead."
        )
    views = [centre_view(decode(file, source.dataset.channels), height, height) for file in files[:count]]
    return source, torch.from_numpy(np.stack(views))
