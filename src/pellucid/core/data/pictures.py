"""One image file: what its header says, its pixels in 8 bits, and the views that networks get."""

from __future__ import annotations

import contextlib
import math
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pellucid.core.errors import InputError, first_line
from pellucid.core.files.structured import check_regular

if TYPE_CHECKING:
    from PIL import Image

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
COMMON = frozenset({"JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"})
MOST_PIXELS = 2**26  # of one image; decoding takes up to eight bytes per pixel
HUGE = 2**22  # pixels; such images are decoded one at a time
ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 swap width and height


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """The formats that are opened, common ones first, since Pillow tries them in turn.

    These are all that Pillow reads except PostScript, for which it would run an interpreter on untrusted programs.
    """
    from PIL import Image

    Image.init()
    return tuple(sorted((kind for kind in Image.ID if kind != "EPS"), key=lambda kind: kind not in COMMON))


def suffixes() -> frozenset[str]:
    """The lower-case file endings of these formats, with their dot."""
    from PIL import Image

    known = formats()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in known)


def probe(path: Path) -> tuple[int, int, bool]:
    """(height, width, is grey) from the header, after the EXIF orientation is applied."""
    from PIL import Image

    check_regular(path)
    try:
        with Image.open(path, formats=formats()) as image:
            width, height = image.size
            _check_size(width, height)
            # Pillow would decode a whole PNG to look for an orientation that the header does not announce.
            silent = image.format == "PNG" and "exif" not in image.info
            turned = not silent and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            return (width, height, image.mode in GREY_MODES) if turned else (height, width, image.mode in GREY_MODES)
    except Exception as error:
        raise _unreadable(path, error) from error


def decode(path: Path, channels: int) -> Image.Image:
    """Decode an image upright, in mode L (`channels` 1) or RGB (3).

    16-bit grey is scaled to 8 bits, palettes are looked up, transparency is dropped.

    Raises:
        InputError: the file is truncated, not an image, or beyond Pillow's limit on pixels.
    """
    from PIL import Image

    check_regular(path)
    try:
        with Image.open(path, formats=formats()) as opened:
            _check_size(*opened.size)
            with _one_at_a_time if opened.width * opened.height > HUGE else contextlib.nullcontext():
                return _decoded(opened, channels)
    except Exception as error:
        raise _unreadable(path, error) from error


_one_at_a_time = threading.Lock()


def _decoded(image: Image.Image, channels: int) -> Image.Image:
    from PIL import Image, ImageOps

    image.load()
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"its {width}x{height} pixels are more than the {MOST_PIXELS} that are decoded")


def _unreadable(path: Path, error: Exception) -> InputError:
    """Pillow's format plugins raise exceptions of any type on damaged files; the user needs one sentence."""
    reason = first_line(error)
    return InputError(f"{path} is not a readable image ({reason}); repair or remove it")


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Integers 0..65535 scaled and rounded to 0..255."""
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("its pixels are neither 8 nor 16 bit integers")
    out = np.empty(pixels.shape, dtype=np.uint8)
    for row, wide in zip(out, pixels, strict=True):  # row by row, in little memory
        row[...] = (wide.astype(np.uint32) * 255 + 32767) // 65535
    return out


def centre_view(image: Image.Image, side: int, resized: int) -> np.ndarray:
    """The central `side` x `side` pixels after resizing the shorter side to `resized`: uint8 (C, S, S).

    Only the central square of the source is resampled, so a long thin image costs no more than others.
    """
    width, height = image.size
    extent = min(width, height) * side / resized
    left, top = (width - extent) / 2, (height - extent) / 2
    return _view(image, side, (left, top, left + extent, top + extent))


def random_view(image: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of the image at `side` x `side`: uint8 (C, S, S).

    Area 8 to 100 % of the image, aspect ratio 3/4 to 4/3 (uniform in its logarithm), after Szegedy et al. 2015
    (https://arxiv.org/abs/1409.4842); after ten failed draws, the largest central part within those ratios.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return _view(image, side, (left, top, left + w, top + h))
    wide, tall = min(width, height * 4 / 3), min(height, width * 4 / 3)
    x, y = (width - wide) / 2, (height - tall) / 2
    return _view(image, side, (x, y, x + wide, y + tall))


def whole_view(image: Image.Image) -> np.ndarray:
    """All pixels: uint8 (C, H, W)."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _view(image: Image.Image, side: int, box: tuple[float, float, float, float]) -> np.ndarray:
    from PIL import Image

    return whole_view(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
