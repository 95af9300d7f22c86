"""The commands of this idea. Nothing heavy is imported until they run."""

from __future__ import annotations

import json as json_
import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pellucid.core.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from pellucid.inversion.presets import Recipe

Preset = Literal["gaussian", "generator", "deepinversion", "adaptive", "sre2l", "cda", "dream", "hidden", "prior-only"]


def synthesize(
    checkpoint: str,
    /,
    *,
    out: str,
    per_class: int = 10,
    preset: Preset = "gaussian",
    steps: int | None = None,
    lr: float | None = None,
    weight: float | None = None,
    covariance: bool = True,
    input: float | None = None,
    tv: float | None = None,
    verifier: str | None = None,
    disagreement: float | None = None,
    statistics: str | None = None,
    classes: list[str] | None = None,
    model: str | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    batch_size: int = 100,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    seed: int = 0,
    quiet: bool = False,
) -> int:
    """Fill class folders with images made out of a model alone, and its answers to them; resumable.

    The same command goes on where it was stopped. Any tool reads the folders; labels.safetensors holds the answers.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model), or the name of an
            architecture (resnet18, torchvision:resnet18), which is built with random weights.
        out: folder that is filled.
        per_class: images of each class.
        preset: recipe, as in invert.
        steps: steps of the search; default the recipe's.
        lr: Adam's learning rate; default the recipe's.
        weight: weight of the statistics; default the recipe's, 0 is none.
        covariance: match covariances where the model holds them, not variances alone.
        input: weight of the input's own mean and variance, beside the layers' 1 each; default the recipe's.
        tv: weight of the total variation; default the recipe's.
        verifier: another checkpoint, a foreign one as MODEL=FILE, that the images are to set at odds with the model.
        disagreement: weight of that; default 0.2 where a verifier is named.
        statistics: table to match, as pellucid.statistics(model, images).save(FILE) writes it; default the model's own.
        classes: classes wanted; default all.
        model: architecture of a foreign checkpoint, as in train.
        mean: mean of each input channel (pixels in 0 to 1), where the checkpoint does not know it.
        std: standard deviation of each input channel, where the checkpoint does not know it.
        batch_size: images that are searched for, and share statistics, together.
        device: auto, cpu, cuda, ...
        devices: processes that share the batches; the images do not depend on it.
        nodes: machines that take part.
        seed: what every draw is a function of.
        quiet: print nothing but errors.
    """
    from pellucid.core import terminal
    from pellucid.core.network.statistics import Statistics
    from pellucid.core.source import normalization_flags, open_network
    from pellucid.distillation.synthesize import shape_of
    from pellucid.distillation.synthesize import synthesize as run

    norm = normalization_flags(mean, std)
    network = open_network(checkpoint, model, fallback=norm, seed=seed, normalized=True).model
    other = None if verifier is None else open_network(verifier, fallback=norm, normalized=True).model
    if other is None and (disagreement is not None or preset == "adaptive"):
        raise InputError("A disagreement is with another network: name one with --verifier.")
    shape = shape_of(network)
    done = run(
        network,
        out,
        per_class,
        preset=_recipe(preset, shape, covariance, input, tv, disagreement, other),
        steps=steps,
        lr=lr,
        weight=weight,
        batch_size=batch_size,
        seed=seed,
        classes=classes,
        statistics=None if statistics is None else Statistics.load(statistics),
        verifier=other,
        device=device,
        devices=devices,
        nodes=nodes,
        quiet=quiet,
    )
    if not quiet and os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one speaks
        rows: list[list[Any]] = [
            ["images", done.images],
            ["classes", len(done.classes)],
            ["given their class by the model", terminal.percent(done.agree)],
            ["seconds", f"{done.seconds:.0f}"],
            ["real images used", "none" if statistics is None else "for the given statistics"],
        ]
        terminal.show(f"{checkpoint}: images in {out}", ["", ""], rows)
        words = ["pellucid", "assess", out, "--teacher", checkpoint]
        terminal.say(f"Next: {shlex.join([*words, *_flags(model=model, mean=mean, std=std)])}")
    return 0


