"""Networks of published projects, named PROJECT:NAME: their checkpoints give the logits that they gave there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from pellucid.core.errors import InputError, near, shown
from pellucid.core.facts import ModelFacts, Normalization
from pellucid.core.registry import Registry


class Project(Protocol):
    """The networks of one project.

    `args` are what --model-args says of a network: what its checkpoints do not hold.
    """

    def names(self) -> tuple[str, ...]:
        """What is published."""

    def build(
        self, name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], args: Mapping[str, Any]
    ) -> nn.Module:
        """The network with random weights; InputError for numbers or `args` that it cannot have."""

    def image_size(self, name: str) -> tuple[int, int]:
        """(height, width) of the images that its published weights were trained on."""

    def normalization(self, name: str) -> Normalization | None:
        """How these images were normalised; None if nobody says so."""

    def describe(self, name: str, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Any]:
        """ "num_classes", "in_channels" and "image_size" [H, W] of a published state dict, from its shapes."""

    def read(self, name: str, state: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Tensor]:
        """A published state dict under the names, and in the arithmetic, of the network that `build` returns.

        A state dict that has these names already is returned as it is.
        """


PROJECTS: Registry[Project] = Registry("project of published networks", own="PROJECTS")


def is_published(name: object) -> bool:
    """Whether `name` begins with that of a project."""
    return isinstance(name, str) and ":" in name and name.partition(":")[0] in PROJECTS.names()


def project_of(name: str) -> tuple[Project, str]:
    """The project that PROJECT:NAME names, and NAME.

    Raises:
        InputError: the project has no such network.
    """
    prefix, _, own = name.partition(":")
    project = PROJECTS[prefix]
    if own not in project.names():
        raise InputError(f"{prefix} has no network {shown(own)}: {near(own, project.names(), limit=40)}")
    return project, own


def published_normalization(known: ModelFacts) -> Normalization | None:
    """How the images of a published network were normalised in its project; None for any other network."""
    name = (known.description or {}).get("model")
    if not is_published(name):
        return None
    project, own = project_of(str(name))
    found = project.normalization(own)
    return found if found is not None and found.channels == known.in_channels else None


def training_of(known: ModelFacts) -> str:
    """A sentence about the images that a published network is taken to have been trained on."""
    (height, width), norm = known.image_size or (0, 0), known.normalization
    how = f" with mean {_listed(norm.mean)} and standard deviation {_listed(norm.std)}" if norm is not None else ""
    return (
        f"Its file does not say so, but {(known.description or {}).get('model')} was trained on images of "
        f"{height}x{width} pixels{', normalised' if how else ''}{how}: if this one was not, give --image-size, --mean "
        "and --std."
    )


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
