"""What the cards of class filters read, once per audit: the inputs of the last layer, which are the filters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.audit.maps import pooled_map
from pellucid.classfilters.last_layer import Head, find_head
from pellucid.classfilters.responses import responses
from pellucid.classfilters.top import top_sets
from pellucid.core.data.batches import batches
from pellucid.core.data.splits import Split, for_fitting, holdout
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

SHOWN = 5  # filters per class
LIMIT, LARGE_LIMIT = 2000, 500  # images read per split, and of large ones
CROPPED = 32  # pixels a side from which on a part of an image can be recognised


@dataclass(frozen=True, eq=False)
class Reading:
    """The last layer, the evidence found on training images, and the features of test images to measure on.

    Attributes:
        head: the last layer.
        evidence: (K, C) weight times mean response over a class's training images; of data without any, over half of
            the images, on which nothing is measured then.
        means: (C,) mean response over all of them.
        fractions: (K, C) positive evidence over its sum.
        sets: per class its filters, most evidence first.
        found_on: words for the images that the evidence was found on.
        features, labels, rows: of the test images: (N, C), (N,), and (N,) their indices.
        confused: (K, K) how many test images of either class are classified as the other; 0 on the diagonal.
        map: the layer whose maps are pooled to the features; None if there is none, or images are too small to crop.
    """

    head: Head
    evidence: Tensor
    means: Tensor
    fractions: Tensor
    sets: tuple[tuple[int, ...], ...]
    found_on: str
    features: Tensor
    labels: Tensor
    rows: Tensor
    confused: Tensor
    map: str | None
    _ablated: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def width(self) -> int:
        """Number C of filters."""
        return self.features.shape[1]

    @cached_property
    def users(self) -> list[list[int]]:
        """For each filter the classes that have it in their set, ascending."""
        found: list[list[int]] = [[] for _ in range(self.width)]
        for index, chosen in enumerate(self.sets):
            for number in chosen:
                found[number].append(index)
        return found

    @cached_property
    def logits(self) -> Tensor:
        """(N, K)."""
        return torch.nn.functional.linear(
            self.features, *(p.to(self.features) for p in (self.head.weight, self.head.bias))
        )

    @cached_property
    def correct(self) -> Tensor:
        """(N,) bool: is the prediction correct?"""
        return self.logits.argmax(1) == self.labels

    def correct_without(self, number: int) -> Tensor:
        """(N,) bool: is it when filter `number` is held at its mean? Computed once per filter."""
        if number not in self._ablated:
            change = self.means[number] - self.features[:, number]
            moved = torch.addr(self.logits, change, self.head.weight[:, number].to(change))
            self._ablated[number] = moved.argmax(1) == self.labels
        return self._ablated[number]


def reading(audit: Audit) -> Reading | None:
    """The reading of an audit, made once; None for a model without a linear last layer, or test images alone."""
    return audit.once("filters", lambda: _read(audit))


def _read(audit: Audit) -> Reading | None:
    if audit.dataset.kind == "test":
        return None  # nothing is selected on images that are to be measured on alone
    images, _ = next(_pairs(audit, audit.dataset.test, audit.sample(8)))
    try:
        find_head(audit.model, images)
    except InputError:
        return None
    limit = LARGE_LIMIT if audit.large else LIMIT
    rows = audit.sample(limit).sort().values
    train = audit.dataset.train
    if len(train):
        chosen = balanced_sample(train.labels, limit, seed_of("filters", audit.seed))
        some = f"{len(chosen)} of {len(train)}" if len(chosen) < len(train) else f"the {len(train)}"
        found_on = f"{some} training images"
    else:  # half of the images to find the filters on, and the others to measure them on
        try:
            measured, held = holdout(audit.dataset.test.labels[rows], 0.5, audit.dataset.name)
        except InputError:
            return None
        train, chosen, rows = audit.dataset.test.marked("train"), rows[held], rows[measured]
        found_on = f"half of the images, {len(chosen)} that are kept apart for this"
    found, classes, _ = responses(audit.model, _pairs(audit, for_fitting(train, "Filters are chosen"), chosen))
    features, labels, head = responses(audit.model, _pairs(audit, audit.dataset.test, rows))
    counts = classes.bincount(minlength=len(head.weight))
    sums = torch.zeros_like(head.weight).index_add_(0, classes, found.double())
    evidence = head.weight * sums / counts.clamp(min=1)[:, None]
    positive = evidence.clamp(min=0)
    confusion = torch.tensor(audit.evaluation.confusion)
    return Reading(
        head=head,
        evidence=evidence,
        means=found.double().mean(0).to(features.dtype),
        fractions=positive / positive.sum(1, keepdim=True).clamp(min=1e-300),
        sets=top_sets(evidence, min(SHOWN, evidence.shape[1]), positive=True),
        found_on=found_on,
        features=features,
        labels=labels,
        rows=rows,
        confused=(confusion + confusion.T).fill_diagonal_(0),
        map=pooled_map(audit, head) if min(audit.dataset.image_size) >= CROPPED else None,
    )


def balanced_sample(labels: Tensor, limit: int, seed: int) -> Tensor:
    """Indices of at most `limit` images, as evenly over the classes as possible, sampled by seed, ascending."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = shuffled[labels[shuffled].argsort(stable=True)]  # class by class, shuffled within
    counts = labels.bincount()
    first = (counts.cumsum(0) - counts)[labels[order]]
    rank = torch.arange(len(order)) - first  # first of each class, second of each class, ...
    return order[rank.argsort(stable=True)[:limit]].sort().values


def _pairs(audit: Audit, split: Split, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    stream = batches(
        split.take(rows),
        audit.batch_size,
        mean=audit.normalization.mean,
        std=audit.normalization.std,
        device=audit.device,
        workers=2 if split.streamed else 0,
    )
    return ((batch.images, batch.labels) for batch in stream)
