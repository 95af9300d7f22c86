"""What is known of a network besides its weights: one value, kept with the module and read by its type.

A module may have attributes of any name and type, such as a layer called `classes` or a number called `normalization`,
so no attribute is trusted for its name. All that this package knows of a network is one `ModelFacts`: `facts` reads it,
`declare` writes it, and it goes along with copies of the module and into the files of `pellucid.save`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError, shown
from pellucid.core.references import is_code

if TYPE_CHECKING:
    from pellucid.core.network.swap import Changes

_KEY = "_pellucid_facts"

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Normalization:
    """How a network's input is normalised: (x - mean) / std for pixels x in [0, 1], per channel.

    Raises:
        InputError: different numbers of means and standard deviations, a number that is not finite, or a std of 0 or
            less.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(f"mean {list(self.mean)} and std {list(self.std)} need one number per channel each.")
        if not all(map(math.isfinite, [*self.mean, *self.std])) or min(self.std) <= 0:
            raise InputError(f"mean {list(self.mean)} and std {list(self.std)} must be finite, and std above 0.")

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.mean)

    def apply(self, images: Tensor) -> Tensor:
        """Float images (B, C, H, W) in [0, 1], normalised."""
        mean, std = self._as(images)
        return (images - mean) / std

    def undo(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W), back on the scale [0, 1], not clipped."""
        mean, std = self._as(images)
        return images * std + mean

    def wrap(self, model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """`model` as a function of images in [0, 1]; gradients flow through it."""
        return lambda images: model(self.apply(images))

    def to_json(self) -> dict[str, list[float]]:
        """{"mean": [...], "std": [...]}."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def of(cls, value: Normalization | Mapping[str, Sequence[float]] | None) -> Normalization | None:
        """`value` itself, or what a table {"mean", "std"} says; None for None.

        Raises:
            InputError: neither, or numbers that are not a normalisation.
        """
        if value is None or isinstance(value, Normalization):
            return value
        try:
            mean, std = (tuple(float(number) for number in value[name]) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(
                f"{shown(value)} is not a normalisation: give a table of numbers, one per channel, {{'mean': [...], "
                "'std': [...]}}."
            ) from None
        return cls(mean, std)

    def _as(self, images: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (images.dim() - 2)) if images.dim() > 2 else (-1,)
        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device).view(shape)
            for values in (self.mean, self.std)
        )
        return mean, std


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a network; None for whatever is not.

    Attributes:
        description: the table from which `core.network.models.rebuild` builds it again: "model", "num_classes",
            "in_channels", "image_size" [H, W], "form", "layers", "options", "folded"; and "args" of its factory or
            published network, and "code", the SHA-256 of the file of the user's own code.
        classes: names of the classes, in the order of the outputs.
        normalization: how its input is normalised.
        changes: what `convert` or `fold` replaced, a list with one `Change` per layer; its attribute `left` gives, by
            name, the reason why other layers stay.
        difference: after `fold`, the largest difference between outputs, relative to the largest output.
        load_report: after `load`, the tensors that are "missing", "unexpected" and "mismatched".
        foreign: whether the description was made from the shapes of tensors, in a file that has none itself.
        remarks: after `load`, what a reader has to know of how the network was found: whole sentences.
    """

    description: Mapping[str, Any] | None = None
    classes: tuple[str, ...] | None = None
    normalization: Normalization | None = None
    changes: Changes | None = None
    difference: float | None = None
    load_report: Mapping[str, list[Any]] | None = None
    foreign: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the images that the network was built for."""
        size = (self.description or {}).get("image_size")
        return None if size is None else (int(size[0]), int(size[1]))

    @property
    def side(self) -> int | None:
        """The side of its images if they are square."""
        return self.image_size[0] if self.image_size is not None and self.image_size[0] == self.image_size[1] else None

    @property
    def in_channels(self) -> int | None:
        """Number of channels of its images."""
        found = (self.description or {}).get("in_channels")
        return found if found is not None else self.normalization.channels if self.normalization else None

    @property
    def code(self) -> str | None:
        """The user's own code that builds the network, FILE.py:FACTORY, which has to be named to open a file of it."""
        name = (self.description or {}).get("model")
        return name if is_code(name) else None

    def to_json(self) -> dict[str, Any]:
        """What a file stores: "description", "classes" and "normalization" as plain JSON values."""
        return {
            "description": None if self.description is None else dict(self.description),
            "classes": self.classes,
            "normalization": None if self.normalization is None else self.normalization.to_json(),
        }


def facts(model: nn.Module) -> ModelFacts:
    """What is known of `model`; an empty `ModelFacts` for a module that this package knows nothing of."""
    found = vars(unwrapped(model)).get(_KEY)
    return found if isinstance(found, ModelFacts) else ModelFacts()


def declare(model: M, **known: Any) -> M:
    """Record what is known of `model`, in place, and return the model.

    Args:
        model: any network.
        known: fields of `ModelFacts` to set; the others stay as they are. `normalization` may be a table
            {"mean", "std"}, and `classes` any sequence of names.

    Raises:
        InputError: `normalization` is not valid.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> facts(declare(net, classes=["cat", "dog"], normalization={"mean": [0.5], "std": [0.25]})).classes
        ('cat', 'dog')
    """
    if "normalization" in known:
        known["normalization"] = Normalization.of(known["normalization"])
    if known.get("classes") is not None:
        known["classes"] = tuple(known["classes"])
    vars(unwrapped(model))[_KEY] = dataclasses.replace(facts(model), **known)
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of `torch.compile` and `DataParallel`; any other module itself.

    The two share their weights. What a wrapper adds is speed, and a prefix to the names of all layers.
    """
    inner = dict(model.named_children())
    if "_orig_mod" in inner:
        return unwrapped(inner["_orig_mod"])
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(inner["module"])
    return model
