"""Give a network the decomposed last layer that is stored in a file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from pellucid.classfilters.head import head_of
from pellucid.classfilters.install import decomposed
from pellucid.classfilters.sets import ClassFilters
from pellucid.core.device import device_of
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.network.checkpoint import load


def with_file(model: nn.Module, file: str | os.PathLike[str]) -> nn.Module:
    """A copy of `model`, in evaluation mode, with the decomposed last layer that `file` holds.

    Args:
        model: the full network.
        file: sets of filters, as written by `ClassFilters.save` or as the papers' JSON; or a decomposed model, as
            written by `pellucid decompose`, that equals `model` except for its last layer.

    Raises:
        InputError: none of these, sets that do not fit the last layer, or a model that differs in other weights too.
    """
    known = facts(model).classes
    if Path(file).suffix != ".safetensors":
        filters = ClassFilters.load(file, classes=known)
        new = decomposed(model, filters)
        if known is None and not filters.layer:  # the papers' files do not hold the classes' names
            declare(new, classes=None)
        return new
    new = load(file, facts(model).code, device=device_of(model))
    head = head_of(new)
    prefix = next(f"{name}." for name, module in new.named_modules() if module is head)
    own = model.state_dict()
    for name, value in new.state_dict().items():
        if not name.startswith(prefix) and not (name in own and torch.equal(own[name], value)):
            raise InputError(
                f"{os.fspath(file)!r} also differs from the model in {name!r} (--fit network?): evaluate it on its own."
            )
    return declare(new, normalization=facts(model).normalization)
