"""Put a decomposed head into a network."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pellucid.classfilters.head import DecomposedHead, head_of
from pellucid.classfilters.last_layer import matrix
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts, unwrapped
from pellucid.core.network.rules import Rule
from pellucid.core.network.swap import swap
from pellucid.core.network.tap import module_at

if TYPE_CHECKING:
    from pellucid.classfilters.sets import ClassFilters


def decomposed(model: nn.Module, filters: ClassFilters, classes: Sequence[str] | None = None) -> nn.Module:
    """A copy of `model`, in evaluation mode, with a `DecomposedHead` of `filters` for a last layer.

    Args:
        model: what the filters were found in, or one like it.
        filters: of its last layer.
        classes: keep the outputs of these only, in this order; default all.

    Returns:
        The copy. Its facts have the classes and, where the old network was described as one of plain layers, a
        description by which `pellucid.load` rebuilds it.

    Raises:
        InputError: sets of an inner layer, or of other numbers of filters or classes than the model's last layer; a
            class that is not there.
    """
    model = unwrapped(model)
    name = filters.layer or last_linear(model, len(filters.classes))
    old = module_at(model, name)
    found = matrix(old)
    if not filters.layer and found is not None and filters.width < found[0].shape[1]:  # the papers' files do not say
        width = found[0].shape[1]
        filters = dataclasses.replace(filters, width=width, scores=torch.zeros(len(filters.classes), width))
    if found is None or tuple(found[0].shape) != (len(filters.classes), filters.width):
        form = type(old).__name__ if found is None else f"{type(old).__name__} {list(found[0].shape)}"
        raise InputError(
            f"Sets of {filters.width} filters for {len(filters.classes)} classes do not make a last layer of "
            f"{name!r} ({form}): find sets of the model's last layer, without layer=."
        )
    weight, bias, spatial = found
    sets = filters.indices
    has_bias = filters.bias is not None or getattr(old, "bias", None) is not None
    head = DecomposedHead(
        filters.width,
        len(sets),
        max(1, *map(len, sets)),
        has_bias,
        spatial=spatial,
        indices=sets,
        device=weight.device,
        dtype=weight.dtype,
    )
    with torch.no_grad():
        for row, chosen in enumerate(sets):
            own = (
                weight[row, list(chosen)]
                if filters.weights is None
                else torch.tensor(filters.weights[row], dtype=torch.float64)
            )
            head.weight[row, : len(chosen)] = own.to(weight)
        if head.bias is not None:
            head.bias.copy_(bias if filters.bias is None else torch.tensor(filters.bias, dtype=torch.float64))
    new = copy.deepcopy(model).eval()
    swap(new, lambda _: {name: head})
    declare(new, classes=filters.classes, description=_described(facts(model).description, name, head))
    return new if classes is None else cut(new, classes)


def cut(model: nn.Module, classes: Sequence[str]) -> nn.Module:
    """A copy of a decomposed model that tells only `classes` apart, in this order; it can be saved and loaded.

    Raises:
        InputError: no decomposed head, no names of classes, or one that is not there.
    """
    name = next((name for name, module in model.named_modules() if isinstance(module, DecomposedHead)), None)
    known = facts(model).classes or ()
    unknown = [each for each in classes if each not in known]
    if name is None or unknown:
        raise InputError(f"There is no class {unknown[0]!r}: the classes are {', '.join(known[:20])}." if unknown
                         else f"This {type(model).__name__} has no decomposed head.")  # fmt: skip
    new = copy.deepcopy(model)
    head = head_of(new).subset([known.index(each) for each in classes])
    swap(new, lambda _: {name: head})
    return declare(new, classes=classes, description=_described(facts(model).description, name, head))


def _described(description: Mapping[str, Any] | None, name: str, head: DecomposedHead) -> dict[str, Any] | None:
    if description is None or description.get("layers") not in ("plain", "decomposed"):
        return None  # a description knows of one rule, applied to the network as it was built
    if description.get("folded"):
        return None
    options = {"k": head.k, "layer": name, "bias": head.bias is not None}
    return {**description, "num_classes": head.out_features, "layers": "decomposed", "options": options}


def last_linear(model: nn.Module, outputs: int | None = None) -> str:
    """The dotted name of the last linear layer (or 1x1 convolution) by its place in the model, without running it.

    Args:
        outputs: how many it must have; default any number.

    Raises:
        InputError: there is none.
    """
    known = [(name, found) for name, module in model.named_modules() if name and (found := matrix(module)) is not None]
    names = [name for name, found in known if outputs is None or len(found[0]) == outputs]
    if not names:
        raise InputError(f"The {type(model).__name__} has no linear layer of {outputs or 'any'} outputs.")
    return names[-1]


def rule(k: int = 5, layer: str | None = None, bias: bool = True) -> Rule:
    """A decomposed last layer: each class sees k filters, those of the largest weights until others are loaded.

    Args:
        k: filters a class.
        layer: dotted name of the last linear layer; default the last in the model's order.
        bias: whether it has one.
    """

    def apply(model: nn.Module) -> dict[str, nn.Module]:
        name = layer or last_linear(model)
        old = module_at(model, name)
        found = matrix(old)
        if found is None:
            raise InputError(f"Layer {name!r} ({type(old).__name__}) is no linear layer that could be decomposed.")
        weight, offset, spatial = found
        head = DecomposedHead(
            weight.shape[1], len(weight), k, bias, spatial=spatial, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            values, places = weight.topk(k, dim=1)
            head.indices.copy_(places)
            head.weight.copy_(values)
            if head.bias is not None:
                head.bias.copy_(offset)
        return {name: head}

    return apply
