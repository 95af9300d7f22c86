"""Replace layers of an existing network by those of a rule, and keep its weights and, with images, its function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pellucid.core.device import fitting
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts, unwrapped
from pellucid.core.network.agreement import distance, tensors
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.network.combine import PLAIN
from pellucid.core.network.duplicate import duplicate
from pellucid.core.network.fuse import fuse_norms
from pellucid.core.network.plain import BATCH_NORMS
from pellucid.core.network.rules import extended
from pellucid.core.network.rules import rule as rule_named
from pellucid.core.network.swap import Changes, merged, swap
from pellucid.core.network.tap import module_at

_CLOSE = 1e-3  # of the largest output: the difference that rounding may cause through a whole network


@runtime_checkable
class Calibrates(Protocol):
    """A rule that can use images to set its new layers so that they compute what the old ones did."""

    def calibrate(self, plain: nn.Module, changed: nn.Module, images: Iterable[Tensor]) -> None: ...


@runtime_checkable
class KeepsNorms(Protocol):
    """A rule that can leave batch norm in place where it is told to."""

    def keeping(self, norms: Iterable[str]) -> tuple[Calibrates, dict[str, Any]]:
        """The same rule, which leaves these batch norms in place too, and the options that make it so."""
        ...


def convert(model: nn.Module, to: str, *, images: Tensor | Iterable[Tensor] | None = None, **options: Any) -> nn.Module:
    """Copy `model` with layers replaced by those of the rule `to`; weights, and ties between them, are kept.

    Args:
        model: any network; it is not changed.
        to: name of a rule, or of several (`"csc+deconv"`), as in `build(..., layers=to)`. The network may have
            layers of other rules already: the new rule replaces what is left to it, and masks keep their places. A
            network of layers "csc" converted to "deconv" is one of layers "csc+deconv".
        images: a batch (N, C, H, W), or several, normalised as the network expects. The new layers take their
            statistics from them, and get weights with which the network, in evaluation mode, computes the same
            function as before. Batch norm that is removed is folded into the weights before it first; where that
            cannot be done, it stays. Without images the weights stay the same, and the network computes something else
            until it is trained.
        options: options of the rule.

    Returns:
        The new network, in the mode of the old one. Its facts (`pellucid.facts`) say what changed: `changes` is a list
        with one `Change` per layer, and `changes.left` gives, by name, the reason why the rule left other layers alone.
        `description` includes the new layers, so that the network can be saved and loaded; it is None if the old
        network had none, or was folded.

    Raises:
        InputError: an unknown rule or option, nothing to convert, layers that the network has already or that make no
            sense together with those that it has, or a function that cannot be kept.
    """
    needs_layers(model, "Converting")
    rule = rule_named(to, **options)
    model = unwrapped(model)
    _described(facts(model).description, to, options)  # refuses before anything is computed
    new = duplicate(model)
    with torch.random.fork_rng(devices=[]):  # new layers draw weights that are then replaced
        if images is None:
            changes = swap(new, rule)
        else:
            changes, kept = _calibrated(new, rule, to, images)
            options |= kept
    if not changes:
        why = next((f" ({name!r}: {reason})" for name, reason in changes.left.items()), "")
        raise InputError(f"There is nothing in this {type(model).__name__} that layers {to!r} would replace{why}.")
    return declare(new, changes=changes, description=_described(facts(model).description, to, options))


def _described(description: Mapping[str, Any] | None, to: str, options: dict[str, Any]) -> dict[str, Any] | None:
    if to == PLAIN:
        raise InputError("Layers 'plain' replace nothing: pellucid.fold makes plain layers of those that can be.")
    if description is None or description.get("folded"):
        return None  # a description states rules that are applied to the network as built
    layers, options = extended(description["layers"], description["options"], to, options)
    return {**description, "layers": layers, "options": options}


def _calibrated(
    new: nn.Module, rule: Any, to: str, images: Tensor | Iterable[Tensor]
) -> tuple[Changes, dict[str, Any]]:
    """Replace layers in place, keeping the function: the changes, and what options the rule needs besides its own."""
    if not isinstance(rule, Calibrates):
        raise InputError(f"Layers {to!r} cannot be fitted to keep the network's function: convert without images.")
    batches = [fitting(new, batch) for batch in ([images] if isinstance(images, Tensor) else images)]
    half = next((p.dtype for p in new.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        raise InputError(
            f"A network in {str(half).removeprefix('torch.')} is too coarse to keep its function: convert "
            "model.float(), and make the result half again."
        )
    if not batches:
        raise InputError("There are no images to fit the new layers to: give a batch of them, or None.")
    modes = {name: module.training for name, module in new.named_modules()}
    new.eval()
    with torch.no_grad():
        expected = list(tensors(new(batches[0])))
    norms = {name for name in rule(new) if isinstance(module_at(new, name), BATCH_NORMS)}  # type: ignore[operator]
    fused = fuse_norms(new, norms)
    options: dict[str, Any] = {}
    if fused.left:
        if not isinstance(rule, KeepsNorms):
            name, why = next(iter(fused.left.items()))
            raise InputError(
                f"The network's function cannot be kept: the batch norm {name!r} cannot be folded into the weights "
                f"before it, since {why}; convert without images."
            )
        rule, options = rule.keeping(fused.left)
    plain = duplicate(new)
    changes = merged(new, fused, swap(new, rule))
    changes.left |= {name: f"{type(module_at(new, name)).__name__}: {why}" for name, why in fused.left.items()}
    rule.calibrate(plain, new, batches)
    with torch.no_grad():
        off = distance(expected, list(tensors(new.eval()(batches[0]))))
    if not off <= _CLOSE:
        raise InputError(
            f"The converted network's outputs are off by {off:.2g} of the largest: convert without images."
        )
    for name, module in new.named_modules():
        outer = name
        while outer not in modes:  # a layer inside a new one
            outer = outer.rpartition(".")[0]
        module.training = modes[outer]
    return changes, options
