"""A data set out of a network: class folders of inverted images with the network's own answers to them.

Image i of N is of class i modulo K. The images are cut into batches of fixed indices; everything a batch draws is a
function of the seed and of its images' indices. So it does not matter which process makes a batch, or when: a folder
that several processes fill, or that is filled in several goes, ends in the same bits. Where a generator draws the
images, all other batches begin with the weights found for the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError, Interrupted
from pellucid.core.facts import facts
from pellucid.core.files.atomic import remove_temporaries, write_atomic
from pellucid.core.modes import evaluating
from pellucid.core.network.statistics import Statistics
from pellucid.core.network.statistics import statistics as read_statistics
from pellucid.core.terminal import bar
from pellucid.core.train.launch import launch
from pellucid.core.train.settings import TrainSettings
from pellucid.core.train.signals import catch_signals
from pellucid.distillation.folder import BATCHES, LABELS, MANIFEST, class_names, fingerprint, read_manifest
from pellucid.inversion import export
from pellucid.inversion.optimize import Inversion, invert
from pellucid.inversion.presets import Recipe, changed, recipe
from pellucid.inversion.start import Generator


@dataclass(frozen=True)
class Synthesis:
    """A finished folder.

    images: how many there are. classes: of the network, in the order of its labels. agree: share of the images, as
    they are stored, that the network gives their class. seconds: of this call.
    """

    folder: Path
    images: int
    classes: tuple[str, ...]
    agree: float
    seconds: float


def synthesize(
    model: nn.Module,
    folder: str | os.PathLike[str],
    per_class: int,
    *,
    preset: str | Recipe = "gaussian",
    steps: int | None = None,
    lr: float | None = None,
    weight: float | None = None,
    batch_size: int = 100,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    statistics: Statistics | None = None,
    verifier: nn.Module | None = None,
    shape: tuple[int, int, int] | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    quiet: bool = False,
) -> Synthesis:
    """Fill `folder` with images that `model` takes for its classes, and with its answers to them.

    The same call again continues a folder that was begun; a finished one is only read.

    Args:
        model: any classifier with statistics; see `pellucid.inversion`.
        folder: class folders of PNG files, `labels.safetensors` (logits of the images as they are stored, in 8 bits)
            and `synthesis.json` are written to it; see `pellucid.distillation.folder`.
        per_class: images of each class.
        preset, steps, lr, weight, statistics, verifier, shape: as in `pellucid.inversion`.
        batch_size: images inverted together; they share their statistics, so it is part of the result.
        seed: what every draw is made from, together with an image's index.
        classes: names of the classes wanted; default all.
        device: auto, cpu, cuda, ...
        devices, nodes: processes on each machine and machines, which share the batches; the result does not depend
            on them. More than one: the function must be called in a script, which is started again for each.

    Raises:
        InputError: bad arguments, a folder with other settings or in use, or a model without statistics.
        Interrupted: Ctrl-C or SIGTERM; what is finished is kept.
    """
    began = time.monotonic()
    if per_class < 1 or batch_size < 1:
        raise InputError(f"{per_class} images a class in batches of {batch_size} are none: give at least 1 of each.")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise InputError(f"{str(path)!r} is a file: give a folder.")
    fabric = launch(TrainSettings(device=device, devices=devices, nodes=nodes))
    size = shape or shape_of(model)
    if size[0] not in (1, 3):
        raise InputError(f"Images of {size[0]} channels cannot be stored as pictures: use pellucid.invert.")
    found = recipe(preset, size) if isinstance(preset, str) else preset
    found = changed(found, steps=steps, lr=lr, weight=weight)
    if found.matching is not None and statistics is None:
        read_statistics(model)  # refused here, before there is a folder
    names = class_names(model, _outputs(model, size))
    wanted = _wanted(names, classes)
    settings: dict[str, Any] = {
        "per_class": per_class, "batch_size": batch_size, "seed": seed, "recipe": _described(found),
        "classes": [names[label] for label in wanted], "shape": list(size),
        "network": fingerprint(model), "verifier": None if verifier is None else fingerprint(verifier),
        "statistics": None if statistics is None else _digest(statistics),
    }  # fmt: skip
    manifest = {
        "classes": list(names),
        "settings": settings,
        "normalization": facts(model).to_json()["normalization"],
        "real_images": "none" if statistics is None else "those that the given statistics were recorded from",
    }
    targets = torch.tensor(wanted).repeat(per_class)
    batches = torch.arange(len(targets)).split(batch_size)
    lock, problem = None, None
    if fabric.global_rank == 0:
        try:
            lock = _begin(path, manifest)
        except InputError as error:
            problem = str(error)
    problem = fabric.broadcast(problem)  # or the other processes would wait for the first for ever
    if problem:
        raise InputError(problem)
    try:
        if not (path / LABELS).is_file():
            model.to(fabric.device)
            if verifier is not None:
                verifier.to(fabric.device)
            with _stoppable(path) as stop:

                def make(number: int, how: Recipe) -> None:
                    indices = batches[number]
                    labels = targets[indices]
                    made = invert(
                        model,
                        labels,
                        how,
                        statistics=statistics,
                        verifier=verifier,
                        shape=size,
                        seed=seed,
                        indices=indices,
                        quiet=True,
                    )
                    weights = _weights(how, made) if number == 0 else None  # what the others begin with
                    _keep(path, number, made, labels, names, seed, model, weights=weights)
                    stop()

                rank, world = fabric.global_rank, fabric.world_size
                todo = [n for n in range(rank, len(batches), world) if not _file(path, n).is_file()]
                with bar(len(todo), quiet=quiet or rank > 0) as shown:
                    if isinstance(found.start, Generator) and found.start.again < 1:
                        if 0 in todo:
                            shown.update(0, f"first batch of {len(batches[0])} images")
                            make(todo.pop(0), found)
                        fabric.barrier()
                        found = _onward(found, found.start, path)
                    for done, number in enumerate(todo):
                        shown.update(done, f"batch of {len(batches[number])} images")
                        make(number, found)
            fabric.barrier()
            if fabric.global_rank == 0:
                _finish(path, len(batches), targets, names, seed)
            fabric.barrier()
        logits, labels = _labels(path)
    finally:
        if lock is not None:
            lock.release()
    agree = (logits.argmax(1) == labels).double().mean().item()
    return Synthesis(path, len(labels), names, agree, time.monotonic() - began)


def _begin(path: Path, manifest: dict[str, Any]) -> Any:
    """Make the folder or continue it, if it was begun with the same settings; its lock."""
    from filelock import FileLock, Timeout

    strange = [p for p in path.glob("*") if p.name != ".lock" and not p.name.endswith(".tmp")]
    if strange and not read_manifest(path):
        raise InputError(f"{str(path)!r} holds files that are no synthesis: give an empty folder.")
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"Another process is synthesising into {str(path)!r}: wait for it or name another.") from None
    begun = read_manifest(path).get("settings")
    if begun is None:
        write_atomic(path / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    elif begun != manifest["settings"]:
        lock.release()
        key = next(key for key, value in manifest["settings"].items() if begun.get(key) != value)
        was, now = begun.get(key), manifest["settings"][key]
        if key == "recipe":  # a long line each: what differs is enough
            words = [re.split(r"[(),\s]+", str(value)) for value in (was, now)]
            was, now = (" ".join(w for w in words[i] if w not in words[1 - i]) or "less" for i in (0, 1))
        raise InputError(
            f"{str(path)!r} was begun with {key.replace('_', ' ')} {was!r}, not {now!r}: "
            "give the same, or another folder."
        )
    for stray in (path, path / BATCHES, *(path / name for name in manifest["classes"])):
        remove_temporaries(stray)
    if (path / LABELS).is_file():  # a process that was killed after its last file but one
        shutil.rmtree(path / BATCHES, ignore_errors=True)
    return lock


def _onward(found: Recipe, start: Generator, path: Path) -> Recipe:
    """The recipe of the batches after the first, whose generator they begin with."""
    from safetensors.torch import load_file

    steps = max(1, round(start.again * found.schedule.steps))
    start = replace(start, weights=load_file(_file(path, 0))["weights"])
    return replace(found, start=start, schedule=replace(found.schedule, steps=steps))


def _weights(found: Recipe, made: Inversion) -> Tensor | None:
    """Of the generator that drew a batch."""
    if not isinstance(found.start, Generator) or made.variables is None:
        return None
    return found.start.after(made.variables, len(made.images)).weights


def _keep(
    path: Path,
    number: int,
    made: Inversion,
    labels: Tensor,
    names: Sequence[str],
    seed: int,
    model: nn.Module,
    *,
    weights: Tensor | None,
) -> None:
    """Write a finished batch: first its file, which is what counts, then the pictures made from it."""
    from safetensors.torch import save

    from pellucid.distillation.features import answers

    pixels = (255 * made.images.clamp(0, 1)).round().byte().cpu()
    content = {"pixels": pixels, "logits": answers(model, pixels), "labels": labels, "indices": made.numbers}
    if weights is not None:
        content["weights"] = weights
    write_atomic(_file(path, number), save(content))
    _write_pictures(path, pixels, labels, made.numbers, names, seed)


def _write_pictures(
    path: Path, pixels: Tensor, labels: Tensor, indices: Tensor, names: Sequence[str], seed: int
) -> None:
    for image, label, index in zip(pixels, labels.tolist(), indices.tolist(), strict=True):
        file = path / names[label] / export.file_name(names[label], index, seed)
        if not file.is_file():
            write_atomic(file, export.png(image / 255))


def _finish(path: Path, count: int, targets: Tensor, names: Sequence[str], seed: int) -> None:
    """Make what is missing from the batches' files: pictures of a process that was killed, then the soft labels."""
    from safetensors.torch import load_file, save

    logits: list[Tensor] = []
    for number in range(count):
        batch = load_file(_file(path, number))
        _write_pictures(path, batch["pixels"], batch["labels"], batch["indices"], names, seed)
        logits.append(batch["logits"])
    write_atomic(path / LABELS, save({"logits": torch.cat(logits), "labels": targets}))
    shutil.rmtree(path / BATCHES)