def assess(
    folder: str,
    /,
    *,
    teacher: str,
    verifier: list[str] | None = None,
    data: str | None = None,
    features: str | None = None,
    layer: str | None = None,
    k: int = 5,
    limit: int = 5000,
    model: str | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: str = "auto",
    out: str | None = None,
    json: bool = False,
) -> int:
    """Say what a folder of images is worth: accuracy under networks, likeness to real images, and what leaks.

    Writes assess.json and, with data, leaks.png: the images nearest to a training image, above that image; first
    by features, then by pixels.

    Args:
        folder: class folders of images, of synthesize or any other tool.
        teacher: run folder or checkpoint that the images were made from; a foreign one with --model, or as MODEL=FILE.
        verifier: other checkpoints of the same classes, a foreign one as MODEL=FILE.
        data: real data, as in train, resized to the images: for Fréchet distance, precision, recall, density, coverage
            and leak scores.
        features: checkpoint whose features all of these are in, a foreign one as MODEL=FILE; default the teacher.
        layer: its layer whose input the features are; default the last one with weights.
        k: neighbours of precision, recall, density and coverage.
        limit: real images that are used at most, of each split.
        model: architecture of a foreign teacher, as in train.
        mean: mean of each input channel (pixels in 0 to 1), where a checkpoint does not know it.
        std: standard deviation of each input channel, where a checkpoint does not know it.
        device: auto, cpu, cuda, ...
        out: folder that the files are written to; default the images' own.
        json: print everything as JSON instead of tables.
    """
    from pellucid.core import terminal
    from pellucid.core.data.dataset import load_data
    from pellucid.core.device import choose_device
    from pellucid.core.files.atomic import write_atomic
    from pellucid.core.source import normalization_flags, open_network
    from pellucid.distillation.assess import assess as judge
    from pellucid.distillation.folder import read

    target = Path(out or folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"--out {str(target)!r} is a file: name a folder.")
    if limit < 2:
        raise InputError(f"--limit {limit} is out of range: give at least 2.")
    where, norm = choose_device(device), normalization_flags(mean, std)
    images, dataset = read(folder), None
    if data is not None:
        dataset = load_data(data, image_size=images.side)
        norm = norm or dataset.normalization

    def network(name: str, model: str | None = None) -> nn.Module:
        return open_network(name, model, fallback=norm, normalized=True).model.to(where)

    own = network(teacher, model)
    found = judge(
        images,
        own,
        {name: network(name) for name in verifier or ()},
        dataset,
        None if features is None else network(features),
        name=features or teacher,
        layer=layer,
        k=k,
        limit=limit,
        picture=None if dataset is None else target / "leaks.png",
    )
    content = json_.dumps(found.to_json(), indent=1)
    write_atomic(target / "assess.json", content + "\n")
    if json:
        terminal.say(content)
        return 0
    rows = [
        [row.name, terminal.percent(row.top1), "-" if row.top5 is None else terminal.percent(row.top5)]
        for row in found.accuracy
    ]
    terminal.show(f"{folder}: {found.images} images, given their class", ["by", "top 1", "top 5"], rows)
    scores: list[list[Any]] = [["Inception score", f"{found.inception_score:.2f}"]]
    scores.append(["diversity: cosine within a class", _both(_mean(found.diversity), _mean(found.diversity_real))])
    if found.alike is not None:
        scores.append(["Fréchet distance", f"{found.frechet:.3f}"])
        scores += [[f"{key}, k = {k}", f"{getattr(found.alike, key):.3f}"] for key in _ALIKE]
    against = f"against {found.real} real images of {data}" if dataset is not None else "no real images given"
    terminal.show(f"By {found.features}; {against}", ["", "score (real images)"], scores)
    if found.leaks:
        shown = [
            [leak.space, terminal.percent(leak.score), _both(leak.median, leak.median_test)] for leak in found.leaks
        ]
        title = "Leak: images nearer to a training image than 99 % of real test images are (by chance 1 %)"
        terminal.show(title, ["in", "leak score", "median distance (real test images)"], shown)
        terminal.say(f"Worst pairs: {target / 'leaks.png'}")
    words = ["pellucid", "distill", teacher, "resnet20", folder, "--data", data or "DATA"]
    terminal.say(f"Next: {shlex.join([*words, *_flags(model=model, mean=mean, std=std)])}")
    return 0


