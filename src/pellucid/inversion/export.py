"""Inverted images as files: one PNG per image, one grid of all, and a record of how they were made."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.core.files.atomic import write_together
from pellucid.core.files.ours import png_text

GRID = 100  # maximum number of images in the grid


def quantized(images: Tensor) -> Tensor:
    """Images in [0, 1], rounded as a file with 8 bits per channel stores them."""
    return (255 * images.clamp(0, 1)).round() / 255


def file_name(label: str, number: int, seed: int) -> str:
    """`7_00012_seed0.png`: class, image number, seed; unusual characters of a class name become `-`."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', label)[:60] or 'class'}_{number:05d}_seed{seed}.png"


def write(
    folder: Path,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    classes: Sequence[str],
    seed: int,
    record: dict[str, Any],
) -> list[str]:
    """Write images (B, C, H, W) in [0, 1], `grid.png`, and `invert.json` with `record`; the images' file names."""
    pairs = zip(labels.tolist(), numbers.tolist(), strict=True)
    names = [file_name(classes[label], number, seed) for label, number in pairs]
    order = torch.argsort(labels, stable=True)[:GRID]
    write_together(
        {
            **{folder / name: png(image) for name, image in zip(names, images, strict=True)},
            folder / "grid.png": png(grid(images[order])),
            folder / "invert.json": json.dumps({**record, "files": names}, indent=1) + "\n",
        }
    )
    return names


def grid(images: Tensor) -> Tensor:
    """Images (B, C, H, W) with grey lines between them, in one picture (C, H', W') about as wide as high."""
    count = len(images)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shown = F.pad(images, (0, 1, 0, 1), value=0.5)
    shown = torch.cat([shown, shown.new_full((rows * columns - count, *shown.shape[1:]), 0.5)])
    _, c, h, w = shown.shape
    whole = shown.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
    return F.pad(whole, (1, 0, 1, 0), value=0.5)


def png(image: Tensor) -> bytes:
    """An image (C, H, W) in [0, 1] as PNG; of other than 1 or 3 channels, the mean is drawn."""
    from PIL import Image

    if image.shape[0] not in (1, 3):
        image = image.mean(0, keepdim=True)
    pixels = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    output = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(output, "PNG", pnginfo=png_text("invert"))
    return output.getvalue()