def _labels(path: Path) -> tuple[Tensor, Tensor]:
    from safetensors.torch import load_file

    stored = load_file(path / LABELS)
    return stored["logits"], stored["labels"]


def _file(path: Path, number: int) -> Path:
    return path / BATCHES / f"{number:06d}.safetensors"


@contextlib.contextmanager
def _stoppable(path: Path) -> Iterator[Any]:
    """A function that stops the block between batches once a signal was received."""
    with catch_signals() as received:

        def stop() -> None:
            if received:
                raise Interrupted(received[0], f"Stopped; the same command continues the synthesis in {str(path)!r}.")

        yield stop


def shape_of(model: nn.Module) -> tuple[int, int, int]:
    known = facts(model)
    if known.in_channels is None or known.image_size is None:
        raise InputError(f"This {type(model).__name__} does not say what images it takes: give shape=(C, H, W).")
    return known.in_channels, *known.image_size


@torch.no_grad()
def _outputs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Classes that the model tells apart."""
    from pellucid.distillation.features import run

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        return run(model, torch.zeros(1, *shape, device=device)).shape[1]


def _wanted(names: Sequence[str], classes: Sequence[str] | None) -> list[int]:
    """Labels of the classes asked for, in the model's order."""
    if classes is None:
        return list(range(len(names)))
    if unknown := [name for name in classes if name not in names]:
        raise InputError(f"The model has no class {unknown[0]!r}: it has {', '.join(names[:20])}.")
    return [label for label, name in enumerate(names) if name in classes]


def _described(found: Recipe) -> str:
    """The recipe, with a digest of the weights that a generator is given to begin with."""
    weights = found.start.weights if isinstance(found.start, Generator) else None
    if weights is None:
        return repr(found)
    return f"{found!r}, weights={hashlib.sha256(weights.detach().cpu().numpy().tobytes()).hexdigest()}"


def _digest(statistics: Statistics) -> str:
    digest = hashlib.sha256()
    for name, moments in statistics.items():
        for value in (moments.mean, moments.var, moments.cov):
            digest.update(b"" if value is None else value.detach().cpu().double().contiguous().numpy().tobytes())
        digest.update(name.encode())
    return digest.hexdigest()
