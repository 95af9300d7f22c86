"""The command `pellucid convert`."""

from __future__ import annotations

import json as json_
import shlex
from pathlib import Path
from typing import Any

from pellucid.core.commands.changes import images_of, show_changes, to_json
from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings
from pellucid.core.ranges import Channels, Classes, Count, Seed


def convert(
    checkpoint: str,
    /,
    *,
    layers: str,
    out: str,
    options: dict[str, Any] | None = None,
    source: SourceSettings,
    max_images: Count = 512,
    batch_size: Count = 128,
    num_classes: Classes | None = None,
    in_channels: Channels | None = None,
    device: str = "cpu",
    seed: Seed = 0,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Replace layers of any network by those of a rule, such as deconv, and keep its weights.

    With --data, the new layers are fitted to training images so that the network computes what it did before. Without,
    it has to be trained.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model, or as MODEL=FILE),
            or an architecture (resnet18, timm:resnet18), which gets random weights.
        layers: rule for the new layers, such as deconv, or several, such as csc+deconv; their options are
            flags of their own. A network that has layers of another rule keeps those that the new one leaves to it.
        out: file to write the converted network to.
        options: options of the rule, as --options.NAME VALUE.
        data: images to fit the new layers to; digits, cifar10[:PATH], cifar100[:PATH], folder:PATH or npz:PATH.
        max_images: maximum number of training images to fit to, sampled with --seed.
        batch_size: images per step.
        num_classes: number of classes of an architecture; default 10.
        in_channels: channels of an architecture's images; default 3.
        image_size: side in pixels of an architecture's images, or that data are resized to; default 32, or the size
            that the network, or the library it comes from, states.
        device: cpu, cuda, auto, ...; GPUs may round too coarsely for the check.
        seed: seed of an architecture's random weights and of the sample of images.
        overwrite: replace files at --out that this command did not write.
        json: print the result as one JSON object, and nothing else.
        quiet: print nothing but errors.
    """
    from pellucid.core import terminal
    from pellucid.core.data.splits import for_fitting
    from pellucid.core.device import choose_device
    from pellucid.core.facts import facts
    from pellucid.core.files.ours import Output, check_outputs, network_of
    from pellucid.core.network import convert as converts
    from pellucid.core.network.blackbox.box import needs_layers
    from pellucid.core.network.checkpoint import save
    from pellucid.core.source import is_architecture, open_network, open_source

    check_outputs(
        [Output(Path(out), network_of("convert"))], overwrite, command="convert", sources=[checkpoint, source.data]
    )
    where, batches = choose_device(device), None
    bare = SourceSettings(image_size=source.image_size, model_args=source.model_args)
    if is_architecture(checkpoint) and source != bare:
        raise InputError(f"{checkpoint!r} is built with random weights: leave out --data, --model, --mean and --std.")
    if source.data is not None:
        found = open_source(checkpoint, source, device=where)
        chosen = for_fitting(found.dataset.train, "Whitening is calibrated")
        assumed = found.assumed
        network, batches = found.model, images_of(found, chosen, max_images, batch_size, seed)
    else:
        named = open_network(
            checkpoint,
            **source.reading(),
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=source.image_size,
            seed=seed,
        )
        network, assumed = named.model.to(where), named.assumed
    needs_layers(network, "Converting")
    if (facts(network).description or {}).get("folded"):
        raise InputError(f"{checkpoint!r} is folded: convert the network that it was folded from.")
    changed = converts.convert(network, layers, images=batches, **(options or {}))
    save(changed, out, command="convert")
    before, after = (sum(parameter.numel() for parameter in net.parameters()) for net in (network, changed))
    if json:
        about = {"checkpoint": checkpoint, "layers": layers, "out": out, "fitted": batches is not None}
        about["assumed"] = list(assumed)
        counts = {"parameters": {"before": before, "after": after}}
        terminal.say(json_.dumps({**about, **counts, **to_json(facts(changed).changes)}))
    if json or quiet:
        return 0
    terminal.assumed(assumed)
    show_changes(f"{checkpoint} to {layers}", facts(changed).changes)
    state = "computes what it did before" if batches is not None else "has yet to be trained"
    terminal.say(f"Wrote {out}: {after} parameters; the network {state}.")
    if source.data is None:
        words = ["fold", out, "--out", f"{out.removesuffix('.safetensors')}-folded.safetensors"]
    else:
        words = ["evaluate", out, "--data", source.data]
    words += ["--model", code] if (code := facts(changed).code) else []
    terminal.say(f"Next: {shlex.join(['pellucid', *words])}")
    return 0
