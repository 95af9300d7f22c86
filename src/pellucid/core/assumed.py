"""What is assumed of a network whose file does not say it, in sentences for the first lines of tables and pages."""

from __future__ import annotations

from torch import nn

from pellucid.core import vision
from pellucid.core.data.dataset import Dataset
from pellucid.core.data.folder import resized_side
from pellucid.core.facts import Normalization, facts
from pellucid.core.measure.fits import usual_normalization
from pellucid.core.network import models

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def library_name(model: nn.Module) -> str | None:
    """`torchvision:NAME` or `timm:NAME` of a network that is described as one of these."""
    name = (facts(model).description or {}).get("model")
    return name if models.is_zoo(name) else None


def usual_side(model: nn.Module) -> int | None:
    """The side of the images on which the library's own weights of a network of torchvision or timm were trained."""
    name = library_name(model)
    return None if name is None else min(vision.image_size(name))


def about_size(model: nn.Module, size: tuple[int, int], subject: str, dataset: Dataset | None = None) -> str:
    """A sentence on the size of the images of a network that does not record it.

    Args:
        model: the network.
        size: (H, W) that is assumed.
        subject: what does not record it: "the file" or "the model".
        dataset: its data, if any, at this size.
    """
    height, width = size
    shown = f"{height} x {width} pixels"
    cut = ""
    if dataset is not None and dataset.test.streamed:
        cut = f" (the shorter side to {resized_side(height)}, then the centre cut out)"
    if size == (usual_side(model),) * 2 or dataset is None:
        name = library_name(model) or (facts(model).description or {}).get("model", "this network")
        source = f", the usual size of {name}"
    else:
        source = "" if cut else f", the size that they have in {dataset.name}"
    return f"Images are taken at {shown}{cut}{source}; {subject} does not record its own (--image-size)."


def about_normalization(model: nn.Module, dataset: Dataset | None, subject: str) -> str:
    """A sentence on how the input of a network is normalised that does not record it; see `about_size`."""
    rest = f"{subject} does not record its own (--mean, --std)."
    usual = usual_normalization(model, None if dataset is None else dataset.channels)
    if usual is not None:
        numbers = "ImageNet's mean and standard deviation"
        if usual != IMAGENET:
            mean, std = (", ".join(f"{value:g}" for value in values) for values in (usual.mean, usual.std))
            numbers = f"a mean of {mean} and a standard deviation of {std}"
        return f"Images are normalised by {numbers}, as usual for {library_name(model)}; {rest}"
    whose = "the data's training images" if dataset is None else f"the training images of {dataset.name}"
    return f"Images are normalised by the mean and standard deviation of {whose}; {rest}"
