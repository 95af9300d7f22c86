"""The command `pellucid fold`."""

from __future__ import annotations

import dataclasses
import json as json_
import shlex
from pathlib import Path
from typing import Any

from pellucid.core.commands.changes import images_of, show_changes, to_json
from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings
from pellucid.core.ranges import Count, Positive, Seed


def fold(
    checkpoint: str,
    /,
    *,
    out: str,
    source: SourceSettings,
    max_images: Count = 64,
    batch_size: Count = 128,
    tolerance: Positive = 1e-5,
    device: str = "cpu",
    seed: Seed = 0,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Fold whitening and batch norm into plain convolutions, and check that the outputs stay the same.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model, or as MODEL=FILE),
            or an architecture (resnet18, timm:resnet18), which gets random weights.
        out: file to write the folded network to.
        data: test images to check with; digits, cifar10[:PATH], cifar100[:PATH], folder:PATH or npz:PATH; default the
            run's own data, or else random images.
        max_images: maximum number of images to check with, sampled with --seed; at most --batch-size are used.
        batch_size: images per step; the check runs one step.
        tolerance: largest difference between the outputs of both networks, relative to the largest output.
        device: cpu, cuda, auto, ...; GPUs may round too coarsely for the check.
        seed: seed of the sample of images and of an architecture's random weights.
        overwrite: replace files at --out that this command did not write.
        json: print the result as one JSON object, and nothing else.
        quiet: print nothing but errors.
    """
    from pellucid.core import terminal
    from pellucid.core.device import choose_device
    from pellucid.core.facts import facts
    from pellucid.core.files.ours import Output, check_outputs, network_of
    from pellucid.core.network.checkpoint import save
    from pellucid.core.network.fold import fold as folded_copy
    from pellucid.core.source import open_network, open_source

    check_outputs([Output(Path(out), network_of("fold"))], overwrite, command="fold", sources=[checkpoint, source.data])
    where, data, example = choose_device(device), source.data, None
    if data is not None or Path(checkpoint, "settings.yaml").is_file():
        found = open_source(checkpoint, source, device=where, seed=seed)
        assumed = found.assumed
        network, data = found.model, data or (found.run.settings.data if found.run else None)
        example = images_of(found, found.dataset.test, max_images, batch_size, seed)[0]
    elif source != dataclasses.replace(SourceSettings(), **source.reading()):
        raise InputError("--mean, --std and --image-size go with --data: name the data.")
    else:
        named = open_network(checkpoint, **source.reading(), seed=seed)
        network, assumed = named.model.to(where), named.assumed
    folded = folded_copy(network, example, tolerance=tolerance)
    save(folded, out, command="fold")
    sizes = {
        "parameters": [sum(p.numel() for p in net.parameters()) for net in (network, folded)],
        "bytes": [sum(t.nbytes for t in net.state_dict().values()) for net in (network, folded)],
    }
    known, count = facts(folded), 4 if example is None else len(example)
    if json:
        about: dict[str, Any] = {"checkpoint": checkpoint, "out": out, "data": data, "n": count}
        about |= {"difference": known.difference, "assumed": list(assumed)}
        both = {name: {"before": before, "after": after} for name, (before, after) in sizes.items()}
        terminal.say(json_.dumps({**about, **both, **to_json(known.changes)}))
    if json or quiet:
        return 0
    terminal.assumed(assumed)
    show_changes(f"{checkpoint}, folded", known.changes)
    terminal.show("Size", ["", "before", "after"], [[name, *pair] for name, pair in sizes.items()])
    seen = f"{count} random images" if example is None else f"{count} images of {data}"
    terminal.say(f"Outputs on {seen} differ by at most {known.difference:.2g} of the largest output.")
    terminal.say(f"Wrote {out}")
    # Without data there is no telling what would fit the network.
    words = ["pellucid", "evaluate", out, *(["--model", code] if (code := known.code) else [])]
    terminal.say(f"Next: {shlex.join([*words, *(['--data', data] if data else ['--help'])])}")
    return 0
