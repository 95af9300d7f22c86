"""The command of this idea, and its flag of others. Nothing heavy is imported until one runs."""

from __future__ import annotations

import json as json_
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings

if TYPE_CHECKING:
    from torch import nn

    from pellucid.classfilters.sets import ClassFilters
    from pellucid.core.source import Source

DRAWS = 10  # random sets that stand beside a rule's


def decompose(
    checkpoint: str,
    /,
    *,
    out: str,
    source: SourceSettings,
    k: int = 5,
    rule: Literal["evidence", "frequency", "mass", "omp", "l1", "gradient", "weight", "random", "gates"] = "evidence",
    layer: str | None = None,
    budget: int | None = None,
    fit: Literal["none", "head", "network"] = "none",
    distil: bool = False,
    classes: list[str] | None = None,
    split: Literal["train", "val", "test"] = "train",
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 0,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Find the filters that decide each class, and what is left of the model with these alone.

    Writes filters.json, result.json and, of the last layer, decomposed.safetensors, which evaluate and open read.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model), or the name of an
            architecture (resnet18, timm:resnet18), which is built with random weights.
        out: folder that the files are written to.
        k: filters a class.
        rule: how they are chosen; random is the control, gates are those of a run trained with class-gates.
        layer: inner layer whose filters are meant (gradient, frequency, mass); default the inputs of the last layer.
        budget: filters of all classes together, instead of k for each.
        fit: fit the last layer to the training images (head, seconds), or train the whole network once through.
        distil: fit to the full model's probabilities instead of labels.
        classes: keep the outputs of these classes only.
        split: part of the data that the filters are found and fitted on; accuracies are of the test split.
        device: auto, cpu, cuda, ...
        batch_size: images in a step.
        workers: processes that decode images of a data set too large for memory.
        seed: of random filters, of the order of training, and of an architecture's weights.
        json: print everything as JSON instead of tables.
    """
    from pellucid.classfilters.evidence import measure
    from pellucid.classfilters.rules import COUNTED, FITTED, choose
    from pellucid.core import terminal
    from pellucid.core.facts import facts
    from pellucid.core.files.atomic import write_atomic
    from pellucid.core.source import open_source

    if layer is not None and (fit != "none" or classes is not None):
        raise InputError("--fit and --classes are of the last layer: leave out --layer.")
    if Path(out).exists() and not Path(out).is_dir():
        raise InputError(f"--out {out!r} is a file: name a folder.")
    found = open_source(checkpoint, source, device=device, seed=seed)
    unknown = [name for name in classes or () if name not in found.dataset.classes]
    if unknown or (classes is not None and len(set(classes)) < 2):
        raise InputError(
            f"--classes {' '.join(classes or ())} must be two or more of {', '.join(found.dataset.classes[:20])}."
        )
    seen = measure(
        found.model,
        found.dataset,
        layer,
        tops=(k,) if rule in COUNTED else (),
        covariance=rule in FITTED,
        gradient=rule == "gradient",
        split=split,
        batch_size=batch_size,
        workers=workers,
    )
    gates = _gates(found, seen.layer, k, budget, wanted=rule == "gates")
    filters = gates if rule == "gates" and gates is not None else choose(seen, k, rule, budget=budget, seed=seed)
    controls = [choose(seen, k, "random", budget=budget, refit=rule in FITTED, seed=seed + n) for n in range(DRAWS)]
    compared = {rule: filters, "random": controls[0], **({"gates": gates} if gates else {})}
    result: dict[str, Any] = {
        "checkpoint": checkpoint, "data": found.dataset.name, "split": split, "rule": rule, "k": k, "budget": budget,
        "layer": filters.layer, "images": int(seen.counts.sum()), "seed": seed,
        "filters": sum(map(len, filters.indices)), "sets": [_set_scores(name, one) for name, one in compared.items()],
    }  # fmt: skip
    folder = Path(out)
    new = None
    if seen.head is not None:
        run: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
        new, result["accuracy"] = _accuracy(found, filters, controls, gates, classes, fit, distil, split, seed, run)
    filters.save(folder / "filters.json")
    write_atomic(folder / "result.json", json_.dumps(result, indent=1) + "\n")
    if new is not None:
        from pellucid.core.network.checkpoint import save

        save(new, folder / "decomposed.safetensors")
    if json:
        terminal.say(json_.dumps(result))
        return 0
    rows = []
    for name, chosen, shares in list(zip(filters.classes, filters.indices, filters.shares, strict=True))[:20]:
        listed = [f"{j} ({100 * share:.0f} %)" for j, share in list(zip(chosen, shares, strict=True))[:8]]
        rows.append([name, ", ".join(listed) + (", ..." if len(chosen) > 8 else "")])
    if len(filters.classes) > 20:
        rows.append([f"... {len(filters.classes) - 20} more classes", "in filters.json"])
    terminal.show(f"{found.title}: filters of {filters.layer} by {rule}", ["class", "filter (share)"], rows)
    if "accuracy" in result:
        table = result["accuracy"]
        shown = [[row["what"], row["filters"], terminal.percent(row["accuracy"], row["interval"])] for row in table]
        title = f"Accuracy on {table[0]['n']} test images of {found.dataset.name}"
        terminal.show(title, ["", "filters", "accuracy (95 % interval)"], shown)
    columns = {"what": "", "jaccard": "overlap (Jaccard)", "chance": "by chance", "nats": "mutual information, nats"}
    shown = [[row["what"], *(f"{row[key]:.4f}" for key in list(columns)[1:])] for row in result["sets"]]
    terminal.show("Sets of different classes", list(columns.values()), shown)
    terminal.say(f"Wrote {folder / 'filters.json'} and result.json" + (", decomposed.safetensors" if new else ""))
    if new is not None and classes is None and facts(new).description:
        words = ["pellucid", "evaluate", str(folder / "decomposed.safetensors"), "--data", found.dataset.name]
        terminal.say(f"Next: {shlex.join(words)}")
    return 0


def _accuracy(
    source: Source,
    filters: ClassFilters,
    controls: list[ClassFilters],
    gates: ClassFilters | None,
    classes: list[str] | None,
    fit: str,
    distil: bool,
    split: str,
    seed: int,
    run: dict[str, Any],
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The decomposed model, fitted if asked for, and the rows of the table: each beside its control."""
    from pellucid.classfilters import install
    from pellucid.classfilters.compare_heads import accuracies
    from pellucid.classfilters.fit import fit as fit_to
    from pellucid.classfilters.head import head_of
    from pellucid.core.measure.share import wilson

    model, dataset = source.model, source.dataset
    outputs = None if classes is None else [dataset.classes.index(name) for name in classes]
    new, control = install.decomposed(model, filters), install.decomposed(model, controls[0])
    own = {"rule": head_of(new)}
    own |= {f"random {n}": head_of(install.decomposed(model, sets)) for n, sets in enumerate(controls)}
    if gates is not None and gates is not filters:
        own["gates"] = head_of(install.decomposed(model, gates))
    size = sum(map(len, filters.indices)) / len(filters.indices)
    shown = f"{size:g}" if size == int(size) else f"{size:.1f}"
    cut = own if outputs is None else {key: head.subset(outputs) for key, head in own.items()}
    right, n = accuracies(model, cut, dataset, outputs=outputs, **run)

    def row(what: str, correct: int) -> dict[str, Any]:
        interval = list(wilson(correct, n))
        return {"what": what, "filters": shown, "accuracy": correct / n, "interval": interval, "n": n}

    shares = [right[f"random {draw}"] / n for draw in range(len(controls))]
    rows = [
        {**row("full model", right["model"]), "filters": str(filters.width)},
        row(f"{filters.rule}, untouched" if filters.weights is None else f"{filters.rule}, refit", right["rule"]),
        {
            **row(f"random, mean and range of {len(shares)}", 0),
            "accuracy": sum(shares) / len(shares),
            "interval": [min(shares), max(shares)],
        },
    ]
    if "gates" in right:
        rows.insert(2, row("gates, untouched", right["gates"]))
    if fit != "none":
        for what, network in ((filters.rule, new), ("random", control)):
            teacher = model if distil else None
            fit_to(network, dataset, fit, teacher=teacher, split=split, seed=seed, workers=run["workers"])
            found = head_of(network)
            found = found if outputs is None else found.subset(outputs)
            right, _ = accuracies(network, {"fitted": found}, dataset, outputs=outputs, **run)
            rows.append(row(f"{what}, {fit} fitted", right["fitted"]))
    if classes is not None:
        new = install.cut(new, classes)
    return new, rows


