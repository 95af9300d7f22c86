"""`pellucid open`: one pass over the test images, the cards that read it, `index.html` and `audit.json`.

    audit.json   schema    1; a number changes its place or meaning only together with this
                 made      versions, date, device, seed
                 model     source, description, parameters
                 data      name, fingerprint, classes, sizes, mean, std
                 <card>    the numbers of each card about the model, under its name
                 classes   {class: {card: the numbers of each card about that class}}
                 gates     each gate with the value found and whether it passed
                 passed    whether all gates passed

The base cards hold, among others: accuracy.top1, .interval (low, high), .top5, .loss, .lowest.accuracy;
learning.best_epoch, .best_val_accuracy; calibration.ece, .control.p95; confusion.errors, .pairs, .matrix;
noise.mean_accuracy, noise.severities.5.accuracy, noise.kinds.shot_noise.accuracy; and of a class
classes.NAME.answers.accuracy, .precision, .noise_accuracy. Shares are in [0, 1]; what has no value is null.

The page knows no card by name: it shows sections and blocks (`sections.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import shlex
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from pellucid.audit.album import Album
from pellucid.audit.audit import Audit, make_audit
from pellucid.audit.cards import (
    confusion,  # noqa: F401 (they register the base cards)
    noise,  # noqa: F401 (they register the base cards)
)
from pellucid.audit.figures import PREFIX, printable
from pellucid.audit.gates import Gate, GateResult, check
from pellucid.audit.registry import sections_of
from pellucid.audit.vocabulary import Section
from pellucid.audit.words import between, percent
from pellucid.core.errors import InputError
from pellucid.core.files.atomic import write_atomic
from pellucid.core.source import Source, open_source
from pellucid.core.train.environment import describe_data, describe_environment
from pellucid.core.train.run import Run

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """Where the page is, what `audit.json` holds, how the gates came out, and each section's finding in a sentence."""

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
    device: str = "auto",
    batch_size: int = 512,
    seed: int = 0,
    run: Run | str | os.PathLike[str] | None = None,
    source: str | None = None,
) -> Report:
    """Read a trained classifier: write `out/index.html` (one self-contained file) and `out/audit.json`.

    Args:
        model: a network images (B, C, H, W) -> logits (B, K), a checkpoint, or a run folder.
        data: a name as for training, or a data set; by default what the run was trained on.
        out: folder for the two files, which are replaced if they exist.
        gate: conditions on numbers of `audit.json`, such as "accuracy.top1 >= 0.95".
        device: auto, cpu, cuda, ...
        batch_size: images in a step.
        seed: of the noise and of every other draw.
        run: the run that made `model`, for its learning curve, where `model` is not that run itself.
        source: where the model came from, for the record; default the path given as `model`, or the run's.

    Raises:
        InputError: the model does not fit the data, a gate names nothing in the audit, or an input cannot be read.
            Nothing is written then.
    """
    wanted = [
        one if isinstance(one, Gate) else Gate.parse(one) for one in ([gate] if isinstance(gate, str | Gate) else gate)
    ]
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file: give a folder for the page with --out.")
    found = _find(model, data, run, device, seed)
    if source is None:
        named = model if isinstance(model, str | os.PathLike) else found.run.path if found.run else None
        source = None if named is None else os.fspath(named)
    audit = make_audit(found.model, found.dataset, run=found.run, device=found.device, batch_size=batch_size, seed=seed)
    record, sections, by_class = read(audit, source)
    results = check(wanted, record)
    record["gates"] = [result.to_json() for result in results]
    record["passed"] = all(result.passed for result in results)
    page = render(audit, record, sections, by_class)
    write_atomic(folder / "audit.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    # A class name from a file name can hold what UTF-8 cannot.
    write_atomic(folder / "index.html", page.encode("utf-8", "replace"))
    findings = [f"{one.title}: {one.summary}" for one in sections.values() if one.summary]
    return Report(folder / "index.html", record, record["passed"], results, findings)


def _find(model: Any, data: Any, run: Any, device: str, seed: int) -> Source:
    """The network, the data to look at it with, and the run that made it."""
    origin = run if run is None or isinstance(run, Run) else Run(run)
    if model is None:
        if origin is None:
            raise InputError("There is nothing to open: give a model, a checkpoint or a run folder.")
        model = origin
    return open_source(model, data=data, run=origin, device=device, seed=seed)


def read(
    audit: Audit, source: str | None = None
) -> tuple[dict[str, Any], dict[str, Section], list[dict[str, Section]]]:
    """Run all cards: the content of `audit.json` without gates, the model's sections, and those of each class."""
    sections = sections_of(audit)
    by_class = [sections_of(audit, index) for index in range(len(audit.classes))]
    environment = describe_environment()
    record = {
        "schema": SCHEMA,
        "made": {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "packages": environment["packages"],
            "python": environment["python"],
            "system": environment["system"],
            "device": audit.device,
            "seed": audit.seed,
            "batch_size": audit.batch_size,
        },
        "model": {
            "source": source,
            "description": audit.description,
            "parameters": sum(parameter.numel() for parameter in audit.model.parameters()),
        },
        "data": describe_data(audit.dataset),
        **{name: section.data for name, section in sections.items()},
        "classes": {
            name: {card: section.data for card, section in of_class.items()}
            for name, of_class in zip(audit.classes, by_class, strict=True)
        },
    }
    return plain(record), sections, by_class


def plain(value: Any) -> Any:
    """`value` in JSON's own types; a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def tell(report: Report) -> int:
    """Print what the page says in short, the gates, and where it is; 0 if all gates hold, else 1 (an exit status)."""
    from pellucid.core import terminal

    for sentence in report.findings:
        terminal.say(sentence)
    if report.gates:
        rows = [[str(r.gate), f"{r.value:.4g}", "holds" if r.passed else "fails"] for r in report.gates]
        terminal.show("Gates", ["gate", "value", ""], rows)
    terminal.say(f"Numbers: {report.path.parent / 'audit.json'}")
    terminal.say(f"Page: {report.path}")
    source = report.audit["model"]["source"]
    if source is not None and not report.gates and (Path(source) / "settings.yaml").is_file():
        floor = math.floor(100 * report.audit["accuracy"]["interval"][0])
        terminal.say(f"Next: pellucid open {shlex.quote(source)} --gate 'accuracy.top1 >= {floor}%'")
    return 0 if report.passed else 1


# --- the page ---


def render(
    audit: Audit, record: dict[str, Any], sections: dict[str, Section], by_class: list[dict[str, Section]]
) -> str:
    """The page. Its policy admits its own style and script by hash, pictures as data, and nothing else."""
    import jinja2
    from markupsafe import Markup

    album = Album()
    album.offer(sections.values())
    of_class = audit.evaluation.to_json()["per_class"]
    # Where room is short, the classes that need a look keep their pictures.
    for index in sorted(range(len(by_class)), key=lambda i: of_class[i]["accuracy"] if of_class[i]["n"] else 2):
        album.offer(by_class[index].values())
    counter = iter(range(10**9))

    templates = Path(__file__).parent / "templates"
    style, script = ((templates / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.globals.update(
        source=album.source,
        unique=lambda: f"caption-{next(counter)}",
        drawing=lambda svg: Markup(svg.replace(PREFIX, f"figure-{next(counter)}-")),
        percent=percent,
        between=between,
    )
    return environment.get_template("page.html").render(
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        title=audit.description.get("model", "a model"),
        record=record,
        evaluation=audit.evaluation,
        control=max(row["n"] for row in of_class) / audit.evaluation.n,
        gates=record["gates"],
        sections=sections,
        classes=[
            {**row, "name": row["class"], "sections": shown} for row, shown in zip(of_class, by_class, strict=True)
        ],
        many=len(by_class) > 40,
        provenance=list(_provenance(record, album.left_out)),
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _provenance(record: dict[str, Any], left_out: int) -> Iterator[tuple[str, str]]:
    made, model, data = record["made"], record["model"], record["data"]
    size = "×".join(map(str, [data["channels"], *data["image_size"]]))
    of_data = ("num_classes", "in_channels", "image_size")  # said of the data below
    shape = {
        key: value for key, value in model["description"].items() if key not in of_data and value not in ({}, None)
    }
    name = shape.pop("model", "a model")
    yield (
        "Model",
        ", ".join([f"{name}", *(f"{key} {value}" for key, value in shape.items())])
        + f"; {model['parameters']:,} parameters",
    )
    if model["source"]:
        yield "Source", model["source"]
    counts = ", ".join(f"{count:,} {split}" for split, count in data["images"].items())
    yield "Data", f"{data['name']}: {counts} images of {size}"
    yield "Fingerprint", data["fingerprint"]
    yield "Seed", f"{made['seed']}"
    yield "Made", f"{made['date']} on {made['device']}"
    yield (
        "Versions",
        ", ".join(f"{name} {version}" for name, version in made["packages"].items()) + f", Python {made['python']}",
    )
    if left_out:
        yield (
            "Left out",
            f"{left_out:,} pictures, to keep the page under about 10 MB; the most confused classes keep theirs",
        )
