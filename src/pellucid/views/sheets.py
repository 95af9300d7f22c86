"""Sheets of pictures, as PNG files: inputs, reconstructions, residuals, atoms and where they are used."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization
from pellucid.core.files.atomic import write_together
from pellucid.core.files.ours import png_text

if TYPE_CHECKING:
    from PIL import Image

    from pellucid.views.view import View

SHOWN = 8  # images per row
TILE = 64  # pixels; smaller pictures are enlarged to about this
ROWS = 32  # atoms whose uses are shown
PAPER = 255


def save(images: Tensor, layers: Mapping[str, View], normalization: Normalization | None, folder: str) -> list[str]:
    """Write overview.png, visualize.json, and per layer LAYER-reconstruction.png, LAYER-atoms.png and LAYER-uses.png.

    Args:
        images: (N, C, H, W), normalised.
        layers: the `View` of each layer by name.
        normalization: of the images; None to draw the range of their values.
        folder: to write to.

    Returns:
        The names of the files written.

    Raises:
        InputError: images that are not (N, C, H, W).
    """
    if images.dim() != 4:
        raise InputError("Only images with two axes, (N, C, H, W), can be drawn.")
    span = (float(images.min()), float(images.max()))
    pixels = _pixels(images, normalization, span)
    content: dict[str, bytes] = {}
    rows = [_tiles(pixels[:SHOWN])]
    titles = ["input"]
    for name, view in layers.items():
        made = None if view.reconstruction is None else _pixels(view.reconstruction[:SHOWN], normalization, span)
        residual = _residuals(view.residual[:SHOWN], tuple(pixels.shape[2:]))
        own = [_tiles(pixels[:SHOWN]), *([] if made is None else [_tiles(made)]), _tiles(residual)]
        labels = ["input", *([] if made is None else ["from the code"]), "residual"]
        content[f"{name}-reconstruction.png"] = _sheet(own, labels)
        if made is not None:
            rows.append(_tiles(made))
            titles.append(name)
        if view.atoms is not None:
            content[f"{name}-atoms.png"] = _sheet(_grid(_atoms(view.atoms, view.field)))
        content[f"{name}-uses.png"] = _uses(view, pixels)
    content = {"overview.png": _sheet(rows, titles), **content}
    numbers = {name: numbers_of(view) for name, view in layers.items()}
    content["visualize.json"] = (json.dumps({"images": len(images), "layers": numbers}, indent=1) + "\n").encode()
    write_together({Path(folder) / name: data for name, data in content.items()})
    return list(content)


def numbers_of(view: View) -> dict[str, Any]:
    """The numbers of a view, as JSON values."""
    return {
        "density": view.density,
        "residual": view.residual_share,
        "error": view.error,
        "control": view.control,
        "unused_atoms": int((view.used == 0).sum()),
        "field": view.field,
    }


def _pixels(images: Tensor, normalization: Normalization | None, span: tuple[float, float]) -> Tensor:
    """Normalised images as pixels in [0, 1]; without a known normalisation, `span` becomes [0, 1]."""
    images = images.float().cpu()
    if normalization is not None:
        images = normalization.undo(images)
    else:
        images = (images - span[0]) / max(span[1] - span[0], 1e-12)
    return images.clamp(0, 1)


def _atoms(atoms: Tensor, field: int) -> list[Tensor]:
    """Each atom around grey, scaled by its largest value; whole images are cropped to what the atom can reach."""
    atoms = atoms.float().cpu()
    tall, wide = (min(field, n) for n in atoms.shape[2:])
    top, left = (atoms.shape[2] - tall) // 2, (atoms.shape[3] - wide) // 2
    atoms = atoms[:, :, top : top + tall, left : left + wide]
    largest = atoms.abs().flatten(1).amax(1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
    return _tiles(0.5 + 0.5 * atoms / largest)


def _residuals(residual: Tensor, size: tuple[int, ...]) -> Tensor:
    """Dark where a layer's code explains its input fully; on one scale for all images."""
    residual = residual.float().cpu()[:, None]
    residual = residual / residual.amax().clamp_min(1e-12)
    return torch.nn.functional.interpolate(residual, size=size, mode="nearest")


def _uses(view: View, pixels: Tensor) -> bytes:
    """One row per atom: the parts of images where its entries are largest."""
    height, width = pixels.shape[2:]
    side = tuple(min(max(view.field, 3), n) for n in (height, width))
    rows = []
    for images, places in zip(view.images[:ROWS].tolist(), view.places[:ROWS].tolist(), strict=True):
        row = []
        for image, place in zip(images, places, strict=True):
            corner = []
            for n, at, places_along, part in zip(
                (height, width), divmod(place, view.shape[1]), view.shape, side, strict=True
            ):
                middle = (at + 0.5) * n / places_along
                corner.append(min(max(0, round(middle - part / 2)), n - part))
            row.append(pixels[image, :, corner[0] : corner[0] + side[0], corner[1] : corner[1] + side[1]])
        rows.append(row)
    labels = [f"atom {number}" for number in view.order[:ROWS].tolist()]
    return _sheet(rows, labels)


def _tiles(images: Tensor) -> list[Tensor]:
    return list(images)


def _grid(tiles: list[Tensor]) -> list[list[Tensor]]:
    return [tiles[place : place + SHOWN] for place in range(0, len(tiles), SHOWN)]


def _picture(image: Tensor) -> Image.Image:
    """One image (C, H, W) in [0, 1], enlarged to about the size of a tile, without smoothing."""
    from PIL import Image

    image = image if image.shape[0] in (1, 3) else image.mean(0, keepdim=True)
    pixels = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    made = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    times = max(1, round(TILE / max(made.size)))
    return made.resize((made.width * times, made.height * times), Image.Resampling.NEAREST)


def _sheet(rows: list[list[Tensor]], labels: list[str] | None = None) -> bytes:
    """Rows of pictures, each with its label on the left, as a PNG."""
    from PIL import Image, ImageDraw

    pictures = [[_picture(image) for image in row] for row in rows]
    margin, gap = (8 + 7 * max(map(len, labels)) if labels else 4), 4
    width = margin + max(sum(one.width + gap for one in row) for row in pictures)
    heights = [max(one.height for one in row) + gap for row in pictures]
    sheet = Image.new("RGB", (width, gap + sum(heights)), (PAPER,) * 3)
    draw = ImageDraw.Draw(sheet)
    y = gap
    for number, (row, height) in enumerate(zip(pictures, heights, strict=True)):
        if labels:
            draw.text((4, y + height // 2 - 8), labels[number], fill=(0, 0, 0))
        x = margin
        for one in row:
            sheet.paste(one, (x, y))
            x += one.width + gap
        y += height
    output = io.BytesIO()
    sheet.save(output, "PNG", optimize=True, pnginfo=png_text("visualize"))
    return output.getvalue()