def _gates(found: Source, layer: str, k: int, budget: int | None, *, wanted: bool) -> ClassFilters | None:
    """The gates of `layer` that the run trained, as sets; None without, unless they are wanted."""
    from pellucid.classfilters.gates import class_gates

    try:
        if found.run is None:
            raise InputError(f"{found.title!r} is no run, and only a run has gates: name its folder.")
        gates = class_gates(found.run, k, budget=budget)
        if gates.layer != layer:
            raise InputError(f"The gates of {found.title!r} are of {gates.layer!r}: name it with --layer.")
    except InputError:
        if wanted:
            raise
        return None
    return gates


def _set_scores(what: str, filters: ClassFilters) -> dict[str, Any]:
    """Overlap of the classes' sets, its level by chance, and their mutual information as published."""
    from pellucid.classfilters.overlap import jaccard, mutual_information

    overlap = jaccard(filters.indices, filters.width)
    nats = mutual_information(filters.indices, filters.width).mean
    return {"what": what, "jaccard": overlap.mean, "chance": overlap.chance, "nats": nats}


def decomposed(file: str, model: Any, /) -> Any:
    """A network with a decomposed last layer.

    Args:
        file: sets of filters for the network's last layer, as in filters.json or the papers' JSON, or
            decomposed.safetensors.
        model: the network.
    """
    from pellucid.classfilters.stored import with_file

    return with_file(model, file)
