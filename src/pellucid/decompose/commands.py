"""The command of this idea. Nothing heavy is imported until it runs."""

from __future__ import annotations

import json as json_
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pellucid.core.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from pellucid.core.source import Source
    from pellucid.decompose.select import ClassFilters

DRAWS = 10  # random sets that stand beside a rule's


def decompose(
    checkpoint: str,
    /,
    *,
    out: str,
    data: str | None = None,
    model: str | None = None,
    k: int = 5,
    rule: Literal["evidence", "frequency", "mass", "omp", "l1", "gradient", "weight", "random"] = "evidence",
    layer: str | None = None,
    budget: int | None = None,
    fit: Literal["none", "head", "network"] = "none",
    distil: bool = False,
    classes: list[str] | None = None,
    split: Literal["train", "val", "test"] = "train",
    image_size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 0,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Find the filters that decide each class, and what is left of the model with these alone.

    Writes filters.json, result.json and, of the last layer, decomposed.safetensors, which evaluate and open read.

    Args:
        checkpoint: run folder, .safetensors file, or foreign checkpoint (.pth, .th, .pt; with --model).
        out: folder that the files are written to.
        data: digits, cifar10[:PATH], cifar100[:PATH], folder:PATH or npz:PATH; default the run's own data.
        model: architecture of a foreign checkpoint, as in train.
        k: filters a class.
        rule: how they are chosen; random is the control.
        layer: inner layer whose filters are meant (gradient, frequency, mass); default the inputs of the last layer.
        budget: filters of all classes together, instead of k for each.
        fit: fit the last layer to the training images (head, seconds), or train the whole network once through.
        distil: fit to the full model's probabilities instead of labels.
        classes: keep the outputs of these classes only.
        split: part of the data that the filters are found and fitted on; accuracies are of the test split.
        image_size: side in pixels that images are resized to; default what the model was trained on.
        mean: mean of each input channel (pixels in 0 to 1), where the checkpoint does not know it.
        std: standard deviation of each input channel, where the checkpoint does not know it.
        device: auto, cpu, cuda, ...
        batch_size: images in a step.
        workers: processes that decode images of a data set too large for memory.
        seed: of random filters, and of the order of training.
        json: print everything as JSON instead of tables.
    """
    from pellucid.core import terminal
    from pellucid.core.files import write_atomic
    from pellucid.core.launch import choose_device
    from pellucid.core.source import open_source
    from pellucid.decompose.evidence import measure
    from pellucid.decompose.select import COUNTED, FITTED, choose

    if layer is not None and (fit != "none" or classes is not None):
        raise InputError("--fit and --classes are of the last layer: leave out --layer.")
    if Path(out).exists() and not Path(out).is_dir():
        raise InputError(f"--out {out!r} is a file: name a folder.")
    source = open_source(checkpoint, data, model=model, image_size=image_size, mean=mean, std=std)
    source.model.to(choose_device(device))
    unknown = [name for name in classes or () if name not in source.dataset.classes]
    if unknown or (classes is not None and len(set(classes)) < 2):
        raise InputError(
            f"--classes {' '.join(classes or ())} must be two or more of {', '.join(source.dataset.classes[:20])}."
        )
    seen = measure(
        source.model,
        source.dataset,
        layer,
        tops=(k,) if rule in COUNTED else (),
        covariance=rule in FITTED,
        gradient=rule == "gradient",
        split=split,
        batch_size=batch_size,
        workers=workers,
    )
    filters = choose(seen, k, rule, budget=budget, seed=seed)
    result: dict[str, Any] = {
        "checkpoint": checkpoint, "data": source.dataset.name, "split": split, "rule": rule, "k": k, "budget": budget,
        "layer": filters.layer, "images": int(seen.counts.sum()), "seed": seed,
        "filters": sum(map(len, filters.indices)),
    }  # fmt: skip
    folder = Path(out)
    new = None
    if seen.head is not None:
        controls = [choose(seen, k, "random", budget=budget, refit=rule in FITTED, seed=seed + n) for n in range(DRAWS)]
        run: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
        new, result["accuracy"] = _accuracy(source, filters, controls, classes, fit, distil, split, seed, run)
    filters.save(folder / "filters.json")
    write_atomic(folder / "result.json", json_.dumps(result, indent=1) + "\n")
    if new is not None:
        from pellucid.core.checkpoint import save

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
    terminal.show(f"{checkpoint}: filters of {filters.layer} by {rule}", ["class", "filter (share)"], rows)
    if "accuracy" in result:
        table = result["accuracy"]
        shown = [[row["what"], row["filters"], terminal.percent(row["accuracy"], row["interval"])] for row in table]
        title = f"Accuracy on {table[0]['n']} test images of {source.dataset.name}"
        terminal.show(title, ["", "filters", "accuracy (95 % interval)"], shown)
    terminal.say(f"Wrote {folder / 'filters.json'} and result.json" + (", decomposed.safetensors" if new else ""))
    if new is not None and classes is None and getattr(new, "description", None):
        words = ["pellucid", "evaluate", str(folder / "decomposed.safetensors"), "--data", source.dataset.name]
        terminal.say(f"Next: {shlex.join(words)}")
    return 0


def _accuracy(
    source: Source,
    filters: ClassFilters,
    controls: list[ClassFilters],
    classes: list[str] | None,
    fit: str,
    distil: bool,
    split: str,
    seed: int,
    run: dict[str, Any],
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The decomposed model, fitted if asked for, and the rows of the table: each beside its control."""
    from pellucid.core.metrics import wilson
    from pellucid.decompose import head as heads

    model, dataset = source.model, source.dataset
    outputs = None if classes is None else [dataset.classes.index(name) for name in classes]
    new, control = heads.decomposed(model, filters), heads.decomposed(model, controls[0])
    own = {"rule": heads.head_of(new)}
    own |= {f"random {n}": heads.head_of(heads.decomposed(model, sets)) for n, sets in enumerate(controls)}
    size = sum(map(len, filters.indices)) / len(filters.indices)
    shown = f"{size:g}" if size == int(size) else f"{size:.1f}"
    cut = own if outputs is None else {key: head.subset(outputs) for key, head in own.items()}
    right, n = heads.accuracies(model, cut, dataset, outputs=outputs, **run)

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
    if fit != "none":
        for what, network in ((filters.rule, new), ("random", control)):
            teacher = model if distil else None
            heads.fit(network, dataset, fit, teacher=teacher, split=split, seed=seed, workers=run["workers"])
            found = heads.head_of(network)
            found = found if outputs is None else found.subset(outputs)
            right, _ = heads.accuracies(network, {"fitted": found}, dataset, outputs=outputs, **run)
            rows.append(row(f"{what}, {fit} fitted", right["fitted"]))
    if classes is not None:
        new = heads.cut(new, classes)
    return new, rows
