"""The command `visualize`.

Nothing heavy is imported until it runs."""

from __future__ import annotations

import json as json_
import shlex
from pathlib import Path

from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings


def visualize(
    checkpoint: str,
    images: str | None = None,
    /,
    *,
    out: str,
    source: SourceSettings,
    layer: str | None = None,
    count: int = 64,
    device: str = "auto",
    seed: int = 0,
    json: bool = False,
) -> int:
    """Draw what each sparse-coding layer keeps of images, its residuals, its atoms, and where each atom is used most.

    In a network without such layers, images are searched for on which each part's output is the same.
    Writes overview.png, visualize.json, and for each layer LAYER-reconstruction.png, LAYER-atoms.png, LAYER-uses.png.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model), or the name of an
            architecture (resnet18, timm:resnet18), which is built with random weights.
        images: a folder of image files, or data as in --data; default the test images of the model's own data.
        out: folder that the pictures are written to.
        layer: dotted name of one sparse-coding layer; default all. Of a network without any: of any layer.
        count: most images that are read; drawn by seed.
        device: auto, cpu, cuda, ...
        seed: of the sample, and of an architecture's weights.
        json: print the numbers as JSON instead of a table.
    """
    from pellucid.core import terminal
    from pellucid.core.data.augment import normalize
    from pellucid.core.measure.fits import normalization
    from pellucid.views.gallery import open_gallery
    from pellucid.views.sheets import numbers_of
    from pellucid.views.visualize import visualize as look

    if count < 2:
        raise InputError(f"--count {count} must be at least 2: an image is compared with another.")
    if Path(out).exists() and not Path(out).is_dir():
        raise InputError(f"--out {out!r} is a file: name a folder.")
    found, pixels = open_gallery(checkpoint, images, source, count=count, device=device, seed=seed)
    from pellucid.core.facts import declare

    norm = normalization(found.model, found.dataset)
    declare(found.model, normalization=norm)
    seen = look(found.model, normalize(pixels, norm.mean, norm.std).to(found.device), layer)
    names = seen.save(out)
    numbers = {name: numbers_of(view) for name, view in seen.layers.items()}
    if json:
        terminal.say(json_.dumps({"images": len(seen.images), "layers": numbers, "files": names}))
        return 0
    rows = [
        [
            name,
            *(terminal.percent(row[key]) for key in ("density", "residual", "error", "control")),
            row["unused_atoms"],
        ]
        for name, row in numbers.items()
    ]
    headers = ["layer", "entries not 0", "residual", "lost of the images", "control", "unused atoms"]
    terminal.show(f"{found.title}: {len(seen.images)} images", headers, rows)
    terminal.say("Lost: variance that the reconstruction from the code lacks. Control: that of another image.")
    terminal.say(f"Wrote {len(names)} files: {Path(out) / 'overview.png'} first")
    terminal.say(f"Next: {shlex.join(['pellucid', 'open', checkpoint, *source.flags()])}")
    return 0
