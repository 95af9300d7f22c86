"""The images that a student learns from, by the words that name them.

A folder of images; real: all training images of the data, without their own held-out ones; real:K: K per class;
random:N: N of all; noise:N: Gaussian noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pellucid.core.data.dataset import Dataset
from pellucid.core.data.splits import MemorySplit, Split, for_fitting
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization
from pellucid.core.seeds import seed_of
from pellucid.distillation.features import logits_of
from pellucid.distillation.folder import read

LEARNED = "A student learns"  # from what `for_fitting` accepts


@dataclass(frozen=True)
class Source:
    """Images to learn from.

    Attributes:
        split: the images, labelled in the order of the data's classes.
        logits: (N, K) stored with them, in the same order; None where there are none.
        normalization: of the network that they were made from, where a folder records it.
    """

    split: Split
    logits: Tensor | None = None
    normalization: Normalization | None = None


def read_source(word: str, dataset: Dataset, seed: int, teacher: nn.Module | None, norm: Normalization) -> Source:
    """The images that `word` names.

    Args:
        word: see above.
        dataset: the real data.
        seed: of random choices and of noise.
        teacher: labels noise; None without a teacher.
        norm: of the input: noise has its mean and standard deviation.

    Raises:
        InputError: no such images, or images that do not fit the data.
    """
    kind, _, number = word.partition(":")
    if word == "real":
        return Source(for_fitting(dataset.train, LEARNED))
    if kind in ("real", "random", "noise") and number:
        if not number.isdigit() or int(number) < 1:
            raise InputError(f"{word!r} names no images: give a whole number, as in {kind}:10.")
        if kind == "noise":
            return Source(_noise(dataset, int(number), seed, teacher, norm))
        return Source((_per_class if kind == "real" else _of_all)(dataset, int(number), seed))
    if dataset.name.startswith("folder:") and Path(dataset.name[len("folder:") :]).resolve() == Path(word).resolve():
        raise InputError(
            f"Part of {word!r} is the test set of {dataset.name}, so students cannot learn from all of it: name real, "
            "which stands for the rest, or other data."
        )
    images = read(word)
    if sorted(images.classes) != sorted(dataset.classes):
        raise InputError(f"The classes of {word!r} are not those of {dataset.name}: give images of the same classes.")
    split = images.split
    if (split.channels, *split.image_size) != (dataset.channels, *dataset.image_size):
        sizes = " and ".join(f"{c}x{h}x{w}" for c, (h, w) in ((s.channels, s.image_size) for s in (split, dataset)))
        raise InputError(f"The images of {word!r} and those of {dataset.name} differ in size, {sizes}.")
    place = torch.tensor([dataset.classes.index(name) for name in images.classes])
    logits = images.logits if images.logits is None else images.logits[:, place.argsort()]
    stored = Normalization.of(images.manifest.get("normalization"))
    return Source(replace(split, labels=place[split.labels]), logits, stored)


def joined(splits: Sequence[Split]) -> Split:
    """All images of several splits, one split after the other.

    Raises:
        InputError: several splits, and one of them does not fit into memory.
    """
    if len(splits) == 1:
        return splits[0]
    held = [split for split in splits if isinstance(split, MemorySplit)]
    if len(held) < len(splits):
        raise InputError("Several sources of images must fit into memory: give one, or smaller ones.")
    return MemorySplit(torch.cat([s.images for s in held]), torch.cat([s.labels for s in held]), held[0].budget)


def _noise(dataset: Dataset, count: int, seed: int, teacher: nn.Module | None, norm: Normalization) -> Split:
    """Gaussian noise with the input's mean and standard deviation, labelled by the teacher."""
    if teacher is None:
        raise InputError("Only a teacher can label noise: name the --teacher.")
    generator = torch.Generator().manual_seed(seed_of("noise", seed))
    noise = torch.randn(count, dataset.channels, *dataset.image_size, generator=generator)
    pixels = (255 * norm.undo(noise).clamp(0, 1)).round().byte()
    return MemorySplit(pixels, logits_of(teacher, pixels, norm).argmax(1))


def _per_class(dataset: Dataset, count: int, seed: int) -> Split:
    """`count` random training images per class, or all of a class that has fewer."""
    order = _shuffled(dataset, seed)
    labels = dataset.train.labels[order]
    picks = [order[labels == label][:count] for label in range(len(dataset.classes))]
    return for_fitting(dataset.train, LEARNED).take(torch.cat(picks))


def _of_all(dataset: Dataset, count: int, seed: int) -> Split:
    """`count` random training images."""
    if count > len(dataset.train):
        raise InputError(f"{dataset.name} has {len(dataset.train)} training images, not {count}: ask for fewer.")
    return for_fitting(dataset.train, LEARNED).take(_shuffled(dataset, seed)[:count])


def _shuffled(dataset: Dataset, seed: int) -> Tensor:
    return torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed_of("real", seed)))
