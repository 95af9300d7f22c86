"""Flags that several commands share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pellucid.core.ranges import Finite, Positive, Side


@dataclass(frozen=True)
class ReadingSettings:
    """How a checkpoint that does not describe itself is read.

    Args:
        model: architecture of a foreign checkpoint, as in train; or name the checkpoint as MODEL=FILE. Default: the one
            known network that its tensors fit. Your own code, FILE.py:FACTORY, runs only where you name it so.
        model_args: arguments of your own code's factory, or of a published network, as NAME=VALUE.
        prefix: where in a larger module the network is, such as net.backbone; default wherever it fits.
        strict: refuse a foreign checkpoint whose tensors do not all fit; if not, what fits is loaded.
    """

    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    prefix: str | None = None
    strict: bool = True

    def flags(self) -> list[str]:
        """The words of a command line that set the same."""
        return _words(dataclasses.asdict(self))

    def reading(self) -> dict[str, Any]:
        """How a checkpoint is read, as keywords of `core.source.open_network`."""
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(ReadingSettings)}


@dataclass(frozen=True)
class NetworkSettings(ReadingSettings):
    """What a checkpoint may not say of itself, for commands that open a network and read no data.

    `core.source.open_network` takes the same.

    Args:
        image_size: side of the images in pixels; default the size that the model was trained on.
        mean: mean of each input channel (pixels in 0 to 1), for a checkpoint that does not store it.
        std: standard deviation of each input channel, for a checkpoint that does not store it.
    """

    image_size: Side | None = None
    mean: list[Finite] | None = None
    std: list[Positive] | None = None


@dataclass(frozen=True)
class SourceSettings(ReadingSettings):
    """The data a command uses, and what it needs to know of a checkpoint that does not describe itself.

    `core.source.open_source` turns the name of a network and these settings into a model and data.

    Args:
        data: digits, cifar10[:PATH], cifar100[:PATH], folder:PATH, npz:PATH, or test:PATH (class folders or an .npz
            file of test images alone); default the run's own data.
        image_size: side in pixels to resize images to; default the size that the model was trained on.
        mean: mean of each input channel (pixels from 0 to 1), if the checkpoint does not record it.
        std: standard deviation of each input channel, if the checkpoint does not record it.
    """

    data: str | None = None
    image_size: Side | None = None
    mean: list[Finite] | None = None
    std: list[Positive] | None = None


@dataclass(frozen=True)
class ClassedSettings(SourceSettings):
    """The same for a command that measures on labels, which may number the classes in another way.

    Args:
        classes: file that names the model's classes in its order, one per line, if the checkpoint does not; a line may
            hold the name of a folder and a name to read. The data may have fewer classes, in any order.
    """

    classes: str | None = None


def _words(values: Mapping[str, Any]) -> list[str]:
    """The flags of all values that are set."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, dict):
            value = [f"{key}={one}" for key, one in value.items()] or None
        if value is True or value is False:
            words += [] if value else [f"--no-{name.replace('_', '-')}"]
        elif value is not None:
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return words
