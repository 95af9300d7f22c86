"""The command `pellucid export`."""

from __future__ import annotations

import json as json_
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pellucid.core.commands.changes import images_of, show_changes, to_json
from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings
from pellucid.core.ranges import Channels, Classes, Count, Positive, Range, Seed

if TYPE_CHECKING:
    from pellucid.core.network.export.export import Exported


def export(
    checkpoint: str,
    /,
    *,
    out: str,
    to: Literal["onnx", "pt2"] | None = None,
    fold: bool = True,
    opset: Annotated[int, Range(18, 23)] = 18,
    fixed_batch: Annotated[int, Range(1, 4096)] | None = None,
    source: SourceSettings,
    max_images: Count = 64,
    batch_size: Count = 64,
    tolerance: Positive = 1e-4,
    num_classes: Classes | None = None,
    in_channels: Channels | None = None,
    device: str = "cpu",
    seed: Seed = 0,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Write a network as ONNX or as a torch.export program, and check that the file computes the same.

    Whitening, masks and batch norm are first folded into plain convolutions. The file is run by onnxruntime or by
    torch, in batches of 1, 2, 3 and --batch-size images; if its outputs differ from the network's, nothing is written.
    It also holds the classes, the normalisation and the image size, and the other commands open it.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model, or as MODEL=FILE),
            or an architecture (resnet18, timm:resnet18), which gets random weights.
        out: file to write.
        to: format; default what --out ends in.
        fold: fold first.
        opset: version of ONNX's operators.
        fixed_batch: number of images that the file takes at a time; default any.
        data: test images to compare with; digits, cifar10[:PATH], cifar100[:PATH], folder:PATH or npz:PATH; default the
            run's own data, or else random pixels.
        image_size: side in pixels of the images that the file takes; default the size that the network, or the library
            it comes from, states.
        max_images: maximum number of images to compare, sampled with --seed.
        batch_size: images per step.
        tolerance: largest difference between the outputs, relative to the largest output.
        num_classes: number of classes of an architecture; default 10.
        in_channels: channels of an architecture's images; default 3.
        device: cpu, cuda, auto, ..., on which the network itself computes; the file is run on the CPU.
        seed: seed of the sample of images and of an architecture's random weights.
        overwrite: replace a file at --out that this command did not write.
        json: print the result as one JSON object, and nothing else.
        quiet: print nothing but errors.
    """
    import torch

    from pellucid.core import terminal
    from pellucid.core.device import choose_device
    from pellucid.core.files.ours import Output, check_outputs, exported
    from pellucid.core.network.export.export import export as written
    from pellucid.core.network.export.export import format_of, random_images
    from pellucid.core.source import is_architecture, open_network, open_source

    check_outputs([Output(Path(out), exported)], overwrite, command="export", sources=[checkpoint, source.data])
    form = format_of(out, to)
    where, data = choose_device(device), source.data
    if data is not None and (num_classes is not None or in_channels is not None):
        raise InputError("--num-classes and --in-channels go without --data, which says both.")
    if data is not None or Path(checkpoint, "settings.yaml").is_file():
        found = open_source(checkpoint, source, device=where, seed=seed)
        network, data = found.model, data or (found.run.settings.data if found.run else None)
        images = torch.cat(images_of(found, found.dataset.test, max_images, batch_size, seed))
    else:
        network = open_network(
            checkpoint,
            **source.reading(),
            mean=source.mean,
            std=source.std,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=source.image_size if is_architecture(checkpoint) else None,
            seed=seed,
        ).model.to(where)
        size = None if source.image_size is None else (source.image_size, source.image_size)
        images = random_images(network, min(max_images, 16), size)
    made = written(
        network,
        out,
        form,
        images=images,
        fold=fold,
        opset=opset,
        fixed_batch=fixed_batch,
        batch_size=batch_size,
        tolerance=tolerance,
    )
    about = {"checkpoint": checkpoint, "out": out, "to": made.to, "data": data, **made.about.to_json()}
    compared = {"n": made.n, "batches": list(made.batches), "difference": made.difference, "same_class": made.same}
    if json:
        more = {"operators": made.operators, "bytes": made.bytes, **to_json(made.changes)}
        terminal.say(json_.dumps({**about, **compared, **more}))
    if json or quiet:
        return 0
    if made.changes:
        show_changes(f"{checkpoint}, folded", made.changes)
    terminal.show(f"{checkpoint}, exported", ["", "the file"], _rows(made))
    seen = f"{made.n} images of {data}" if data else f"{made.n} images of random pixels (no --data was named)"
    batches = ", ".join(map(str, made.batches[:-1])) + " and " * (len(made.batches) > 1) + str(made.batches[-1])
    terminal.say(
        f"On {seen}, in batches of {batches}, its outputs differ by at most {made.difference:.2g} of the largest "
        f"(allowed: {tolerance:g}), and {made.same} of {made.n} get the same class."
    )
    terminal.say(f"Wrote {out}")
    # Without data there is no telling what would fit the network.
    terminal.say(f"Next: {shlex.join(['pellucid', 'evaluate', out, *(['--data', data] if data else ['--help'])])}")
    return 0


def _rows(made: Exported) -> list[list[Any]]:
    about, batch = made.about, made.about.batch or "any number"
    height, width = about.image_size
    norm, names = about.normalization, about.classes
    operators = list(made.operators.items())
    listed = ", ".join(f"{name} {count}" for name, count in operators[:6])
    return [
        ["format", f"ONNX, opset {about.opset}" if made.to == "onnx" else "torch.export program"],
        ["images per batch", f"{batch}{' (fixed)' if about.batch else ' (dynamic)'}"],
        ["images", f"{about.in_channels} x {height} x {width}"],
        ["mean", "not recorded" if norm is None else ", ".join(f"{x:.4g}" for x in norm.mean)],
        ["std", "not recorded" if norm is None else ", ".join(f"{x:.4g}" for x in norm.std)],
        ["classes", f"{about.num_classes}{', named' if names else ', without names'}"],
        ["folded", f"{len(made.changes)} layers" if made.changes else "nothing"],
        ["operators", listed + (f" and {len(operators) - 6} more" if len(operators) > 6 else "")],
        ["bytes", made.bytes],
    ]