def distill(
    teacher: str,
    student: str,
    folder: str | None = None,
    /,
    *,
    data: str | None = None,
    out: str = "students",
    online: int = 0,
    per_class: int = 10,
    preset: Preset = "gaussian",
    steps: int | None = None,
    temperature: float = 4.0,
    alpha: float = 0.9,
    real: list[int] | None = None,
    controls: bool = True,
    model: str | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    epochs: int = 40,
    batch_size: int = 128,
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw",
    lr: float = 3e-3,
    weight_decay: float = 5e-4,
    mixup: float = 0.0,
    crop: int | None = None,
    flip: bool | None = None,
    cutout: int = 0,
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32",
    device: str = "auto",
    seed: int = 0,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Train a student without the teacher's data, in one table with its controls.

    Every row is a run of its own with the same steps: the student, noise images, a few real images of each class, and
    as many random real ones; resumable. Writes distill.json.

    Args:
        teacher: run folder or checkpoint, a foreign one with --model or as MODEL=FILE; an architecture's name is one of
            random weights.
        student: architecture of the student, as --model in train.
        folder: class folders of images, of synthesize or any other tool; not with --online.
        data: real data that students are tested on and that controls take their images from, resized to the images.
        out: folder of the runs.
        online: rounds in which images are made that the student so far and the teacher disagree on, and the student
            goes on with all of them; 0 learns from FOLDER.
        per_class: images of each class in every round of --online.
        preset: recipe of the search for images in --online; generator for photographs.
        steps: steps of the search for images in --online; default the recipe's.
        temperature: temperature of both networks' answers.
        alpha: share of the teacher's answers in the loss; the rest is of the labels.
        real: real images of each class, a control each; default 1 and 10.
        controls: train the controls too.
        model: architecture of a foreign teacher.
        mean: mean of each input channel (pixels in 0 to 1), where the teacher does not know it.
        std: standard deviation of each input channel, where the teacher does not know it.
        epochs: passes over the images.
        batch_size: images in a step.
        optimizer: optimisation algorithm.
        lr: peak learning rate, one-cycle.
        weight_decay: weight decay.
        mixup: alpha of mixup's Beta distribution; the teacher answers to the mixed images.
        crop: padding in pixels before a random crop; default an eighth of the image side.
        flip: mirror images at random; default whether the data's labels allow it.
        cutout: side in pixels of a square that is erased from each image.
        precision: 32, bf16-mixed or 16-mixed (GPU only).
        device: auto, cpu, cuda, ...
        seed: of weights, order, augmentation and the choice of real images.
        json: print the table as JSON.
        quiet: print nothing but errors.
    """
    import dataclasses

    from pellucid.core import terminal
    from pellucid.core.source import normalization_flags
    from pellucid.distillation.online import distill_online
    from pellucid.distillation.student import distill as run

    if (folder is None) != (online > 0):
        raise InputError("Name a folder of images, or the rounds of --online, and not both.")
    if online < 0 or per_class < 1:
        raise InputError(f"--online {online} and --per-class {per_class}: give at least 1 of each.")
    if any(count < 1 for count in real or ()):
        raise InputError(f"--real {' '.join(map(str, real or ()))}: give at least 1 image of each class.")
    normalization_flags(mean, std)
    common: dict[str, Any] = {
        "data": data, "out": out, "teacher_model": model, "mean": mean, "std": std, "temperature": temperature,
        "alpha": alpha, "real": tuple(real or (1, 10)), "controls": controls, "seed": seed, "quiet": quiet or json,
        "epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "lr": lr, "weight_decay": weight_decay,
        "mixup": mixup, "crop": crop, "flip": flip, "cutout": cutout, "precision": precision, "device": device,
    }  # fmt: skip
    if folder is None:
        done = distill_online(teacher, student, online, per_class, preset=preset, steps=steps, **common)
    else:
        done = run(teacher, student, folder, **common)
    if json:
        terminal.say(json_.dumps([dataclasses.asdict(row) for row in done.rows]))
    elif not quiet:
        rows = [
            [
                row.name,
                "-" if row.images is None else row.images,
                terminal.percent(row.accuracy, row.interval),
                "-" if row.steps is None else row.steps,
                "-" if row.seconds is None else f"{row.seconds:.0f}",
            ]
            for row in done.rows
        ]
        on = f"{done.rows[0].tested} test images of {data}" if data else "synthesised images only: name real --data"
        terminal.show(f"{student} from {teacher}, on {on}", ["from", "images", "accuracy", "steps", "seconds"], rows)
        terminal.say(f"Next: {shlex.join(['pellucid', 'open', str(done.run.path)])}")
    return 0


_ALIKE = ("precision", "recall", "density", "coverage")


def _recipe(
    preset: str,
    shape: tuple[int, ...],
    covariance: bool,
    input: float | None,
    tv: float | None,
    disagreement: float | None,
    verifier: nn.Module | None,
) -> Recipe:
    """The recipe called `preset` with what the flags change of it."""
    from dataclasses import replace

    from pellucid.inversion.objective import Disagreement
    from pellucid.inversion.presets import recipe
    from pellucid.inversion.priors import TotalVariation

    found = recipe(preset, (shape[0], shape[1], shape[2]))
    if found.matching is not None:
        weight = found.matching.input if input is None else input
        found = replace(found, matching=replace(found.matching, covariance=covariance, input=weight))
    elif input is not None:
        raise InputError(f"The preset {preset} matches no statistics: leave out --input.")
    if tv is not None:
        if not 0 <= tv < math.inf:
            raise InputError(f"--tv {tv} is out of range: give at least 0.")
        others = tuple(prior for prior in found.priors if not isinstance(prior, TotalVariation))
        found = replace(found, priors=(TotalVariation(tv), *others))
    if verifier is not None and (found.disagreement is None or disagreement is not None):
        share = 0.2 if disagreement is None else disagreement
        if not 0 <= share < math.inf:
            raise InputError(f"--disagreement {share} is out of range: give at least 0.")
        found = replace(found, disagreement=Disagreement(weight=share))
    return found


def _flags(**values: Any) -> list[str]:
    words: list[str] = []
    for name, value in values.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def _mean(values: dict[str, float | None] | None) -> float | None:
    known = [value for value in (values or {}).values() if value is not None]
    return sum(known) / len(known) if known else None


def _both(own: float | None, real: float | None) -> str:
    texts = ["-" if value is None else f"{value:.3f}" for value in (own, real)]
    return texts[0] if real is None else f"{texts[0]} ({texts[1]})"
