"""Labels of a data set as a network numbers its classes, where the two have other classes or another order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pellucid.core.data.dataset import Dataset
from pellucid.core.data.matching import checked, match, read_classes
from pellucid.core.data.splits import ROLES
from pellucid.core.device import fitting
from pellucid.core.errors import InputError, plain_text
from pellucid.core.facts import facts
from pellucid.core.modes import evaluating

Classes = str | os.PathLike[str] | Sequence[str]
BY_FOLDER = ("folder", "test")  # kinds of data whose classes are names of folders


def listed_classes(classes: Classes | None) -> tuple[str, ...] | None:
    """The names of a model's classes in its order, from a file as in `read_classes` or a sequence; None for None.

    Raises:
        InputError: no such file, or names that cannot be those of classes.
    """
    if classes is None:
        return None
    return read_classes(classes) if isinstance(classes, str | os.PathLike) else checked(classes, "classes=")


def matched(model: nn.Module, dataset: Dataset, listed: Sequence[str] | None = None) -> tuple[Dataset, str]:
    """`dataset` with the classes of `model` and labels that number these, and a sentence on what was assumed.

    Folders are matched to the network's classes as `core.data.matching.match` does. Data whose classes are not names of
    folders stay as they are, unless the network's classes are `listed`.

    Raises:
        InputError: a class that the network does not have, or names that say nothing.
    """
    known = facts(model).classes
    if listed is None and (dataset.kind not in BY_FOLDER or known == dataset.classes):
        return dataset, ""
    if (outputs := outputs_of(model, dataset)) is None:
        return dataset, ""  # `check_fits` says what does not fit
    if listed is not None and known is not None and not all(name.isdigit() for name in known):
        own = match(known, outputs, listed=listed, data="the model")
        if own.places != tuple(range(outputs)):
            few = ", ".join(plain_text(name, 40) for name in known[:3])
            raise InputError(f"The model records its own classes ({few}, ...), in another order: leave out --classes.")
    found = match(
        dataset.classes,
        outputs,
        known=known,
        listed=listed,
        in_order=dataset.kind == "folder",
        data=plain_text(dataset.name, 200),
    )
    if found.classes == dataset.classes:
        return dataset, found.sentence
    places = torch.tensor(found.places)
    train, val, test = (dataset.part(role).relabelled(places) for role in ROLES)
    return replace(dataset, classes=found.classes, train=train, val=val, test=test), found.sentence


@torch.no_grad()
def outputs_of(model: nn.Module, dataset: Dataset) -> int | None:
    """The number of logits that `model` returns for an image of `dataset`; None if it cannot take one."""
    try:
        with evaluating(model):
            logits = model(fitting(model, torch.zeros(1, dataset.channels, *dataset.image_size)))
    except Exception:  # a module of the user's may fail in any way
        return None
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == 1 else None
