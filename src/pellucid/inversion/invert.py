"""`pellucid.invert`: find images that a network classifies as wanted, from the network alone."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization, facts
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.network.statistics import Statistics
from pellucid.core.source import Named
from pellucid.inversion.frozen import folded, frozen
from pellucid.inversion.matching import Watch
from pellucid.inversion.optimize import Inversion, Search
from pellucid.inversion.presets import Recipe, changed, recipe
from pellucid.inversion.probe import probe, table_of
from pellucid.inversion.space import network_of, space_of
from pellucid.inversion.targets import class_targets


def invert(
    model: Named,
    targets: Any,
    preset: str | Recipe = "gaussian",
    *,
    steps: int | None = None,
    lr: float | None = None,
    weight: float | None = None,
    statistics: Statistics | None = None,
    verifier: Named | Sequence[Named] | None = None,
    shape: Sequence[int] | None = None,
    normalization: Normalization | Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
    indices: Tensor | None = None,
    device: str | None = None,
    compile: bool = False,
    quiet: bool = False,
    **parts: Any,
) -> Inversion:
    """Find images that `model` classifies as `targets`.

    Adam minimises the loss of the class together with the distance between each layer's input statistics and those
    that the network holds (DeepInversion: Yin et al. 2020, arXiv:1912.08795). No real image is needed.

    Args:
        model: a network of normalised images (B, C, H, W) -> logits (B, K): a module, or a run folder, checkpoint,
            MODEL=FILE, architecture (random weights) or `Run`. Weights, gradients, hooks and the mode of every
            submodule are afterwards what they were.
        targets: classes (B,), ("balanced", n), ("random", n), or distributions over the classes (B, K).
        preset: name of a recipe (`presets.PRESETS`), or a `Recipe`.
        steps: number of steps; default the recipe's.
        lr: learning rate of Adam; default the recipe's.
        weight: weight of the statistics; default the recipe's. 0 leaves them out.
        statistics: the table to match; default what the network stores itself (batch norm, whitening layers).
        verifier: other networks of the same classes, named like `model`, which classify the images at each check. A
            recipe with `disagreement` uses the first. Each normalises its input as its own facts say, or else as
            `model` does.
        shape: (C, H, W) of an image; default what the model's facts say.
        normalization: {"mean", "std"} of pixels in [0, 1], one number per channel; default the model's own.
        seed: every random draw is a function of the seed and of an image's number.
        indices: (B,) the images' numbers; default 0, 1, ... Image i has the same start and views in any batch.
        device: auto, cpu, cuda, ...: the networks are moved there; default where `model` is.
        compile: compile the forward and backward pass with torch.compile; worthwhile from about 1000 steps.
        quiet: show no progress bar.
        parts: parts that replace the recipe's own: objective, matching, priors, disagreement, views, start, schedule.

    Raises:
        InputError: there are no statistics to match, or an argument does not fit the network.
    """
    model = network_of(model, normalization, seed)
    needs_layers(model, "Inverting")
    named: Sequence[Any] = verifier if isinstance(verifier, list | tuple) else [] if verifier is None else [verifier]
    known = Normalization.of(normalization) or facts(model).normalization
    verifiers = [network_of(each, known, seed) for each in named]
    space = space_of(model, shape, normalization, device)
    where = space.mean.device
    unknown = sorted(set(parts) - set(Recipe.__dataclass_fields__))
    if unknown:
        raise InputError(f"A recipe has no {unknown[0]!r}: its parts are {', '.join(Recipe.__dataclass_fields__)}.")
    found = recipe(preset, space.shape) if isinstance(preset, str) else preset
    found = changed(found, steps=steps, lr=lr, weight=weight, parts=parts)
    if found.disagreement is not None and not verifiers:
        raise InputError("This recipe needs another network to disagree with: name one with verifier=.")
    with contextlib.ExitStack() as stack:
        for network in (model, *verifiers):
            if device is not None:
                network.to(where)
            stack.enter_context(frozen(network))
        ran, classes = probe(model, space)
        stack.enter_context(folded(model, ran))
        numbers, wanted = class_targets(targets, classes, indices, seed)
        watch = None
        if found.matching is not None:
            table = table_of(model, statistics, ran)
            watch = Watch(model, table, found.matching, torch.zeros(1, *space.shape, device=where))
            stack.enter_context(watch.watching())
        return Search(model, verifiers, found, watch, space, wanted.to(where), numbers, seed, compile).run(quiet)
