"""A network with the decomposed last layer that a file tells."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from pellucid.classfilters.head import head_of
from pellucid.classfilters.install import decomposed
from pellucid.classfilters.sets import ClassFilters
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.network.checkpoint import load


def with_file(model: nn.Module, file: str | os.PathLike[str]) -> nn.Module:
    """A copy of `model`, in evaluation mode, with the decomposed last layer that a file tells.

    Args:
        model: the full network.
        file: sets of filters, as of `ClassFilters.save` or as the papers' JSON; or a decomposed model, as of
            `pellucid decompose`, that is this one but for its last layer.

    Raises:
        InputError: none of these, sets that do not fit the last layer, or a model whose other weights are others.
    """
    known = facts(model).classes
    if Path(file).suffix != ".safetensors":
        filters = ClassFilters.load(file, classes=known)
        new = decomposed(model, filters)
        if known is None and not filters.layer:  # the papers' files do not say the classes' names
            declare(new, classes=None)
        return new
    new = load(file, device=next(model.parameters()).device)
    head = head_of(new)
    prefix = next(f"{name}." for name, module in new.named_modules() if module is head)
    own = model.state_dict()
    for name, value in new.state_dict().items():
        if not name.startswith(prefix) and not (name in own and torch.equal(own[name], value)):
            raise InputError(
                f"{os.fspath(file)!r} differs from the model in {name!r} too (--fit network?): evaluate it by itself."
            )
    return declare(new, normalization=facts(model).normalization)
