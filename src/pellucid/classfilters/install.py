"""Put a decomposed head into a network: build the head from a set of filters, and replace the last layer by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pellucid.classfilters.head import DecomposedHead, head_of
from pellucid.classfilters.last_layer import linear_form, linear_layers, matrix
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts, unwrapped
from pellucid.core.network.combine import PLUS
from pellucid.core.network.duplicate import duplicate
from pellucid.core.network.rules import RULES, Rule, extended
from pellucid.core.network.swap import swap
from pellucid.core.network.tap import module_at

if TYPE_CHECKING:
    from pellucid.classfilters.sets import ClassFilters


# --- a head on its own ---


def head_from(model: nn.Module, filters: ClassFilters) -> DecomposedHead:
    """The head that takes the place of the last layer of `model`, which is neither changed nor copied.

    It holds the weights that `filters` bring, or else the model's own weights of these filters.

    Args:
        model: the network that the filters were found in, or one like it.
        filters: of its last layer.

    Raises:
        InputError: sets of an inner layer, or of another number of filters or classes than the model's last layer has.
    """
    model = unwrapped(model)
    name = _place(model, filters)
    old = module_at(model, name)
    layer = linear_form(old)
    found = matrix(old)
    classes, width = len(filters.classes), filters.width
    if not filters.layer and found is not None:  # the papers' files do not say how many filters there are
        width = max(width, found[0].shape[1])
    if layer is None or found is None or tuple(found[0].shape) != (classes, width):
        form = type(old).__name__ if found is None else f"{type(old).__name__} {list(found[0].shape)}"
        raise InputError(
            f"Sets of {filters.width} filters for {classes} classes do not fit the layer {name!r} ({form}) as the last "
            "one: find sets of the model's last layer, without layer=."
        )
    weight, bias, spatial = found
    sets = filters.indices
    head = DecomposedHead(
        width,
        classes,
        max(1, *map(len, sets)),
        filters.bias is not None or layer[0].bias is not None,
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
    return head.eval()


def _place(model: nn.Module, filters: ClassFilters) -> str:
    return filters.layer or last_linear(model, len(filters.classes))


def last_linear(model: nn.Module, outputs: int | None = None) -> str:
    """The dotted name of the last linear layer (or 1x1 convolution) in the model's order, without running the model.

    Args:
        outputs: how many outputs it must have; default any number.

    Raises:
        InputError: there is none.
    """
    names = [name for name, found in linear_layers(model).items() if name and outputs in (None, len(found[0]))]
    if not names:
        raise InputError(f"This {type(model).__name__} has no linear layer of {outputs or 'any'} outputs.")
    return names[-1]


# --- a network with it ---


def decomposed(
    model: nn.Module,
    filters: ClassFilters,
    classes: Sequence[str] | None = None,
    *,
    head: DecomposedHead | None = None,
) -> nn.Module:
    """A copy of `model`, in evaluation mode, with a `DecomposedHead` of `filters` as its last layer.

    Args:
        model: the network that the filters were found in, or one like it.
        filters: of its last layer.
        classes: keep the outputs of these classes only, in this order; default all.
        head: a head of these filters to install, such as a fitted one; default `head_from(model, filters)`.

    Returns:
        The copy. Its facts have the classes and, where the network was described and not folded, a description by which
        `pellucid.load` rebuilds it.

    Raises:
        InputError: sets of an inner layer, or of another number of filters or classes than the model's last layer has;
            a class that does not exist.
    """
    model = unwrapped(model)
    head = head_from(model, filters) if head is None else head
    return _replaced(model, _place(model, filters), head, filters.classes, classes).eval()


def cut(model: nn.Module, classes: Sequence[str]) -> nn.Module:
    """A copy of a decomposed model that distinguishes only `classes`, in this order; it can be saved and loaded.

    Raises:
        InputError: no decomposed head, no names of classes, or a class that does not exist.
    """
    head = head_of(model)
    name = next(name for name, module in model.named_modules() if module is head)
    return _replaced(model, name, head, facts(model).classes or (), classes)


def _replaced(
    model: nn.Module, name: str, head: DecomposedHead, known: Sequence[str], classes: Sequence[str] | None
) -> nn.Module:
    """A copy of `model` with `head` at `name`; of the `known` classes of its outputs only `classes` are kept."""
    if classes is not None:
        if unknown := [each for each in classes if each not in known]:
            raise InputError(f"There is no class {unknown[0]!r}: the classes are {', '.join(known[:20])}.")
        head = head.subset([list(known).index(each) for each in classes])
    new = duplicate(model)
    swap(new, lambda _: {name: head})
    description = _described(facts(model).description, name, head)
    return declare(new, classes=known if classes is None else classes, description=description)


def _described(description: Mapping[str, Any] | None, name: str, head: DecomposedHead) -> dict[str, Any] | None:
    if description is None or description.get("folded"):
        return None  # a description holds layer rules, applied to the network as it was built
    layers, options = description["layers"], description["options"]
    own = {"k": head.k, "layer": name, "bias": head.bias is not None}
    names = layers.split(PLUS)
    if "decomposed" in names:  # another head takes the place of the one before
        whole = RULES.combined(names)
        options = whole.join({**whole.split(options), "decomposed": own})
    else:
        layers, options = extended(layers, options, "decomposed", own)
    return {**description, "num_classes": head.out_features, "layers": layers, "options": options}


# --- a network built with it ---


def rule(k: int = 5, layer: str | None = None, bias: bool = True) -> Rule:
    """Decompose the last layer: each class reads k filters, those with the largest weights until others are loaded.

    Args:
        k: filters per class.
        layer: dotted name of the last linear layer; default the last one in the model's order.
        bias: whether the layer has a bias.
    """

    def apply(model: nn.Module) -> dict[str, nn.Module]:
        name = layer or last_linear(model)
        old = module_at(model, name)
        found = matrix(old)
        if found is None:
            raise InputError(f"Layer {name!r} ({type(old).__name__}) is not linear and cannot be decomposed.")
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
