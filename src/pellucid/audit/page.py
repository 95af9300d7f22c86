"""`pellucid.open`: run the cards over one pass of the test images, and write `index.html` and `audit.json`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pellucid.audit.audit import make_audit
from pellucid.audit.gates import Gate, GateResult, check
from pellucid.audit.record import read
from pellucid.audit.render import render
from pellucid.core.data.dataset import Dataset
from pellucid.core.errors import InputError
from pellucid.core.files.atomic import write_together
from pellucid.core.measure.classes import Classes
from pellucid.core.modes import evaluating, seeded
from pellucid.core.seeds import seed_of
from pellucid.core.source import Source, open_source
from pellucid.core.train.run import Run


@dataclass(frozen=True)
class Report:
    """What `open` wrote.

    Attributes:
        path: of the page; `audit.json` lies next to it.
        audit: the content of `audit.json`.
        passed: whether all gates passed.
        gates: the gates with the values found.
        findings: one sentence per section, as under "In short" on the page.
    """

    path: Path
    audit: dict[str, Any]
    passed: bool
    gates: list[GateResult]
    findings: list[str]


def open(
    model: nn.Module | Run | str | os.PathLike[str] | None = None,
    data: Any = None,
    out: str | os.PathLike[str] = "report",
    *,
    gate: str | Gate | Iterable[str | Gate] = (),
    max_images: int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    run: Run | str | os.PathLike[str] | None = None,
    source: str | None = None,
    classes: Classes | None = None,
    assumed: Sequence[str] | None = None,
) -> Report:
    """Audit a trained classifier: write `out/index.html`, one self-contained page, and `out/audit.json`.

    The mode of every submodule, the random state and torch's settings are as before afterwards.

    Args:
        model: a network images (B, C, H, W) -> logits (B, K), a run folder, a checkpoint, MODEL=FILE for a foreign
            checkpoint, or the name of an architecture (random weights).
        data: a data set's name as in `load_data`, a `Dataset`, (images already normalised, labels), or an iterable of
            such pairs (a DataLoader). Default: what the run was trained on.
        out: folder for the two files, which are replaced if they exist.
        gate: conditions on numbers of `audit.json`, such as "accuracy.top1 >= 0.95".
        max_images: maximum number of test images, sampled with `seed`; default all.
        device: auto, cpu, cuda, ...; the model is moved there.
        batch_size: images per forward pass; default 512, or fewer for images beyond 45 x 45 pixels.
        seed: of noise, samples and every other random draw.
        run: the run that made `model`, for its learning curve, where `model` is not that run itself.
        source: where the model came from, for the record; default the path given as `model`, or the run's.
        classes: names of the model's classes in the order of its outputs, or a file with one per line; as in
            `pellucid.evaluate`.
        assumed: sentences on what was assumed of the model, for the page's front; default those of opening it here.

    Raises:
        InputError: the model does not fit the data, a gate names nothing in the audit, or an input cannot be read.
            Nothing is written then.

    Example:
        >>> report = open("runs/mine", gate="accuracy.top1 >= 95%")  # doctest: +SKIP
        >>> report.passed, report.audit["accuracy"]["interval"]  # doctest: +SKIP
    """
    gates = [gate] if isinstance(gate, str | Gate) else gate
    wanted = [one if isinstance(one, Gate) else Gate.parse(one) for one in gates]
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file: give a folder for the page with --out.")
    if max_images is not None and max_images < 1:
        raise InputError(f"max_images={max_images} is out of range: give at least 1.")
    found = _resolved(model, data, run, device, seed, classes)
    if source is None:
        named = model if isinstance(model, str | os.PathLike) else found.run.path if found.run else None
        source = None if named is None else os.fspath(named)
    dataset = found.dataset if max_images is None else _sampled(found.dataset, max_images, seed)
    with evaluating(found.model), seeded():
        audit = make_audit(found.model, dataset, run=found.run, device=found.device, batch_size=batch_size, seed=seed)
        record, sections, by_class = read(audit, source, of=found.dataset)
        results = check(wanted, record)
        record["assumed"] = list(found.assumed if assumed is None else assumed)
        record["gates"] = [result.to_json() for result in results]
        record["passed"] = all(result.passed for result in results)
        page = render(audit, record, sections, by_class)
    write_together(
        {
            folder / "audit.json": json.dumps(record, indent=1, allow_nan=False) + "\n",
            # A class name taken from a file name can hold what UTF-8 cannot.
            folder / "index.html": page.encode("utf-8", "replace"),
        }
    )
    findings = [f"{one.title}: {one.summary}" for one in sections.values() if one.summary]
    return Report(folder / "index.html", record, record["passed"], results, findings)


def _resolved(model: Any, data: Any, run: Any, device: str, seed: int, classes: Classes | None) -> Source:
    """The network, the data to audit it on, and the run that made it."""
    origin = run if run is None or isinstance(run, Run) else Run(run)
    if model is None:
        if origin is None:
            raise InputError("There is nothing to open: give a model, a checkpoint or a run folder.")
        model = origin
    if data is None and origin is None and isinstance(model, nn.Module):
        raise InputError("The model does not say what it was trained on: give data=.")
    return open_source(model, data=data, run=origin, device=device, seed=seed, classes=classes)


def _sampled(dataset: Dataset, limit: int, seed: int) -> Dataset:
    """`dataset` with at most `limit` of its test images."""
    generator = torch.Generator().manual_seed(seed_of("test images", seed))
    order = torch.randperm(len(dataset.test), generator=generator)
    return dataclasses.replace(dataset, test=dataset.test.take(order[:limit].sort().values))
