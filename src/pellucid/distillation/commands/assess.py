"""The command assess. Nothing heavy is imported until it runs."""

from __future__ import annotations

import dataclasses
import json as json_
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pellucid.core.flags import SourceSettings
from pellucid.core.ranges import LARGE, Count, Range, Seed

if TYPE_CHECKING:
    from torch import nn

    from pellucid.distillation.assess import Assessment


def assess(
    teacher: str,
    folder: str,
    /,
    *,
    verifier: list[str] | None = None,
    source: SourceSettings,
    features: str | None = None,
    layer: str | None = None,
    k: Count = 5,
    max_images: Annotated[int, Range(2, LARGE)] = 5000,
    batch_size: Count = 256,
    device: str = "auto",
    seed: Seed = 0,
    out: str | None = None,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Judge a folder of images: accuracy under networks, similarity to real images, and what leaks.

    Writes assess.json and, with data, leaks.png: the images closest to a training image, each above that image, first
    by features, then by pixels.

    Args:
        teacher: run folder or checkpoint that the images were made from, a foreign one as MODEL=FILE or with --model;
            or an architecture, which gets random weights.
        folder: class folders of images, from synthesize or any other tool.
        verifier: other checkpoints of the same classes, foreign ones as MODEL=FILE.
        data: real data, as in train, resized to the images; needed for Fréchet distance, precision, recall, density,
            coverage and leak scores.
        features: checkpoint whose features all of these use, a foreign one as MODEL=FILE; default the teacher.
        layer: its layer whose input the features are; default the last layer with weights.
        k: number of neighbours for precision, recall, density and coverage.
        max_images: maximum number of real images used from each split; leaks are looked for in all training images,
            whatever this number.
        image_size: side in pixels that real images are resized to; default the images' own.
        batch_size: images in a step.
        device: auto, cpu, cuda, ...
        seed: seed of the weights of an architecture.
        out: folder to write the files to; default the images' own.
        overwrite: replace files at --out that this command did not write.
        json: print everything as JSON instead of tables.
        quiet: print nothing but errors.
    """
    from pellucid.core import terminal
    from pellucid.core.device import choose_device
    from pellucid.core.files.atomic import together, write_atomic
    from pellucid.core.files.ours import check_outputs, holds, outputs, picture_of
    from pellucid.core.given import as_dataset
    from pellucid.core.source import normalization_flags, open_network
    from pellucid.distillation.assess import assess as judge
    from pellucid.distillation.folder import read

    target = Path(out or folder)
    files = {"assess.json": holds("images", "features", "inception_score")}
    if source.data is not None:
        files["leaks.png"] = picture_of("assess")
    read_from = [teacher, *(verifier or ()), features, source.data]
    check_outputs(outputs(target, files), overwrite, command="assess", sources=read_from)
    where, norm = choose_device(device), normalization_flags(source.mean, source.std)
    images, dataset = read(folder), None
    if source.data is not None:
        dataset = as_dataset(source.data, image_size=source.image_size or images.side)
        norm = norm or (dataset.normalization if dataset.mean else None)

    assumed: list[str] = []

    def network(name: str, **reading: Any) -> nn.Module:
        opened = open_network(name, **reading, image_size=images.side, fallback=norm, seed=seed, normalized=True)
        assumed.extend(sentence for sentence in opened.assumed if sentence not in assumed)
        return opened.model.to(where)

    with together():  # the closest pairs are drawn as soon as they are found
        found = judge(
            network(teacher, **source.reading()),
            images,
            {name: network(name) for name in verifier or ()},
            dataset,
            None if features is None else network(features),
            name=features or teacher,
            layer=layer,
            k=k,
            max_images=max_images,
            batch_size=batch_size,
            picture=None if dataset is None else target / "leaks.png",
        )
        content = json_.dumps({"assumed": assumed, **found.to_json()}, indent=1)
        write_atomic(target / "assess.json", content + "\n")
    if json:
        terminal.say(content)
    elif not quiet:
        terminal.assumed(assumed)
        _show(found, folder, source.data)
        if found.leaks:
            terminal.say(f"Closest pairs: {target / 'leaks.png'}")
        student = dataclasses.replace(source, image_size=None)
        words = ["pellucid", "distill", teacher, "resnet20", folder, *student.flags()]
        terminal.say(f"Next: {shlex.join(words)}")
    return 0


def _show(found: Assessment, folder: str, data: str | None) -> None:
    """The tables."""
    from pellucid.core import terminal

    rows = [
        [
            row.name,
            terminal.percent(row.top1.value, row.top1.interval),
            "-" if row.top5 is None else terminal.percent(row.top5.value, row.top5.interval),
        ]
        for row in found.accuracy
    ]
    headers = ["network", "top 1 (95 % interval)", "top 5"]
    terminal.show(f"{folder}: {found.images} images, classified as intended", headers, rows)
    scores: list[list[Any]] = [["Inception score", f"{found.inception_score:.2f}"]]
    scores.append(["diversity: cosine within a class", _both(_mean(found.diversity), _mean(found.diversity_real))])
    if found.alike is not None:
        scores.append(["Fréchet distance", f"{found.frechet:.3f}"])
        scores += [
            [f"{key}, k = {found.alike.k}", f"{getattr(found.alike, key):.3f}"]
            for key in ("precision", "recall", "density", "coverage")
        ]
    against = f"compared with {found.real} real images of {data}" if data is not None else "no real images given"
    terminal.show(f"By {found.features}; {against}", ["", "score (real images)"], scores)
    if found.leaks:
        shown = [
            [leak.space, terminal.percent(leak.score), _both(leak.median, leak.median_test)] for leak in found.leaks
        ]
        title = (
            f"Leak: images closer to one of all {found.leaks[0].searched} training images than 99 % of real test "
            "images are (1 % by chance)"
        )
        terminal.show(title, ["distance by", "leak score", "median distance (real test images)"], shown)


def _mean(values: dict[str, float | None] | None) -> float | None:
    known = [value for value in (values or {}).values() if value is not None]
    return sum(known) / len(known) if known else None


def _both(own: float | None, real: float | None) -> str:
    texts = ["-" if value is None else f"{value:.3f}" for value in (own, real)]
    return texts[0] if real is None else f"{texts[0]} ({texts[1]})"
