"""Data in any form, as a stream of labelled images that a model takes.

The forms are a name, a `Dataset`, (images, labels), and an iterable of such pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pellucid.core.data.batches import batches
from pellucid.core.data.dataset import Dataset, load_data
from pellucid.core.data.splits import for_fitting
from pellucid.core.device import device_of
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.measure.classes import Classes, listed_classes, matched
from pellucid.core.measure.fits import check_fits, normalization


@dataclass(frozen=True)
class Pairs:
    """Labelled images as a stream of (images (B, ...), labels (B,)).

    Each iteration is one pass over the images; data that came as a generator can be iterated over only once.

    Attributes:
        open: starts a pass over the images.
        classes: names of the classes, if known.
        title: the images' name in tables.
        absent: the places among `classes` of those that no split of a data set has images of.
    """

    open: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    classes: tuple[str, ...] | None
    title: str
    absent: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.open()


def open_data(
    model: nn.Module,
    data: Any,
    split: str = "train",
    *,
    fitting: str | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> Pairs:
    """`data` as a stream of images, normalised as `model` expects, with labels.

    Args:
        model: the network that will see the images; its facts (normalisation, classes, image size) apply.
        data: a data set's name as in `load_data`, a `Dataset`, (images, labels) already normalised, or an iterable of
            such pairs (a DataLoader).
        split: part of a named data set or `Dataset`: "train", "val" or "test".
        fitting: what is fitted to these images, selected or tuned on them, as `for_fitting` takes it; default nothing.
            The test split is then refused. Images handed over in another form have no role, and are taken for images
            that may be fitted to.
        batch_size: images per step; an iterable has its own.
        workers: processes that decode images of a data set too large for memory.

    Raises:
        InputError: data in another form, a data set that does not fit the network, or fitting to a test split.
    """
    if batch_size < 1:
        raise InputError(f"A batch size of {batch_size} is out of range: give at least 1.")
    data = named(model, data)
    if isinstance(data, Dataset):
        dataset, images_of = data, data.part(split)
        if fitting is not None:
            for_fitting(images_of, fitting)
        check_fits(model, dataset)
        norm = normalization(model, dataset)

        def read() -> Iterator[tuple[Tensor, Tensor]]:
            stream = batches(
                images_of,
                batch_size,
                mean=norm.mean,
                std=norm.std,
                device=device_of(model),
                workers=workers,
            )
            return ((batch.images, batch.labels) for batch in stream)

        return Pairs(read, dataset.classes, f"{dataset.name} ({split})", dataset.absent)
    names = facts(model).classes
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        images, labels = data
        if len(images) != len(labels):
            raise InputError(f"There are {len(images)} images but {len(labels)} labels: give one label per image.")

        def cut() -> Iterator[tuple[Tensor, Tensor]]:
            return zip(images.split(batch_size), labels.split(batch_size), strict=True)

        return Pairs(cut, names, "the images given")
    if not isinstance(data, Iterable):
        raise InputError(
            f"Data cannot be a {type(data).__name__}: give a name, a Dataset, (images, labels), or an iterable of such."
        )

    def iterate() -> Iterator[tuple[Tensor, Tensor]]:
        for pair in data:
            if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(p, Tensor) for p in pair):
                raise InputError("An iterable of data must yield (images, labels), both tensors.")
            yield pair[0], pair[1]

    return Pairs(iterate, names, "the images given")


def named(model: nn.Module, data: Any, classes: Classes | None = None) -> Any:
    """A name or `Dataset` as a `Dataset` with the classes of `model`; anything else unchanged.

    Args:
        model: images are read at the size that it was trained on.
        data: as in `open_data`.
        classes: a list of the model's classes, as in `evaluate`.
    """
    if isinstance(data, str):
        data = load_data(data, image_size=facts(model).side)
    return matched(model, data, listed_classes(classes))[0] if isinstance(data, Dataset) else data
