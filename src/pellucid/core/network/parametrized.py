"""Layers whose weights are made from other tensors, by torch's parametrizations: what is beneath, and on top."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from torch import nn
from torch.nn.utils import parametrize

M = TypeVar("M", bound=nn.Module)


def without(layer: nn.Module, values: Mapping[str, nn.Parameter]) -> nn.Module:
    """A copy of `layer` without parametrizations, and without their hooks, whose parameters are `values`."""
    parametrizations = cast(nn.ModuleDict, layer.parametrizations)
    stand_in = nn.Module()  # what makes the values is not worth copying, and may refer to other layers
    plain = copy.deepcopy(layer, {id(part): stand_in for part in parametrizations.modules()})
    plain.__class__ = type(layer).__bases__[0]  # the class that torch derived the parametrized one from
    del plain.parametrizations
    for number, hook in list(plain._forward_pre_hooks.items()):
        if getattr(hook, "__self__", None) is stand_in:
            del plain._forward_pre_hooks[number]
    for name, value in values.items():
        plain.register_parameter(name, value)
    return plain


def beneath(layer: nn.Module) -> nn.Module:
    """The layer under parametrizations that may be put on another one: a copy that holds the very tensors under them.

    Such a parametrization has a true attribute `moves`, such as a mask. Any other layer is returned itself.
    """
    if not _moves(layer):
        return layer
    named = cast(Mapping[str, Any], layer.parametrizations)
    bare = without(layer, {name: parts.original for name, parts in named.items()})
    for name, parameter in layer.named_parameters(recurse=False):
        bare.register_parameter(name, parameter)
    return bare


def on_top(new: M, layer: nn.Module) -> M:
    """`new`, made from what is `beneath` a layer, with the parametrizations of that layer and their hooks."""
    if not _moves(layer):
        return new
    parts = {name: list(listed) for name, listed in cast(Mapping[str, Any], layer.parametrizations).items()}
    for name, listed in parts.items():
        for part in listed:
            parametrize.register_parametrization(new, name, part, unsafe=True)
    moved = {id(part) for listed in parts.values() for part in listed}
    for hook in layer._forward_pre_hooks.values():
        if id(getattr(hook, "__self__", None)) in moved:
            new.register_forward_pre_hook(hook)
    return new


def _moves(layer: nn.Module) -> bool:
    if not parametrize.is_parametrized(layer):
        return False
    named = cast(Mapping[str, Any], layer.parametrizations)
    return all(getattr(part, "moves", False) for listed in named.values() for part in listed)
