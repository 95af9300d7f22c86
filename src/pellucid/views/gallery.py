"""The images to look at: of a data set, or loose files in a folder."""

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
    """The model, its data, and at most `count` images, uint8 (N, C, H, W) of the data's size.

    Args:
        images: a folder with image files in it; else data as in `data.load`, or None, whose test images are meant.
            Of a folder the centre squares are taken, at the model's size, in the order of their names.

    Raises:
        InputError: nothing there, files that are no images, or images of another number of channels.
    """
    loose = Path(images) if images is not None and Path(images).is_dir() else None
    files = [] if loose is None else sorted(file for file in loose.iterdir() if file.suffix.lower() in suffixes())
    if images is not None and not files:
        if settings.data is not None:
            raise InputError(f"{images!r} and --data {settings.data!r} both name data: leave one of them out.")
        settings = replace(settings, data=images if loose is None else f"folder:{images}")
    source = open_source(checkpoint, settings, device=device, seed=seed)
    if not files:
        test = source.dataset.test
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed_of("visualize", seed)))
        return source, test.fetch(order[:count].sort().values)
    height, width = source.dataset.image_size
    if height != width:
        raise InputError(f"Loose images are cut square, but the model is for {height}x{width}: name data instead.")
    views = [centre_view(decode(file, source.dataset.channels), height, height) for file in files[:count]]
    return source, torch.from_numpy(np.stack(views))
