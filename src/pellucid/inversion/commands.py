"""The command of this folder. Nothing heavy is imported until it runs."""

from __future__ import annotations

import dataclasses
import json as json_
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.core.flags import NetworkSettings
from pellucid.core.ranges import Channels, Classes, Count, Seed
from pellucid.inversion.flags import RecipeSettings

if TYPE_CHECKING:
    from torch import Tensor, nn


def invert(
    checkpoint: str,
    /,
    *,
    out: str,
    targets: list[str] | None = None,
    count: Count | None = None,
    recipe: RecipeSettings,
    verifier: list[str] | None = None,
    network: NetworkSettings,
    num_classes: Classes | None = None,
    in_channels: Channels | None = None,
    batch_size: Count = 64,
    compile: bool = False,
    device: str = "auto",
    seed: Seed = 0,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Make images from a model alone: what its weights and statistics remember of each class.

    Writes one PNG per image (class, number, seed), grid.png and invert.json. No real image is read.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (MODEL=FILE, or FILE with --model), or the name of
            an architecture (resnet18, torchvision:resnet18), which gets random weights.
        out: folder to write the images to.
        targets: balanced (the classes in turn), random, or classes by name or number, repeated in turn.
        count: number of images to make; default 64, or one for each class named by --targets.
        verifier: other checkpoints that classify the images, foreign ones as MODEL=FILE; adaptive disagrees with the
            first.
        num_classes: number of classes of an architecture; default 10.
        in_channels: number of image channels of an architecture; default 3.
        batch_size: number of images that are searched for, and share statistics, together.
        compile: compile the network with torch.compile; worthwhile from about 1000 steps.
        device: auto, cpu, cuda, ...
        seed: seed of every random draw.
        overwrite: replace files at --out that this command did not write.
        json: print what invert.json holds instead of a table.
        quiet: print nothing but errors.
    """
    import torch

    from pellucid.core import terminal
    from pellucid.core.device import choose_device
    from pellucid.core.facts import facts
    from pellucid.core.files.ours import check_outputs, holds, outputs, picture_of
    from pellucid.core.network.blackbox.box import needs_layers
    from pellucid.core.network.statistics import Statistics
    from pellucid.core.source import open_network
    from pellucid.inversion import export
    from pellucid.inversion.invert import invert as search
    from pellucid.inversion.presets import changed
    from pellucid.inversion.presets import recipe as recipe_named
    from pellucid.inversion.targets import targets_named

    mine = {"grid.png": picture_of("invert"), "invert.json": holds("checkpoint", "labels", "files")}
    read = [checkpoint, *(verifier or ()), recipe.statistics]
    check_outputs(outputs(out, mine), overwrite, command="invert", sources=read)
    opened = open_network(
        checkpoint, **dataclasses.asdict(network), num_classes=num_classes, in_channels=in_channels, seed=seed,
        normalized=True,
    )  # fmt: skip
    model = opened.model
    needs_layers(model, "Inverting")
    if not (json or quiet):
        terminal.assumed(opened.assumed)
    verifiers = {name: open_network(name, fallback=facts(model).normalization).model for name in verifier or ()}
    table = None if recipe.statistics is None else Statistics.load(recipe.statistics)
    description = dict(facts(model).description or {})
    side = network.image_size
    shape = (description["in_channels"], *((side, side) if side else description["image_size"]))
    found = changed(recipe_named(recipe.preset, shape), **recipe.changes())
    classes = facts(model).classes or tuple(map(str, range(description["num_classes"])))
    labels = targets_named(targets, count, classes, seed)
    where = choose_device(device)
    names = [export.file_name(classes[label], number, seed) for number, label in enumerate(labels.tolist())]
    mine |= dict.fromkeys(names, picture_of("invert"))
    check_outputs(outputs(out, mine), overwrite, command="invert", sources=read)
    parts = [
        search(
            model, labels[numbers], found, statistics=table, verifier=list(verifiers.values()), shape=shape, seed=seed,
            indices=numbers, device=where, compile=compile, quiet=quiet or json,
        )
        for numbers in torch.arange(len(labels)).split(batch_size)
    ]  # fmt: skip
    pixels = export.quantized(torch.cat([part.images for part in parts]))
    accuracy = _accuracy({checkpoint: model, **verifiers}, pixels, labels, model, seed)
    settings = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "preset"}
    record = {
        "checkpoint": checkpoint,
        "assumed": list(opened.assumed),
        "description": description,
        "preset": recipe.preset,
        "settings": {**settings, "batch_size": batch_size, "seed": seed},
        "classes": list(classes),
        "labels": labels.tolist(),
        "accuracy": accuracy,
        "history": [part.history for part in parts],
        "seconds": sum(part.seconds for part in parts),
        "real_images": None,
    }
    files = export.write(Path(out), pixels, labels, torch.arange(len(labels)), classes, seed, record)
    if json:
        terminal.say(json_.dumps({**record, "files": files}))
    elif not quiet:
        rows = [
            [name, terminal.percent(row["accuracy"], row["interval"]), terminal.percent(row["noise"])]
            for name, row in accuracy.items()
        ]
        steps = parts[0].history[-1]["step"]
        title = f"{len(labels)} images from {checkpoint}, {recipe.preset}, {steps} steps, seed {seed}"
        terminal.show(title, ["network", "classified as intended (95 % interval)", "noise images"], rows)
        terminal.say("Real images used: none.")
        terminal.say(f"Wrote {len(labels)} images, grid.png and invert.json to {out}")
        words = ["pellucid", "synthesize", checkpoint, "--out", f"{out.rstrip('/')}-set", *network.flags()]
        terminal.say(f"Next: {shlex.join(words)}")
    return 0


def _accuracy(
    networks: dict[str, nn.Module], pixels: Tensor, labels: Tensor, model: nn.Module, seed: int
) -> dict[str, dict[str, Any]]:
    """For each network, how many images it classifies as intended, and the fraction of noise images as a control."""
    import torch

    from pellucid.core.measure.share import Share
    from pellucid.inversion import export
    from pellucid.inversion.predictions import predicted_classes

    noise = export.quantized(torch.rand(pixels.shape, generator=torch.Generator().manual_seed(seed)))
    found = {}
    for name, network in networks.items():
        own, control = (Share.of(predicted_classes(network, shown, model) == labels) for shown in (pixels, noise))
        found[name] = {**own.to_json(), "noise": control.value}
    return found
