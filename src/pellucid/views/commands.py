"""The command `visualize`.

Nothing heavy is imported until it runs.
"""

from __future__ import annotations

import json as json_
import shlex
from pathlib import Path
from typing import Annotated

from pellucid.core.flags import ClassedSettings
from pellucid.core.ranges import LARGE, Count, Range, Seed

KINDS = ("reconstruction", "atoms", "uses")  # of pictures of a layer: LAYER-KIND.png


def visualize(
    checkpoint: str,
    images: str | None = None,
    /,
    *,
    out: str,
    source: ClassedSettings,
    layer: str | None = None,
    max_images: Annotated[int, Range(2, LARGE)] = 64,
    batch_size: Count = 256,
    device: str = "auto",
    seed: Seed = 0,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Draw what each sparse-coding layer keeps of images, its residuals, its atoms, and where each atom is used most.

    In a network without such layers, images are optimised until the output of a layer is the same.
    Writes overview.png, visualize.json, and per layer LAYER-reconstruction.png, LAYER-atoms.png and LAYER-uses.png.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint as MODEL=FILE (or FILE with --model), or the name
            of an architecture (resnet18, timm:resnet18), which is built with random weights.
        images: a folder of image files, or data as in --data; default the test images of the model's own data.
        out: folder that the pictures are written to.
        layer: dotted name of one sparse-coding layer; default all. In a network without any, the name of any layer;
            default each direct child of the network.
        max_images: maximum number of images; those of a data set are sampled with --seed.
        batch_size: images per forward pass.
        device: auto, cpu, cuda, ...
        seed: of the sample, and of an architecture's weights.
        overwrite: replace files at --out that this command did not write.
        json: print the numbers as JSON and nothing else.
        quiet: print nothing but errors.
    """
    from pellucid.core import terminal
    from pellucid.core.data.augment import normalize
    from pellucid.core.files.ours import check_outputs, holds, outputs, picture_of
    from pellucid.core.measure.fits import normalization
    from pellucid.views.gallery import open_gallery
    from pellucid.views.sheets import numbers_of
    from pellucid.views.visualize import visualize as view_layers

    files = {"overview.png": picture_of("visualize"), "visualize.json": holds("images", "layers")}
    # Which layers there are is only known later, so any of their pictures counts.
    for kind in KINDS if Path(out).is_dir() else ():
        files |= {path.name: picture_of("visualize") for path in sorted(Path(out).glob(f"*-{kind}.png"))}
    check_outputs(outputs(out, files), overwrite, command="visualize", sources=[checkpoint, images, source.data])
    found, pixels = open_gallery(checkpoint, images, source, count=max_images, device=device, seed=seed)
    if not (json or quiet):
        terminal.assumed(found.assumed)
    norm = normalization(found.model, found.dataset)
    x = normalize(pixels, norm.mean, norm.std).to(found.device)
    seen = view_layers(found.model, x, layer, normalization=norm, batch_size=batch_size)
    names = seen.save(out)
    numbers = {name: numbers_of(view) for name, view in seen.layers.items()}
    if json:
        about = {"images": len(seen.images), "assumed": list(found.assumed)}
        print(json_.dumps({**about, "layers": numbers, "files": names}))
    if json or quiet:
        return 0
    rows = [
        [
            name,
            *(terminal.percent(row[key]) for key in ("density", "residual", "error", "control")),
            row["unused_atoms"],
        ]
        for name, row in numbers.items()
    ]
    headers = ["layer", "density", "residual", "lost variance", "control", "unused atoms"]
    terminal.show(f"{found.title}: {len(seen.images)} images", headers, rows)
    terminal.say(
        "Density: non-zero entries of the code. Residual: energy of the input that the code leaves unexplained."
    )
    terminal.say(
        "Lost variance: of the images, in the reconstruction from the code. Control: from another image's code."
    )
    terminal.say(f"Wrote {len(names)} files: {Path(out) / 'overview.png'} first")
    flags = source.flags()
    if found.run is None and source.data is None:
        flags += ["--data", found.dataset.name]
    terminal.say(f"Next: {shlex.join(['pellucid', 'open', checkpoint, *flags])}")
    return 0
