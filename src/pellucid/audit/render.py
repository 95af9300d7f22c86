"""The page itself, one self-contained HTML file. It knows no card by name: it shows sections and their blocks."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pellucid.audit.audit import Audit
from pellucid.audit.figures import PREFIX
from pellucid.audit.thumbnails import Thumbnails
from pellucid.audit.vocabulary import Section
from pellucid.audit.words import percent, percent_range, printable

FOLDED = 40  # classes from which on their cards are folded


def render(
    audit: Audit, record: dict[str, Any], sections: dict[str, Section], by_class: list[dict[str, Section]]
) -> str:
    """The page as HTML.

    Its security policy admits its own style and script, by their hashes, pictures as data URIs, and nothing else.
    """
    import jinja2
    from markupsafe import Markup

    thumbnails = Thumbnails()
    thumbnails.offer(sections.values())
    every = audit.evaluation.to_json()["per_class"]
    of_class = [every[index] for index in audit.present]
    # Where room is short, the classes with the lowest accuracy keep their pictures.
    for index in sorted(range(len(by_class)), key=lambda i: of_class[i]["accuracy"] if of_class[i]["n"] else 2):
        thumbnails.offer(by_class[index].values())
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
        source=thumbnails.source,
        unique=lambda: f"caption-{next(counter)}",
        drawing=lambda svg: Markup(svg.replace(PREFIX, f"figure-{next(counter)}-")),
        percent=percent,
        percent_range=percent_range,
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
        many=len(by_class) > FOLDED,
        provenance=list(_provenance(record, audit.evaluation.n, thumbnails.left_out)),
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _provenance(record: dict[str, Any], tested: int, left_out: int) -> Iterator[tuple[str, str]]:
    """Rows (label, text): model, data, versions, and what the page leaves out."""
    made, model, data = record["made"], record["model"], record["data"]
    size = "×".join(map(str, [data["channels"], *data["image_size"]]))
    of_data = ("num_classes", "in_channels", "image_size")  # stated with the data below
    shape = {
        key: value for key, value in model["description"].items() if key not in of_data and value not in ({}, None)
    }
    name = shape.pop("model", "a model")
    details = ", ".join([f"{name}", *(f"{key} {value}" for key, value in shape.items())])
    yield "Model", details if model["parameters"] is None else f"{details}; {model['parameters']:,} parameters"
    if model["source"]:
        yield "Source", model["source"]
    counts = ", ".join(f"{count:,} {split}" for split, count in data["images"].items() if count)
    yield "Data", f"{data['name']}: {counts} images of {size}"
    if tested < data["images"]["test"]:
        yield "Sample", f"{tested:,} of the {data['images']['test']:,} test images"
    yield "Fingerprint", data["fingerprint"]
    yield "Seed", f"{made['seed']}"
    yield "Made", f"{made['date']} on {made['device']}"
    versions = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    yield "Versions", f"{versions}, Python {made['python']}"
    for module, why in made["broken_plugins"].items():
        yield "Left out", f"cards of the plugin {module}, which could not be imported ({why})"
    for sentence in record["left_out"]:
        yield "Left out of audit.json", sentence
    if left_out:
        yield (
            "Left out",
            f"{left_out:,} pictures, to keep the page under about 10 MB; classes with the lowest accuracy keep theirs",
        )
