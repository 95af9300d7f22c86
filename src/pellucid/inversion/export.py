"""Inverted images as files: one PNG an image, one of all, and what they were made with."""

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

from pellucid.core.files.atomic import write_atomic

GRID = 100  # most images on the picture of all


def quantized(images: Tensor) -> Tensor:
    """Images in [0, 1] as a file of 8 bits holds them, again in [0, 1]."""
    return (255 * images.clamp(0, 1)).round() / 255


def file_name(label: str, number: int, seed: int) -> str:
    """`7_00012_seed0.png`: class, number of the image, seed; what is odd in a class's name becomes `-`."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', label)[:60] or 'class'}_{number:05d}_seed{seed}.png"


def write(
    folder: Path,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    classes: Sequence[str],
    seed: int,
    facts: dict[str, Any],
) -> list[str]:
    """Write images (B, C, H, W) in [0, 1], `grid.png` and `invert.json` with `facts`; the names of the images."""
    names = []
    for image, label, number in zip(images, labels.tolist(), numbers.tolist(), strict=True):
        names.append(file_name(classes[label], number, seed))
        write_atomic(folder / names[-1], png(image))
    order = torch.argsort(labels, stable=True)[:GRID]
    write_atomic(folder / "grid.png", png(grid(images[order])))
    write_atomic(folder / "invert.json", json.dumps({**facts, "files": names}, indent=1) + "\n")
    return names


def grid(images: Tensor) -> Tensor:
    """Images (B, C, H, W) side by side with a grey line between, in a picture (C, H', W') about as wide as high."""
    count = len(images)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shown = F.pad(images, (0, 1, 0, 1), value=0.5)
    shown = torch.cat([shown, shown.new_full((rows * columns - count, *shown.shape[1:]), 0.5)])
    _, c, h, w = shown.shape
    whole = shown.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
    return F.pad(whole, (1, 0, 1, 0), value=0.5)


def png(image: Tensor) -> bytes:
    """An image (C, H, W) in [0, 1] as a PNG; with other than 1 or 3 channels, their mean."""
    from PIL import Image

    if image.shape[0] not in (1, 3):
        image = image.mean(0, keepdim=True)
    pixels = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    output = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(output, "PNG")
    return output.getvalue()
