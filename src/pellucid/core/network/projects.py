"""Networks of published projects, named PROJECT:NAME: their checkpoints give the logits that they gave there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from pellucid.core.errors import InputError, near, shown
from pellucid.core.facts import Normalization
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
