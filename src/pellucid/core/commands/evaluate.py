"""The command `pellucid evaluate`."""

from __future__ import annotations

import json as json_
import math
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pellucid.core.errors import InputError
from pellucid.core.flags import ClassedSettings
from pellucid.core.ranges import Count, Limit, Seed

if TYPE_CHECKING:
    from pellucid.core.measure.evaluate import Evaluation


def evaluate(
    checkpoint: str,
    /,
    *,
    source: ClassedSettings,
    split: Literal["test", "val", "train"] = "test",
    device: str = "auto",
    batch_size: Count | None = None,
    workers: Limit = 2,
    seed: Seed = 0,
    json: bool = False,
    quiet: bool = False,
    changes: Sequence[Callable[[Any], Any]] = (),
) -> int:
    """Measure a run's or checkpoint's accuracy, overall and per class, and its calibration, with intervals.

    Images that are exact copies of training images are counted, and the accuracy without them is given too.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model, or as MODEL=FILE),
            a file that only predicts (.onnx, onnx:FILE, .pt2), or an architecture (resnet18, timm:resnet18), which
            gets random weights.
        split: part of the data; val is the part of the training images that was held out.
        device: auto, cpu, cuda, ...
        batch_size: images per step; default 512, or fewer for images beyond 45 x 45 pixels.
        workers: processes that decode images of a data set too large for memory.
        seed: seed of an architecture's random weights.
        json: print the result as one JSON object, and nothing else.
        quiet: print nothing but errors.
        changes: functions to apply to the network first, in this order.
    """
    from pellucid.core import terminal
    from pellucid.core.data.copies import copies
    from pellucid.core.measure.evaluate import about_copies
    from pellucid.core.measure.evaluate import evaluate as evaluated
    from pellucid.core.source import open_source

    found = open_source(checkpoint, source, device=device, seed=seed)
    network = found.model
    for change in changes or ():
        network = change(network)
    dataset = found.dataset
    apart = copies(dataset.part(split), dataset.train) if split != "train" and len(dataset.train) else None
    if not (json or quiet):
        terminal.assumed(found.assumed)
    result = evaluated(
        network, dataset, split, batch_size=batch_size, device=found.device, workers=workers, copies=apart
    )
    if not math.isfinite(result.loss):
        raise InputError(
            f"The outputs of {checkpoint!r} are NaN or infinite: its weights are damaged, or --mean and --std are "
            "wrong."
        )
    if json:
        about = {
            "checkpoint": checkpoint, "data": found.dataset.name, "split": split, "assumed": list(found.assumed),
        }  # fmt: skip
        terminal.say(json_.dumps({**about, **_as_json(result)}))
    if json or quiet:
        return 0
    classes = [(name, share) for name, share in zip(result.classes, result.per_class, strict=True) if share.n]
    of = f", of {len(classes)} of {len(result.classes)} classes" if len(classes) < len(result.classes) else ""
    rows: list[list[Any]] = [[f"all{of}", terminal.percent(result.top1, result.top1_interval), result.n]]
    worst_first = sorted(classes, key=lambda pair: (pair[1].value or 0.0, -pair[1].n))
    rows += [[name, terminal.percent(share.value, share.interval), share.n] for name, share in worst_first[:20]]
    if len(classes) > 20:
        rows.append([f"... {len(classes) - 20} better classes", "", ""])
    title = f"{found.title} on {found.dataset.name} ({split})"
    terminal.show(title, ["class", "accuracy (95 % interval)", "images"], rows)
    top5 = "" if result.top5 is None else f"top 5 {terminal.percent(result.top5)}, "
    terminal.say(f"{top5}loss {result.loss:.4f}, calibration error {terminal.percent(result.ece)}")
    if sentence := about_copies(result.to_json(), split):
        terminal.say(sentence)
    terminal.say(f"Next: {shlex.join(['pellucid', 'open', checkpoint, *source.flags()])}")
    return 0


def _as_json(result: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON, with what grows with the square of the classes left out where these are many.

    Classes without images are left out of "per_class", and counted by "present" of "outputs" classes. Beyond 100
    classes, "confusion" is null and "errors" lists its entries off the diagonal.
    """
    table = result.to_json()
    table["per_class"] = [row for row in table["per_class"] if row["n"]]
    table["present"], table["outputs"] = len(table["per_class"]), len(result.classes)
    if len(result.classes) > 100:
        table["errors"] = [
            {"truth": result.classes[i], "answer": result.classes[j], "count": count}
            for i, row in enumerate(result.confusion)
            for j, count in enumerate(row)
            if count and i != j
        ]
        table["confusion"] = None
    return table
