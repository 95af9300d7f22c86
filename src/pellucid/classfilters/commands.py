"""The command `decompose`, and the flag --decomposed of other commands. Nothing heavy is imported until one runs."""

from __future__ import annotations

import json as json_
import shlex
from pathlib import Path
from typing import Any, Literal

from pellucid.core.errors import InputError, near, shown
from pellucid.core.flags import SourceSettings
from pellucid.core.ranges import Count, Limit, Seed

CLASSES, FILTERS = 20, 8  # rows of the table of filters, and filters per row


def decompose(
    checkpoint: str,
    /,
    *,
    out: str,
    source: SourceSettings,
    k: Count = 5,
    rule: Literal["evidence", "frequency", "mass", "omp", "l1", "gradient", "weight", "random", "gates"] = "evidence",
    layer: str | None = None,
    budget: Count | None = None,
    fit: Literal["none", "head", "network"] = "none",
    soft_labels: bool = False,
    classes: list[str] | None = None,
    split: Literal["train", "val", "test"] = "train",
    device: str = "auto",
    batch_size: Count = 256,
    workers: Limit = 0,
    seed: Seed = 0,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Find the filters that decide each class, and how accurate the model is with these alone.

    Writes filters.json, result.json and, for the last layer, decomposed.safetensors, which evaluate and open read.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; as MODEL=FILE, or with --model),
            or the name of an architecture (resnet18, timm:resnet18), which is built with random weights.
        out: folder to write the files to.
        k: filters per class.
        rule: how filters are chosen; random is the control, gates are those of a run trained with class-gates.
        layer: inner layer whose filters to choose (gradient, frequency, mass); default the inputs of the last layer.
        budget: filters of all classes together, in place of k per class.
        fit: then fit the last layer to these images (head, seconds), or train the whole network for one epoch.
        soft_labels: fit to the full model's probabilities in place of labels.
        classes: keep the outputs of these classes only; a file in their place, or first among them, names all of the
            model's classes in its order, one per line, if the checkpoint does not.
        split: part of the data that filters are found and fitted on, train or val; accuracies are measured on the test
            split, which is refused here.
        device: auto, cpu, cuda, ...
        batch_size: images per step.
        workers: processes that decode images of a data set too large for memory.
        seed: of random filters, of the order of training, and of an architecture's weights.
        overwrite: replace files at --out that this command did not write.
        json: print everything as one JSON object instead of tables.
        quiet: print nothing but errors.
    """
    from pellucid.classfilters.controls import draw_like
    from pellucid.classfilters.evidence import measure
    from pellucid.classfilters.judge import Judge, gates_of, set_scores
    from pellucid.classfilters.rules import COUNTED, FITTED, choose
    from pellucid.core import terminal
    from pellucid.core.data.splits import for_fitting
    from pellucid.core.facts import facts
    from pellucid.core.files.atomic import together, write_atomic
    from pellucid.core.files.ours import check_outputs, holds, network_of, outputs
    from pellucid.core.network.checkpoint import save
    from pellucid.core.source import open_source

    if layer is not None and (fit != "none" or classes is not None):
        raise InputError("--fit and --classes apply to the last layer: leave out --layer.")
    if soft_labels and fit == "none":
        raise InputError("--soft-labels are what --fit learns from: add --fit head or --fit network.")
    files = {
        "filters.json": holds("pellucid", "indices", "shares"),
        "result.json": holds("checkpoint", "rule", "layer", "sets"),
        "decomposed.safetensors": network_of("decompose"),
    }
    check_outputs(outputs(out, files), overwrite, command="decompose", sources=[checkpoint, source.data])
    listed = classes[0] if classes and Path(classes[0]).is_file() else None
    classes = classes if listed is None else (classes or [])[1:] or None
    found = open_source(checkpoint, source, device=device, seed=seed, classes=listed)
    if not (json or quiet):
        terminal.assumed(found.assumed)
    for part in ("train", split):
        for_fitting(found.dataset.part(part), "Filters are found and fitted")
    unknown = [name for name in classes or () if name not in found.dataset.classes]
    if unknown or (classes is not None and len(set(classes)) < 2):
        hint = near(unknown[0], found.dataset.classes, limit=20) if unknown else ""
        wrong = f"{shown(unknown[0])} is unknown" if unknown else f"{shown(' '.join(classes or ()))} is too few"
        raise InputError(f"--classes {wrong}: {hint or 'name two or more classes of the data.'}")
    run: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    seen = measure(
        found.model,
        found.dataset,
        layer,
        tops=(k,) if rule in COUNTED else (),
        covariance=rule in FITTED,
        gradient=rule == "gradient",
        split=split,
        **run,
    )
    gates = gates_of(found, seen.layer, k, budget, required=rule == "gates")
    filters = gates if rule == "gates" and gates is not None else choose(seen, k, rule, budget=budget, seed=seed)
    (drawn,) = draw_like(filters.indices, filters.width, draws=1, seed=seed)
    compared = {rule: filters.indices, "random": drawn, **({"gates": gates.indices} if gates else {})}
    result: dict[str, Any] = {
        "checkpoint": checkpoint, "data": found.dataset.name, "split": split, "rule": rule, "k": k, "budget": budget,
        "layer": filters.layer, "images": int(seen.counts.sum()), "seed": seed, "assumed": list(found.assumed),
        "filters": sum(map(len, filters.indices)),
        "classes": [
            {"class": name, "filters": list(chosen), "shares": list(shares)}
            for name, chosen, shares in zip(filters.classes, filters.indices, filters.shares, strict=True)
        ],
        "sets": [set_scores(name, sets, filters.width) for name, sets in compared.items()],
    }  # fmt: skip
    new = None
    if seen.head is not None:
        judge = Judge(found, seen, classes, split, seed, **run)
        result["accuracy"] = judge.rows(filters, gates)
        new, rows = judge.network(filters, fit, soft_labels=soft_labels)
        result["accuracy"] += rows
    folder = Path(out)
    with together():
        filters.save(folder / "filters.json")
        write_atomic(folder / "result.json", json_.dumps(result, indent=1) + "\n")
        if new is not None:
            save(new, folder / "decomposed.safetensors", command="decompose")
    if json:
        terminal.say(json_.dumps(result))
    elif not quiet:
        _show(found.title, result)
        terminal.say(f"Wrote {folder / 'filters.json'} and result.json" + (", decomposed.safetensors" if new else ""))
        if new is not None and classes is None and facts(new).description:
            words = ["pellucid", "evaluate", str(folder / "decomposed.safetensors"), "--data", found.dataset.name]
            words += ["--model", code] if (code := facts(new).code) else []
            words += [] if listed is None else ["--classes", listed]
            words += [] if source.image_size is None else ["--image-size", str(source.image_size)]
            terminal.say(f"Next: {shlex.join(words)}")
    return 0


def _show(title: str, result: dict[str, Any]) -> None:
    """Print the tables of a result: filters, accuracies, and how much the classes' sets overlap."""
    from pellucid.core import terminal

    rows = []
    for entry in result["classes"][:CLASSES]:
        listed = [f"{j} ({100 * share:.0f} %)" for j, share in zip(entry["filters"], entry["shares"], strict=True)]
        rows.append([entry["class"], ", ".join(listed[:FILTERS]) + (", ..." if len(listed) > FILTERS else "")])
    if len(result["classes"]) > CLASSES:
        rows.append([f"... {len(result['classes']) - CLASSES} more classes", "in filters.json"])
    terminal.show(f"{title}: filters of {result['layer']} by {result['rule']}", ["class", "filters (share)"], rows)
    if table := result.get("accuracy"):
        shown = [[r["what"], f"{r['filters']:.4g}", terminal.percent(r["accuracy"], r["interval"])] for r in table]
        headers = ["", "filters per class", "accuracy (95 % interval)"]
        terminal.show(f"Accuracy on {table[0]['n']} test images of {result['data']}", headers, shown)
    headers = ["", "overlap (Jaccard)", "by chance", "mutual information, nats"]
    shown = [[r["what"], *(f"{r[key]:.4f}" for key in ("jaccard", "chance", "nats"))] for r in result["sets"]]
    terminal.show("Overlap between the sets of different classes", headers, shown)


def decomposed(file: str, model: Any, /) -> Any:
    """Decompose the last layer first.

    Args:
        file: sets of filters for the network's last layer, as in filters.json or the papers' JSON, or
            decomposed.safetensors.
        model: the network.
    """
    from pellucid.classfilters.stored import with_file

    return with_file(model, file)
