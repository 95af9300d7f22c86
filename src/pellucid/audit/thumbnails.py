"""Thumbnails for the page: images shrunk, encoded, and kept while the page has room for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import numpy as np
from torch import Tensor, nn

from pellucid.audit.vocabulary import Picture, Section, Strip

SIDE = 96  # pixels; larger images are shrunk to this
ROOM = 6 * 2**20  # bytes of all encoded thumbnails of a page, which then stays under about 10 MB


def thumbnail(image: Tensor) -> np.ndarray:
    """An image (C, H, W) in [0, 1] as uint8 (H, W, 1 or 3), shrunk to at most 96 pixels a side."""
    channels, height, width = image.shape
    if channels not in (1, 3):
        image = image.mean(0, keepdim=True)
    scale = SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        image = nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    return (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()


class Thumbnails:
    """Pictures as data URIs, first come, first served until `room` bytes are used up.

    Attributes:
        left_out: pictures that found no room.
    """

    def __init__(self, room: int = ROOM) -> None:
        self.room, self.left_out = room, 0
        self._sources: dict[int, str] = {}

    def offer(self, sections: Iterable[Section]) -> None:
        """Encode the pictures of `sections` while there is room."""
        for section in sections:
            for block in section.blocks:
                for shown in block.pictures if isinstance(block, Strip) else ():
                    self._add(shown)

    def _add(self, shown: Picture) -> None:
        source = data_uri(shown.image)
        if len(source) <= self.room:
            self.room -= len(source)
            self._sources[id(shown)] = source
        else:
            self.room, self.left_out = 0, self.left_out + 1

    def source(self, shown: Picture) -> str | None:
        """The data URI of a picture, None if it was left out."""
        return self._sources.get(id(shown))


def data_uri(image: np.ndarray) -> str:
    """A picture, uint8 (H, W), (H, W, 1) or (H, W, 3), as a data URI: PNG up to 64 pixels a side, JPEG above."""
    from PIL import Image

    exact = max(image.shape[:2]) <= 64
    output = io.BytesIO()
    pixels = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    pixels.save(output, "PNG" if exact else "JPEG", optimize=True, **({} if exact else {"quality": 85}))
    return f"data:image/{'png' if exact else 'jpeg'};base64,{base64.b64encode(output.getvalue()).decode()}"
