"""The command of this idea. Nothing heavy is imported until it runs."""

from __future__ import annotations

import shlex
from pathlib import Path

from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings


def pack(checkpoint: str, /, *, out: str, plain: str | None = None, images: int = 0, data: str | None = None) -> int:
    """Store a trained subnetwork as a seed and one bit a weight, and tell what each layer keeps.

    Train one with --layers subnet. The file is read by every command that reads a checkpoint.

    Args:
        checkpoint: run folder or .safetensors file of a network with masks.
        out: file that the subnetwork is written to.
        plain: file for an ordinary network with the masks in its weights, too.
        images: training images that the plain network's batch norm takes its statistics from; 0 leaves them.
        data: where these are from: digits, cifar10[:PATH], cifar100[:PATH], folder:PATH or npz:PATH; default the run's
            own data.
    """
    import torch

    from pellucid.core import terminal
    from pellucid.core.data.batches import batches
    from pellucid.core.measure.fits import normalization
    from pellucid.core.network.checkpoint import load, save
    from pellucid.core.source import open_source
    from pellucid.edgepopup.layers import masks
    from pellucid.edgepopup.plain import bake
    from pellucid.edgepopup.store import pack as pack_into

    if images < 0:
        raise InputError(f"--images {images} is out of range: give at least 0.")
    if plain is None and (images or data is not None):
        raise InputError("--images and --data are for the plain network: name its file with --plain.")
    if data is not None and not images:
        raise InputError("--data goes with --images: say how many of them.")
    taken = None
    if images:
        source = open_source(checkpoint, SourceSettings(data=data))
        model, data = source.model, source.dataset.name
        norm = normalization(model, source.dataset)
        train = source.dataset.train
        chosen = train.take(torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:images])
        taken = [batch.images for batch in batches(chosen, 256, mean=norm.mean, std=norm.std)]
    else:
        model = load(checkpoint)
    network = None if plain is None else bake(model, taken)
    pack_into(model, out)
    rows = []
    kept = total = 0
    for name, _, mask in masks(model):
        of, here = mask.scores.numel(), int(mask.mask().sum())
        kept, total = kept + here, total + of
        rows.append([name, of, here, terminal.percent(here / of)])
    if len(rows) > 20:
        rows[10:-9] = [["...", "", "", ""]]
    terminal.show(
        f"{checkpoint}: what stays", ["layer", "weights", "kept", "share"],
        [*rows, ["all", total, kept, terminal.percent(kept / total)]],
    )  # fmt: skip
    whole = sum(value.nbytes for value in model.state_dict().values())
    terminal.say(f"Wrote {out}: {Path(out).stat().st_size} bytes; with weights and scores it is {whole}.")
    if plain is not None and network is not None:
        save(network, plain)
        seen = "" if taken is None else f", its statistics from {sum(map(len, taken))} images of {data}"
        terminal.say(f"Wrote {plain}: an ordinary network{seen}.")
    known = Path(checkpoint, "settings.yaml")
    if data is None and known.is_file():
        from pellucid.core.train.run import read_settings

        data = read_settings(known).data
    terminal.say(f"Next: {shlex.join(['pellucid', 'evaluate', out, '--data', data or 'DATA'])}")
    return 0
