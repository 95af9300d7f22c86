"""`pellucid.synthesize`: a data set from a network, as class folders of inverted images with the network's logits.

Image i of N belongs to class i modulo K. The images are cut into batches of fixed indices, and everything that a batch
draws is a function of the seed and of its images' indices. It therefore does not matter which process makes a batch, or
when: a folder filled by several processes, or in several calls, ends in the same bits. Where a generator draws the
images, the batches after the first start from the weights found for the first.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.device import device_of
from pellucid.core.errors import InputError, Interrupted
from pellucid.core.facts import facts
from pellucid.core.measure.share import Share
from pellucid.core.modes import determinism, evaluating, seeded
from pellucid.core.network.statistics import Statistics
from pellucid.core.network.statistics import statistics as read_statistics
from pellucid.core.source import Named
from pellucid.core.terminal import bar
from pellucid.core.train.launch import launch
from pellucid.core.train.signals import catch_signals
from pellucid.distillation import shards
from pellucid.distillation.features import logits_from
from pellucid.distillation.folder import LABELS, class_names
from pellucid.distillation.resume import begin, describe
from pellucid.inversion.generator import Generator
from pellucid.inversion.invert import invert
from pellucid.inversion.optimize import Inversion
from pellucid.inversion.presets import Recipe, changed, recipe
from pellucid.inversion.space import network_of


@dataclass(frozen=True)
class Synthesis:
    """A complete folder.

    Attributes:
        folder: its path.
        images: how many images it holds.
        classes: all classes of the network, in label order.
        agree: the images, as they are stored, that the network classifies as intended.
        seconds: duration of this call.
    """

    folder: Path
    images: int
    classes: tuple[str, ...]
    agree: Share
    seconds: float


def synthesize(
    model: Named,
    out: str | os.PathLike[str],
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
    verifier: Named | None = None,
    shape: tuple[int, int, int] | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    quiet: bool = False,
) -> Synthesis:
    """Fill `out` with images that `model` classifies as its classes, and with its logits for them.

    The same call again continues a folder that was begun; a complete one is only read.

    Args:
        model: any classifier with statistics: a module, or a run folder, checkpoint, MODEL=FILE, architecture (random
            weights) or `Run`; see `pellucid.invert`. A module is moved to `device`, and otherwise as it was before.
        out: folder for class folders of PNG files, `labels.safetensors` (logits of the images as they are stored, with
            8 bits per channel) and `synthesis.json`; see `pellucid.distillation.folder`.
        per_class: number of images per class.
        preset, steps, lr, weight, statistics, verifier, shape: as in `pellucid.invert`.
        batch_size: number of images inverted together. They share their statistics, so it affects the result.
        seed: every random draw is a function of the seed and of an image's index.
        classes: names of the classes to synthesise; default all.
        device: auto, cpu, cuda, ...
        devices, nodes: number of processes per machine, and of machines; they share the batches, and the result does
            not depend on them. With more than one, call the function in a script, which is started again for each.
        quiet: show no progress bar.

    Raises:
        InputError: bad arguments, a folder with other settings or in use, or a model without statistics.
        Interrupted: Ctrl-C or SIGTERM; finished batches are kept.
    """
    began = time.monotonic()
    if per_class < 1 or batch_size < 1:
        raise InputError(f"{per_class} images per class in batches of {batch_size}: give at least 1 of each.")
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise InputError(f"{str(path)!r} is a file: give a folder.")
    with determinism(True), seeded():
        model = network_of(model, seed=seed)
        other = None if verifier is None else network_of(verifier, facts(model).normalization, seed)
        size = shape or shape_of(model)
        if size[0] not in (1, 3):
            raise InputError(f"Images of {size[0]} channels cannot be stored as pictures: use pellucid.invert.")
        found = recipe(preset, size) if isinstance(preset, str) else preset
        found = changed(found, steps=steps, lr=lr, weight=weight)
        if found.matching is not None and statistics is None:
            read_statistics(model)  # refused here, before there is a folder
        names = class_names(model, _outputs(model, size))
        wanted = _wanted(names, classes)
        manifest = describe(
            model, found, names, wanted, size, per_class=per_class, batch_size=batch_size, seed=seed,
            statistics=statistics, verifier=other,
        )  # fmt: skip
        targets = torch.tensor(wanted).repeat(per_class)
        indices = torch.arange(len(targets)).split(batch_size)
        fabric = launch(device=device, devices=devices, nodes=nodes)

        def make(number: int, how: Recipe) -> None:
            labels = targets[indices[number]]
            made = invert(
                model, labels, how, statistics=statistics, verifier=other, shape=size, seed=seed,
                indices=indices[number], quiet=True,
            )  # fmt: skip
            weights = _weights(how, made) if number == 0 else None  # what the others start from
            shards.keep(path, number, made, labels, names, seed, model, weights=weights)

        with _held(fabric, path, manifest):
            if not (path / LABELS).is_file():
                for network in (model, other) if other is not None else (model,):
                    network.to(fabric.device)
                _make_all(fabric, path, indices, found, make, quiet)
                fabric.barrier()
                if fabric.global_rank == 0:
                    shards.finish(path, len(indices), targets, names, seed)
                fabric.barrier()
            logits, labels = shards.stored_labels(path)
    return Synthesis(path, len(labels), names, Share.of(logits.argmax(1) == labels), time.monotonic() - began)


def _make_all(
    fabric: Any, path: Path, indices: Sequence[Tensor], found: Recipe, make: Callable[[int, Recipe], None], quiet: bool
) -> None:
    """Make this process's share of the batches that are not finished yet; signals stop it between two batches."""
    rank, world = fabric.global_rank, fabric.world_size
    todo = [n for n in range(rank, len(indices), world) if not shards.shard(path, n).is_file()]
    with _stoppable(path) as stop_if_asked, bar(len(todo), quiet=quiet or rank > 0) as shown:
        if isinstance(found.start, Generator) and found.start.again < 1:
            if 0 in todo:
                shown.update(0, f"first batch of {len(indices[0])} images")
                make(todo.pop(0), found)
                stop_if_asked()
            fabric.barrier()
            found = _continued(found, found.start, path)
        for done, number in enumerate(todo):
            shown.update(done, f"batch of {len(indices[number])} images")
            make(number, found)
            stop_if_asked()


