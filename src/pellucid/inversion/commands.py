"""The command of this idea. Nothing heavy is imported until it runs."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    from pellucid.core.measure.share import wilson
    from pellucid.core.network.statistics import Statistics
    from pellucid.inversion import export
    from pellucid.inversion.optimize import answers
    from pellucid.inversion.optimize import invert as search
    from pellucid.inversion.presets import recipe

    if Path(out).exists() and not Path(out).is_dir():
        raise InputError(f"--out {out!r} is a file: name a folder.")
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} is out of range: give at least 1.")
    network = _network(checkpoint, model, num_classes, in_channels, image_size, mean, std, seed)
    others = {name: _verifier(name) for name in verifier or ()}
    table = None if statistics is None else Statistics.load(statistics)
    description: dict[str, Any] = getattr(network, "description", None) or {}
    shape = (description["in_channels"], *([image_size] * 2 if image_size else description["image_size"]))
    found = recipe(preset, shape)
    if not covariance and found.matching is not None:
        from dataclasses import replace

        found = replace(found, matching=replace(found.matching, covariance=False))
    k = description["num_classes"]
    classes = tuple(getattr(network, "classes", None) or map(str, range(k)))
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
    facts = {
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
    export.write(Path(out), pixels, labels, torch.arange(len(labels)), classes, seed, facts)
    if not quiet:
        title = f"{len(labels)} images out of {checkpoint}, {preset}, {parts[0].history[-1]['step']} steps, seed {seed}"
        terminal.show(title, ["asked", "meets the target (95 % interval)", "noise images"], rows)
        terminal.say("Used real images: none.")
        terminal.say(f"Wrote {len(labels)} images, grid.png and invert.json to {out}")
        words = ["pellucid", "synthesize", checkpoint, "--out", f"{out.rstrip('/')}-set"]
        words += SourceSettings(model=model, image_size=image_size, mean=mean, std=std).flags()
        terminal.say(f"Next: {shlex.join(words)}")
    return 0


def _network(
    checkpoint: str,
    model: str | None,
    num_classes: int | None,
    in_channels: int | None,
    image_size: int | None,
    mean: list[float] | None,
    std: list[float] | None,
    seed: int,
) -> nn.Module:
    """The network that a user names, with the normalisation of its input."""
    from pellucid.core.source import build_fresh, is_architecture

    named = is_architecture(checkpoint)
    if not named:
        from pellucid.core.network.checkpoint import load

        if num_classes is not None or in_channels is not None:
            raise InputError(
                f"--num-classes and --in-channels go with an architecture's name, but {checkpoint!r} is none."
            )
        network = load(checkpoint, model)
    else:
        if model is not None:
            raise InputError(f"{checkpoint!r} is built with random weights: leave out --model.")
        network = build_fresh(checkpoint, num_classes or 10, in_channels or 3, image_size, seed).eval()
    channels = (getattr(network, "description", None) or {}).get("in_channels", 3)
    own = getattr(network, "normalization", None)
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: give both.")
    if mean is not None and std is not None:
        if own is not None:
            raise InputError(f"{checkpoint!r} knows its own mean and std: leave out --mean and --std.")
        if len(mean) != channels or len(std) != channels or not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
            raise InputError(f"--mean and --std need {channels} finite numbers each, one a channel, and --std above 0.")
        own = {"mean": mean, "std": std}
    if own is None:
        if not named:
            raise InputError(
                f"{checkpoint!r} does not say how its input is normalised: give --mean and --std of its training."
            )
        own = {"mean": [0.5] * channels, "std": [0.25] * channels}  # random weights: any will do
    vars(network)["normalization"] = own
    return network


def _verifier(name: str) -> nn.Module:
    from pellucid.core.network.checkpoint import load

    architecture, given, path = name.partition("=")
    return load(path, architecture) if given and not Path(name).exists() else load(name)


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
