"""The commands of the ground: they call the functions of the same name, and print.

Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import json as json_
import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings
from pellucid.core.train.settings import TrainSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.core.network.swap import Changes
    from pellucid.core.source import Source


def train(settings: TrainSettings, *, out: str | None = None, resume: bool | str = False, quiet: bool = False) -> int:
    """Train a model and keep the run in a folder, resumable at any moment.

    The same command again continues a run that was stopped, and only reports one that is finished.

    Args:
        out: run folder; default runs/ and a name made of the settings.
        resume: continue the run in this folder with its own settings; without a value, the run of this very command.
        quiet: print nothing but errors.
    """
    if isinstance(resume, str):
        if out is not None and Path(out) != Path(resume):
            raise InputError(f"--resume {resume} continues in its own folder: leave out --out {out}.")
        settings, out = _settings_of(resume, settings), resume
    elif resume and not (Path(out or f"runs/{settings.name()}") / "settings.yaml").exists():
        raise InputError(f"There is no run to resume in {out or f'runs/{settings.name()}'!r}: leave out --resume.")
    from pellucid.core import terminal

    if settings.framework == "torch":
        from pellucid.core.train.loop import train as run_training
    else:
        from pellucid.core.train.frameworks import train as run_training

    trained = run_training(settings, out, quiet=quiet)
    if not quiet:
        result, test = trained.result, trained.result["test"]
        rows = [
            ["test accuracy", terminal.percent(test["top1"], test["top1_interval"]), test["n"]],
            ["test accuracy, top 5", terminal.percent(test["top5"]), test["n"]],
            ["validation accuracy", terminal.percent(result["best"]["val_accuracy"]), result["data"]["images"]["val"]],
            ["calibration error", terminal.percent(test["ece"]), test["n"]],
        ]
        if test["top5"] is None:
            del rows[1]
        title = f"{settings.model} on {settings.data}: epoch {result['best']['epoch'] + 1}, seed {settings.seed}"
        terminal.show(title, ["", "value (95 % interval)", "images"], rows)
        terminal.say(f"Run: {trained.run.path}")
        terminal.say(f"Next: pellucid open {trained.run.path}")
    return 0


def _settings_of(run: str, given: TrainSettings) -> TrainSettings:
    from pellucid.core.train.run import Run

    settings = Run(run).settings
    for name, value in given.changed().items():
        if getattr(settings, name) != value:
            raise InputError(
                f"{run!r} was begun with {name} = {getattr(settings, name)!r}: --resume goes on with the run's own "
                f"settings, so leave out --{name.replace('_', '-')}."
            )
    return settings


def evaluate(
    checkpoint: str,
    /,
    *,
    source: SourceSettings,
    split: Literal["test", "val", "train"] = "test",
    device: str = "auto",
    batch_size: int = 512,
    workers: int = 2,
    json: bool = False,
    changes: Sequence[Callable[[Any], Any]] = (),
) -> int:
    """Evaluate a run or checkpoint: accuracy, calibration and every class, with intervals.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model), or the name of an
            architecture (resnet18, timm:resnet18), which is built with random weights.
        split: part of the data; val is what was held out of the training images.
        device: auto, cpu, cuda, ...
        batch_size: images in a step.
        workers: processes that decode images of a data set too large for memory.
        json: print everything as JSON instead of a table.
        changes: what to make of the network first, in this order.
    """
    from pellucid.core import terminal
    from pellucid.core.measure.evaluate import evaluate as evaluated
    from pellucid.core.source import open_source

    found = open_source(checkpoint, source, device=device)
    network = found.model
    for change in changes or ():
        network = change(network)
    result = evaluated(network, found.dataset, split, batch_size=batch_size, device=found.device, workers=workers)
    if not math.isfinite(result.loss):
        raise InputError(
            f"The model in {checkpoint!r} answers NaN or infinity: its weights or --mean and --std are off."
        )
    if json:
        about = {"checkpoint": checkpoint, "data": found.dataset.name, "split": split}
        terminal.say(json_.dumps({**about, **result.to_json()}))
        return 0
    rows = [["all", terminal.percent(result.top1, result.top1_interval), result.n]]
    shown = sorted(result.per_class, key=lambda entry: entry["accuracy"] if entry["n"] else 2.0)[:20]
    rows += [[e["class"], terminal.percent(e["accuracy"], e["interval"]), e["n"]] for e in shown]
    if len(result.per_class) > 20:
        rows.append([f"... {len(result.per_class) - 20} better classes", "", ""])
    title = f"{found.title} on {found.dataset.name} ({split})"
    terminal.show(title, ["class", "accuracy (95 % interval)", "images"], rows)
    top5 = "" if result.top5 is None else f"top 5 {terminal.percent(result.top5)}, "
    terminal.say(f"{top5}loss {result.loss:.4f}, calibration error {terminal.percent(result.ece)}")
    terminal.say(f"Next: {shlex.join(['pellucid', 'open', checkpoint, *source.flags()])}")
    return 0


def convert(
    checkpoint: str,
    /,
    *,
    layers: str,
    out: str,
    options: dict[str, Any] | None = None,
    source: SourceSettings,
    images: int = 512,
    num_classes: int | None = None,
    in_channels: int | None = None,
    seed: int = 0,
) -> int:
    """Put other layers into a network, whatever it is, and keep its weights.

    With --data the new layers are set by training images so that the network computes what it did before; without,
    it has to be trained.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model), or the name of an
            architecture (resnet18, timm:resnet18), which is built with random weights.
        layers: rule for the new layers, such as deconv; its options are flags of their own.
        out: file that the converted network is written to.
        options: options of the rule, as --options.NAME VALUE.
        data: images to set the new layers by; digits, cifar10[:PATH], cifar100[:PATH], folder:PATH or npz:PATH.
        images: how many of them.
        num_classes: classes of an architecture that is named instead of a checkpoint; default 10.
        in_channels: channels of its images; default 3.
        image_size: side in pixels of its images, or that data are resized to; default 32, or what the network, or the
            zoo that it is from, says.
        seed: what random weights are drawn from.
    """
    from pellucid.core import terminal
    from pellucid.core.facts import facts
    from pellucid.core.network import convert as converts
    from pellucid.core.network.checkpoint import save
    from pellucid.core.source import is_architecture, open_network, open_source

    if images < 1:
        raise InputError(f"--images {images} is out of range: give at least 1.")
    batches = None
    if is_architecture(checkpoint) and source != SourceSettings(image_size=source.image_size):
        raise InputError(f"{checkpoint!r} is built with random weights: leave out --data, --model, --mean and --std.")
    if source.data is not None:
        found = open_source(checkpoint, source)
        network, batches = found.model, _images(found, "train", images)
    else:
        network = open_network(
            checkpoint,
            source.model,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=source.image_size,
            seed=seed,
        ).model
    description = facts(network).description or {}
    if description.get("layers") != "plain" or description.get("folded"):
        raise InputError(f"{checkpoint!r} has other layers already, or is folded: convert the plain network.")
    changed = converts.convert(network, layers, images=batches, **(options or {}))
    save(changed, out)
    _tell(f"{checkpoint} to {layers}", facts(changed).changes)
    count = sum(parameter.numel() for parameter in changed.parameters())
    kept = "computes what it did" if batches is not None else "has yet to be trained"
    terminal.say(f"Wrote {out}: {count} parameters; the network {kept}.")
    if source.data is None:
        words = ["fold", out, "--out", f"{out.removesuffix('.safetensors')}-folded.safetensors"]
    else:
        words = ["evaluate", out, "--data", source.data]
    terminal.say(f"Next: {shlex.join(['pellucid', *words])}")
    return 0


def fold(
    checkpoint: str,
    /,
    *,
    out: str,
    source: SourceSettings,
    images: int = 64,
    tolerance: float = 1e-5,
) -> int:
    """Fold whitening and batch norm into plain convolutions, and check that outputs stay equal.

    Args:
        checkpoint: run folder, .safetensors file, or foreign checkpoint (.pth, .th, .pt; with --model).
        out: file that the folded network is written to.
        data: images to check with; digits, cifar10[:PATH], cifar100[:PATH], folder:PATH or npz:PATH; default the run's
            own, or random ones.
        images: how many of them.
        tolerance: largest difference between outputs, relative to the largest output.
    """
    from pellucid.core import terminal
    from pellucid.core.facts import facts
    from pellucid.core.network.checkpoint import save
    from pellucid.core.network.fold import fold as folded_copy
    from pellucid.core.source import open_network, open_source

    if images < 1:
        raise InputError(f"--images {images} is out of range: give at least 1.")
    data = source.data
    example = None
    if data is not None or Path(checkpoint, "settings.yaml").is_file():
        found = open_source(checkpoint, source)
        network, data = found.model, data or (found.run.settings.data if found.run else None)
        example = _images(found, "test", images)[0]
    elif source != SourceSettings(model=source.model):
        raise InputError("--mean, --std and --image-size go with --data: name the data.")
    else:
        network = open_network(checkpoint, source.model).model
    folded = folded_copy(network, example, tolerance=tolerance)
    save(folded, out)
    _tell(f"{checkpoint}, folded", facts(folded).changes)
    rows = [["parameters", *(sum(p.numel() for p in net.parameters()) for net in (network, folded))]]
    rows.append(["bytes", *(sum(t.nbytes for t in net.state_dict().values()) for net in (network, folded))])
    terminal.show("Size", ["", "before", "after"], rows)
    seen = f"{len(example)} images of {data}" if example is not None else "4 random images"
    terminal.say(f"Outputs on {seen} differ by {facts(folded).difference:.2g} of the largest.")
    terminal.say(f"Wrote {out}")
    terminal.say(f"Next: {shlex.join(['pellucid', 'evaluate', out, '--data', data or 'DATA'])}")
    return 0


def _images(source: Source, split: str, count: int) -> list[Tensor]:
    """The first batches of a split, at most `count` images, normalised as the model expects."""
    from pellucid.core.data.batches import batches
    from pellucid.core.measure.fits import check_fits, normalization

    check_fits(source.model, source.dataset)
    norm = normalization(source.model, source.dataset)
    size = min(count, 128)
    found: list[Tensor] = []
    # Shuffled: class folders come class by class.
    for batch in batches(source.dataset.part(split), size, mean=norm.mean, std=norm.std, shuffle=True):
        found.append(batch.images[: count - sum(map(len, found))])
        if sum(map(len, found)) >= count:
            break
    return found


def _tell(title: str, changes: Changes | None) -> None:
    """A table of changes, one row for each kind of them, and the layers that were left."""
    from pellucid.core import terminal

    left = changes.left if changes is not None else {}
    kinds: dict[tuple[str, str], list[Any]] = {}
    for change in changes or ():
        kinds.setdefault((change.old.partition("(")[0], change.new.partition("(")[0]), []).append(change)
    rows = []
    for (old, new), same in kinds.items():
        names = [change.names[0] for change in same]
        where = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
        growth = sum(change.parameters_after - change.parameters_before for change in same)
        rows.append([old, "out of place" if old == new else new, len(same), where, f"{growth:+d}"])
    terminal.show(title, ["was", "is", "layers", "where", "parameters"], rows)
    for name, why in list(left.items())[:5]:
        terminal.say(f"Left: {name}: {why}")
    if len(left) > 5:
        terminal.say(f"... and {len(left) - 5} more")