@contextlib.contextmanager
def _held(fabric: Any, path: Path, manifest: dict[str, Any]) -> Iterator[None]:
    """Begin or continue the folder, and hold its lock while the block runs."""
    lock, problem = None, None
    if fabric.global_rank == 0:
        try:
            lock = begin(path, manifest)
        except InputError as error:
            problem = str(error)
    problem = fabric.broadcast(problem)  # or the other processes would wait for the first for ever
    if problem:
        raise InputError(problem)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextlib.contextmanager
def _stoppable(path: Path) -> Iterator[Callable[[], None]]:
    """A function that ends the block with `Interrupted` once a signal was received."""
    with catch_signals() as received:

        def stop() -> None:
            if received:
                raise Interrupted(received[0], f"Stopped; the same command continues the synthesis in {str(path)!r}.")

        yield stop


def _continued(found: Recipe, start: Generator, path: Path) -> Recipe:
    """The recipe of the batches after the first, which start from the generator found for it."""
    steps = max(1, round(start.again * found.schedule.steps))
    start = replace(start, weights=shards.generator_weights(path))
    return replace(found, start=start, schedule=replace(found.schedule, steps=steps))


def _weights(found: Recipe, made: Inversion) -> Tensor | None:
    """The weights of the generator that drew a batch; None without a generator."""
    if not isinstance(found.start, Generator) or made.variables is None:
        return None
    return found.start.after(made.variables, len(made.images)).weights


def shape_of(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of the images that `model` takes, as its facts say; InputError where they do not."""
    known = facts(model)
    if known.in_channels is None or known.image_size is None:
        raise InputError(f"This {type(model).__name__} does not say which image shape it takes: give shape=(C, H, W).")
    return known.in_channels, *known.image_size


@torch.no_grad()
def _outputs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """The number of classes that the model distinguishes."""
    with evaluating(model):
        return logits_from(model, torch.zeros(1, *shape, device=device_of(model))).shape[1]


def _wanted(names: Sequence[str], classes: Sequence[str] | None) -> list[int]:
    """Labels of the classes asked for, in the model's order."""
    if classes is None:
        return list(range(len(names)))
    if unknown := [name for name in classes if name not in names]:
        raise InputError(f"The model has no class {unknown[0]!r}: choose from {', '.join(names[:20])}.")
    return [label for label, name in enumerate(names) if name in classes]
