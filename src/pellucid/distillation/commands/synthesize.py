"""The command synthesize. Nothing heavy is imported until it runs."""

from __future__ import annotations

import dataclasses
import json as json_
import os
import shlex
from typing import Any

from pellucid.core.errors import InputError
from pellucid.core.flags import NetworkSettings
from pellucid.core.ranges import Count, NotNegative, Seed
from pellucid.inversion.flags import RecipeSettings


def synthesize(
    checkpoint: str,
    /,
    *,
    out: str,
    per_class: Count = 10,
    recipe: RecipeSettings,
    verifier: str | None = None,
    disagreement: NotNegative | None = None,
    classes: list[str] | None = None,
    network: NetworkSettings,
    batch_size: Count = 100,
    device: str = "auto",
    devices: Count = 1,
    nodes: Count = 1,
    seed: Seed = 0,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Fill class folders with images made from a model alone, and store its predictions for them; resumable.

    The same command continues where it was stopped. Any tool reads the folders; labels.safetensors holds the logits.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (MODEL=FILE, or FILE with --model), or the name of
            an architecture (resnet18, torchvision:resnet18), which gets random weights.
        out: folder to fill.
        per_class: number of images per class.
        verifier: another checkpoint, a foreign one as MODEL=FILE, that should disagree with the model about the images.
        disagreement: weight of that disagreement; default 0.2 with --verifier.
        classes: classes to synthesise; default all.
        batch_size: number of images that are searched for, and share statistics, together.
        device: auto, cpu, cuda, ...
        devices: number of processes that share the batches; the images do not depend on it.
        nodes: number of machines that take part.
        seed: seed of every random draw.
        json: print the numbers as JSON instead of a table.
        quiet: print nothing but errors.
    """
    from pellucid.core import terminal
    from pellucid.core.network.blackbox.box import needs_layers
    from pellucid.core.network.statistics import Statistics
    from pellucid.core.source import normalization_flags, open_network
    from pellucid.distillation.synthesize import shape_of
    from pellucid.distillation.synthesize import synthesize as run
    from pellucid.inversion.presets import changed
    from pellucid.inversion.presets import recipe as recipe_named

    norm = normalization_flags(network.mean, network.std)
    side = network.image_size
    size = side if side is None else (side, side)
    opened = open_network(checkpoint, **network.reading(), image_size=size, fallback=norm, seed=seed, normalized=True)
    model = opened.model
    needs_layers(model, "Inverting")
    if not (json or quiet) and os.environ.get("LOCAL_RANK", "0") == "0":
        terminal.assumed(opened.assumed)
    other = None if verifier is None else open_network(verifier, fallback=norm, seed=seed, normalized=True).model
    if other is None and (disagreement is not None or recipe.preset == "adaptive"):
        raise InputError("The images can only disagree with another network: name one with --verifier.")
    shape = shape_of(model) if side is None else (shape_of(model)[0], side, side)
    found = recipe_named(recipe.preset, shape)
    if other is not None and found.disagreement is None and disagreement is None:
        disagreement = 0.2
    found = changed(found, **recipe.changes(), disagreement=disagreement)
    done = run(
        model, out, per_class, preset=found, batch_size=batch_size, seed=seed, classes=classes,
        statistics=None if recipe.statistics is None else Statistics.load(recipe.statistics),
        verifier=other, shape=shape, device=device, devices=devices, nodes=nodes, quiet=quiet or json,
    )  # fmt: skip
    if os.environ.get("LOCAL_RANK", "0") != "0":  # of several processes one prints
        return 0
    real = "none" if recipe.statistics is None else "those that the given statistics were recorded from"
    if json:
        values = {**dataclasses.asdict(done), "folder": str(done.folder), "agree": done.agree.to_json()}
        terminal.say(json_.dumps({"checkpoint": checkpoint, "assumed": opened.assumed, **values, "real_images": real}))
    elif not quiet:
        rows: list[list[Any]] = [
            ["images", done.images],
            ["classes", len(done.classes)],
            ["classified as intended (95 % interval)", terminal.percent(done.agree.value, done.agree.interval)],
            ["seconds", f"{done.seconds:.0f}"],
            ["real images used", real],
        ]
        terminal.show(f"{checkpoint}: images in {out}", ["", ""], rows)
        words = ["pellucid", "assess", checkpoint, out, *network.flags()]
        terminal.say(f"Next: {shlex.join(words)}")
    return 0
