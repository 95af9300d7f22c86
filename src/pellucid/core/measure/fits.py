"""Whether a network and a data set fit each other, and how its input is normalised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pellucid.core import vision
from pellucid.core.data.dataset import Dataset
from pellucid.core.device import check_values, fitting
from pellucid.core.errors import InputError, first_line, plain_text
from pellucid.core.facts import Normalization, facts
from pellucid.core.modes import evaluating
from pellucid.core.network import models


def normalization(model: nn.Module, dataset: Dataset) -> Normalization:
    """How the model's input is normalised.

    As its facts say; or else as is usual for a network of torchvision or timm; or else with the statistics of the data.

    Raises:
        InputError: none of these is known.
    """
    return facts(model).normalization or usual_normalization(model, dataset.channels) or dataset.normalization


def usual_normalization(model: nn.Module, channels: int | None = None) -> Normalization | None:
    """How the library's own weights of a network of torchvision or timm expect their input.

    Args:
        model: any network.
        channels: of its images; default what the network's description says.

    Returns:
        None for any other network, or one for images of another number of channels.
    """
    description = facts(model).description or {}
    if not models.is_zoo(name := description.get("model")):
        return None
    found = vision.normalization(name)
    return found if found.channels == (channels or description.get("in_channels")) else None


@torch.no_grad()
def check_fits(model: nn.Module, dataset: Dataset) -> None:
    """Check that a model fits the data's channels, image size and classes.

    Raises:
        InputError: the model was trained on other classes, cannot take these images, or does not return one logit per
            class.
    """
    known = facts(model).classes
    if known and known != dataset.classes:
        raise InputError(
            f"The model was trained on the classes {_few(known)}, but {dataset.name} has {_few(dataset.classes)}: "
            "evaluate it on data with the same classes."
        )
    check_values(model)
    shape = (1, dataset.channels, *dataset.image_size)
    try:
        with evaluating(model):
            logits = model(fitting(model, torch.zeros(shape)))
    except Exception as error:  # a module of the user's may fail in any way
        hint = "; pellucid.wrap(model, call=...) gives it more inputs" if isinstance(error, TypeError) else ""
        raise InputError(
            f"The model cannot take images of {shape[1]} channels and {shape[2]}x{shape[3]} pixels as in "
            f"{dataset.name} ({first_line(error)}){hint}."
        ) from None
    if not isinstance(logits, Tensor) or logits.shape != (1, len(dataset.classes)):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"The model returns {found} for one image, but {dataset.name} has {len(dataset.classes)} classes: "
            "it must return one logit per class; pellucid.wrap(model, logits=...) takes them out of another output."
        )


def check_logits(found: object, images: int, classes: Sequence[str] | None = None) -> None:
    """Check that what a model `found` for `images` images is one logit per class for each.

    Raises:
        InputError: it is not a tensor (images, K), or K is not the number of classes.
    """
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != images:
        form = f"shape {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InputError(
            f"The model returns {form} for {images} images: it must return logits (images, classes); "
            "wrap it with pellucid.wrap(model, logits=...)."
        )
    if classes is not None and found.shape[1] != len(classes):
        raise InputError(f"The model returns {found.shape[1]} logits per image, but there are {len(classes)} classes.")


def _few(names: Iterable[str]) -> str:
    names = [plain_text(name, 40) for name in names]
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
