"""The command `pack`. Nothing heavy is imported until it runs."""

from __future__ import annotations

import json as json_
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings
from pellucid.core.ranges import Count, Limit, Seed

if TYPE_CHECKING:
    from torch import nn


def pack(
    checkpoint: str,
    /,
    *,
    source: SourceSettings,
    out: str,
    plain: str | None = None,
    max_images: Limit = 0,
    batch_size: Count = 256,
    device: str = "auto",
    seed: Seed = 0,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Store a trained subnetwork as a seed and one bit per weight, and show how much of each layer it keeps.

    Train one with --layers subnet. Every command that takes a checkpoint also takes the file.

    Args:
        checkpoint: run folder or .safetensors file of a network trained with --layers subnet.
        out: file to write the subnetwork to.
        plain: file to also write an ordinary network to, whose pruned weights are zeros.
        data: training images for the batch norm of the plain network: digits, cifar10[:PATH], cifar100[:PATH],
            folder:PATH or npz:PATH; default the run's own data.
        max_images: maximum number of these images, sampled with --seed; 0 keeps the batch-norm statistics of training.
        batch_size: images per step.
        device: auto, cpu, cuda, ...
        seed: seed of the sample of images.
        overwrite: replace files at --out that this command did not write.
        quiet: print nothing but errors.
        json: print the table as one JSON object, and nothing else.
    """
    from pellucid.core import terminal
    from pellucid.core.data.batches import batches
    from pellucid.core.data.splits import for_fitting
    from pellucid.core.device import choose_device
    from pellucid.core.files.ours import Output, check_outputs, network_of
    from pellucid.core.measure.fits import normalization
    from pellucid.core.network.blackbox.box import needs_layers
    from pellucid.core.network.checkpoint import save
    from pellucid.core.source import open_network, open_source
    from pellucid.edgepopup.plain import bake
    from pellucid.edgepopup.store import pack as write_packed

    data = source.data
    _check(plain, data, max_images)
    files = [Output(Path(out), network_of("pack"))]
    files += [] if plain is None else [Output(Path(plain), network_of("pack --plain"), "--plain")]
    check_outputs(files, overwrite, command="pack", sources=[checkpoint, data])
    where = choose_device(device)
    taken = None
    if max_images:
        import torch

        found = open_source(checkpoint, source, device=where)
        model, data = found.model, found.dataset.name
        norm = normalization(model, found.dataset)
        train = for_fitting(found.dataset.train, "Batch-norm statistics are recorded")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        chosen = train.take(order[:max_images])
        stream = batches(chosen, batch_size, mean=norm.mean, std=norm.std, device=where)
        taken = [batch.images for batch in stream]
    else:
        model = open_network(checkpoint, **source.reading()).model
    needs_layers(model, "Packing")
    network = None if plain is None else bake(model, taken)
    model.cpu()  # packing draws the weights again on the CPU, as loading does
    write_packed(model, out, command="pack")
    if plain is not None and network is not None:
        save(network, plain, command="pack --plain")
    known = Path(checkpoint, "settings.yaml")
    if data is None and known.is_file():
        from pellucid.core.train.run import read_settings

        data = read_settings(known).data
    result = {
        "checkpoint": checkpoint,
        **_counts(model),
        "out": out,
        "bytes": Path(out).stat().st_size,
        "bytes_unpacked": sum(value.nbytes for value in model.state_dict().values()),
        "plain": plain,
        "images": 0 if taken is None else sum(map(len, taken)),
        "data": data,
        "seed": seed,
    }
    if json:
        terminal.say(json_.dumps(result))
    elif not quiet:
        _show(result)
    return 0


def _check(plain: str | None, data: str | None, max_images: int) -> None:
    if plain is None and (max_images or data is not None):
        raise InputError("--max-images and --data are for the plain network: name its file with --plain.")
    if data is not None and not max_images:
        raise InputError(f"--data {data} needs to know how many images to take: give --max-images, such as 1000.")


def _counts(model: nn.Module) -> dict[str, Any]:
    """How many weights each layer has and keeps, and all layers together."""
    from pellucid.edgepopup.layers import masks

    layers: list[dict[str, Any]] = []
    for name, _, mask in masks(model):
        n, kept = mask.scores.numel(), int(mask.mask().sum())
        layers.append({"layer": name, "weights": n, "kept": kept, "fraction": kept / n})
    total = {key: sum(row[key] for row in layers) for key in ("weights", "kept")}
    return {"layers": layers, **total, "fraction": total["kept"] / total["weights"]}


def _show(result: dict[str, Any]) -> None:
    from pellucid.core import terminal

    counts = [*result["layers"], {"layer": "all", **{key: result[key] for key in ("weights", "kept", "fraction")}}]
    rows = [[row["layer"], row["weights"], row["kept"], terminal.percent(row["fraction"])] for row in counts]
    if len(rows) > 21:
        rows[10:-10] = [["...", "", "", ""]]
    terminal.show(f"{result['checkpoint']}: weights kept", ["layer", "weights", "kept", "fraction"], rows)
    out, plain, data = result["out"], result["plain"], result["data"]
    terminal.say(
        f"Wrote {out}: {result['bytes']} bytes, instead of {result['bytes_unpacked']} with weights and scores."
    )
    if plain is not None:
        images = result["images"]
        seen = f", with batch-norm statistics of {images} training images of {data}" if images else ""
        terminal.say(f"Wrote {plain}: an ordinary network{seen}.")
    terminal.say(f"Next: {shlex.join(['pellucid', 'evaluate', out, '--data', data or 'DATA'])}")
