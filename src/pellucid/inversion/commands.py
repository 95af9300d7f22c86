"""The command of this idea. Nothing heavy is imported until it runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings

if TYPE_CHECKING:
    from torch import Tensor


def invert(
    checkpoint: str,
    /,
    *,
    out: str,
    targets: list[str] | None = None,
    images: int | None = None,
    preset: Literal[
        "gaussian", "generator", "deepinversion", "adaptive", "sre2l", "cda", "dream", "hidden", "prior-only"
    ] = "gaussian",
    steps: int | None = None,
    lr: float | None = None,
    weight: float | None = None,
    statistics: str | None = None,
    covariance: bool = True,
    verifier: list[str] | None = None,
    model: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    batch_size: int = 64,
    compile: bool = False,
    device: str = "auto",
    seed: int = 0,
    quiet: bool = False,
) -> int:
    """Make images out of a model alone: what its weights and statistics remember of each class.

    Writes a PNG an image (class, number, seed), grid.png and invert.json. No real image is read.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model), or the name of an
            architecture (resnet18, torchvision:resnet18), which is built with random weights.
        out: folder that the images are written to.
        targets: balanced (the classes in turn), random, or the classes by name or number, repeated in turn.
        images: how many; default 64, or one for each class that is named.
        preset: recipe; gaussian is the default whose one weight serves every network, the others are as published.
        steps: steps of the search; default the recipe's.
        lr: Adam's learning rate; default the recipe's.
        weight: weight of the statistics; default the recipe's, 0 is none.
        statistics: table to match, as pellucid.statistics(model, images).save(FILE) writes it; default the model's own.
        covariance: match covariances where the table has them, not variances alone.
        verifier: other checkpoints that are asked about the images, a foreign one as MODEL=FILE; the first is also who
            adaptive disagrees with.
        model: architecture of a foreign checkpoint, as in train.
        num_classes: classes of an architecture that is named instead of a checkpoint; default 10.
        in_channels: channels of its images; default 3.
        image_size: side in pixels of the images; default what the model was trained on.
        mean: mean of each input channel (pixels in 0 to 1), where the checkpoint does not know it.
        std: standard deviation of each input channel, where the checkpoint does not know it.
        batch_size: images that are searched for, and share statistics, together.
        compile: compile the network with torch.compile, worth it from about a thousand steps on.
        device: auto, cpu, cuda, ...
        seed: what every draw is a function of.
        quiet: print nothing but errors.
    """
    import torch

    from pellucid.core import terminal
    from pellucid.core.device import choose_device
    from pellucid.core.facts import facts
    from pellucid.core.measure.share import wilson
    from pellucid.core.network.statistics import Statistics
    from pellucid.core.source import open_network
    from pellucid.inversion import export
    from pellucid.inversion.optimize import answers
    from pellucid.inversion.optimize import invert as search
    from pellucid.inversion.presets import recipe

    if Path(out).exists() and not Path(out).is_dir():
        raise InputError(f"--out {out!r} is a file: name a folder.")
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} is out of range: give at least 1.")
    network = open_network(
        checkpoint, model, mean=mean, std=std, num_classes=num_classes, in_channels=in_channels, image_size=image_size,
        seed=seed, normalized=True,
    ).model  # fmt: skip
    others = {name: open_network(name).model for name in verifier or ()}
    table = None if statistics is None else Statistics.load(statistics)
    description = dict(facts(network).description or {})
    shape = (description["in_channels"], *([image_size] * 2 if image_size else description["image_size"]))
    found = recipe(preset, shape)
    if not covariance and found.matching is not None:
        from dataclasses import replace

        found = replace(found, matching=replace(found.matching, covariance=False))
    k = description["num_classes"]
    classes = facts(network).classes or tuple(map(str, range(k)))
    labels = _labels(targets, images, classes, seed)
    where = choose_device(device)
    parts = []
    for numbers in torch.arange(len(labels)).split(batch_size):
        part = search(
            network, labels[numbers], found, steps=steps, lr=lr, weight=weight, statistics=table,
            verifier=list(others.values()), shape=shape, seed=seed, indices=numbers, device=where, compile=compile,
            quiet=quiet,
        )  # fmt: skip
        parts.append(part)
    pixels = export.quantized(torch.cat([part.images for part in parts]))
    noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(seed))
    rows, accuracy = [], {}
    for name, other in {checkpoint: network, **others}.items():
        right, control = (
            int((answers(other, shown, network) == labels).sum()) for shown in (pixels, export.quantized(noise))
        )
        n = len(labels)
        accuracy[name] = {
            "correct": right,
            "n": n,
            "accuracy": right / n,
            "interval": wilson(right, n),
            "noise": control / n,
        }
        rows.append([name, terminal.percent(right / n, wilson(right, n)), terminal.percent(control / n)])
    record = {
        "checkpoint": checkpoint,
        "description": description,
        "preset": preset,
        "settings": {"steps": steps, "lr": lr, "weight": weight, "statistics": statistics, "covariance": covariance,
                     "batch_size": batch_size, "seed": seed},
        "classes": list(classes),
        "labels": labels.tolist(),
        "accuracy": accuracy,
        "history": [part.history for part in parts],
        "seconds": sum(part.seconds for part in parts),
        "real_images": None,
    }  # fmt: skip
    export.write(Path(out), pixels, labels, torch.arange(len(labels)), classes, seed, record)
    if not quiet:
        title = f"{len(labels)} images out of {checkpoint}, {preset}, {parts[0].history[-1]['step']} steps, seed {seed}"
        terminal.show(title, ["asked", "meets the target (95 % interval)", "noise images"], rows)
        terminal.say("Used real images: none.")
        terminal.say(f"Wrote {len(labels)} images, grid.png and invert.json to {out}")
        words = ["pellucid", "synthesize", checkpoint, "--out", f"{out.rstrip('/')}-set"]
        words += SourceSettings(model=model, image_size=image_size, mean=mean, std=std).flags()
        terminal.say(f"Next: {shlex.join(words)}")
    return 0


def _labels(targets: list[str] | None, images: int | None, classes: tuple[str, ...], seed: int) -> Tensor:
    """The classes (n,) of the images."""
    import torch

    from pellucid.core.seeds import seed_of

    words = targets or ["balanced"]
    if images is not None and images < 1:
        raise InputError(f"--images {images} is out of range: give at least 1.")
    if words in (["balanced"], ["random"]):
        numbers = range(images or 64)
        if words == ["balanced"]:
            return torch.tensor([n % len(classes) for n in numbers])
        return torch.tensor([seed_of("target", seed, n) % len(classes) for n in numbers])
    chosen = []
    for word in words:
        if word in classes:
            chosen.append(classes.index(word))
        elif word.isdecimal() and int(word) < len(classes):
            chosen.append(int(word))
        else:
            shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise InputError(f"--targets {word!r} is no class of this model: give balanced, random, or of {shown}.")
    return torch.tensor([chosen[n % len(chosen)] for n in range(images or len(chosen))])
