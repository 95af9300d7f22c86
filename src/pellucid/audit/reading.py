"""What the cards of class filters read of an audit, once: responses of training and test images at the last layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pellucid.classfilters.last_layer import Head, find_head
from pellucid.classfilters.responses import responses
from pellucid.classfilters.top import top_sets
from pellucid.core.data.batches import batches
from pellucid.core.data.splits import Split
from pellucid.core.errors import InputError
from pellucid.core.network.tap import tap
from pellucid.core.seeds import seed_of

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

SHOWN = 5  # filters a class
LIMIT, LARGE_LIMIT = 2000, 500  # images read of each split, and of large ones
CROPPED = 32  # pixels a side from which on a part of an image can be recognised


@dataclass(frozen=True, eq=False)
class Reading:
    """What the cards read of the last layer, once.

    head: that layer; evidence: (K, C) weight times mean response over a class's training images; means: (C,) over all
    of them; shares: (K, C) evidence, positive only, over its sum; sets: for each class its filters, most evidence
    first; found_on: words for the images they were found on.
    features, labels, rows: of the test images measured on: (N, C), (N,), (N,) their numbers.
    mixed: (K, K) how often test images of either class are taken for the other; 0 on the diagonal.
    map: the layer whose maps are pooled to the features; None if there is none, or images are too small to cut.
    """

    head: Head
    evidence: Tensor
    means: Tensor
    shares: Tensor
    sets: tuple[tuple[int, ...], ...]
    found_on: str
    features: Tensor
    labels: Tensor
    rows: Tensor
    mixed: Tensor
    map: str | None
    ablated: dict[int, Tensor] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return self.features.shape[1]

    @cached_property
    def logits(self) -> Tensor:
        """(N, K)."""
        return torch.nn.functional.linear(
            self.features, *(p.to(self.features) for p in (self.head.weight, self.head.bias))
        )

    @cached_property
    def right(self) -> Tensor:
        """(N,) bool: is the answer right?"""
        return self.logits.argmax(1) == self.labels

    def right_without(self, number: int) -> Tensor:
        """(N,) bool: is it when filter `number` is held at its mean? Computed once a filter."""
        if number not in self.ablated:
            change = self.means[number] - self.features[:, number]
            moved = torch.addr(self.logits, change, self.head.weight[:, number].to(change))
            self.ablated[number] = moved.argmax(1) == self.labels
        return self.ablated[number]


_READINGS: WeakKeyDictionary[Audit, Reading | None] = WeakKeyDictionary()


def reading(audit: Audit) -> Reading | None:
    """The reading of an audit, made once; None for a model without a linear last layer."""
    if audit not in _READINGS:
        images, _ = next(_pairs(audit, audit.dataset.test, audit.sample(8)))
        try:
            find_head(audit.model, images)
        except InputError:
            _READINGS[audit] = None
        else:
            _READINGS[audit] = _read(audit)
    return _READINGS[audit]


def _read(audit: Audit) -> Reading:
    limit = LARGE_LIMIT if audit.large else LIMIT
    rows = audit.sample(limit).sort().values
    features, labels, head = responses(audit.model, _pairs(audit, audit.dataset.test, rows))
    train = audit.dataset.train
    if len(train):
        chosen = spread(train.labels, limit, seed_of("filters", audit.seed))
        found, classes, _ = responses(audit.model, _pairs(audit, train, chosen))
        found_on = f"{len(chosen)} of {len(train)} training images" if len(chosen) < len(train) else (
            f"the {len(train)} training images"
        )  # fmt: skip
    else:
        found, classes, found_on = features, labels, f"the same {len(labels)} test images"
    counts = classes.bincount(minlength=len(head.weight))
    sums = torch.zeros_like(head.weight).index_add_(0, classes, found.double())
    evidence = head.weight * sums / counts.clamp(min=1)[:, None]
    positive = evidence.clamp(min=0)
    confusion = torch.tensor(audit.evaluation.confusion)
    return Reading(
        head=head,
        evidence=evidence,
        means=found.double().mean(0).to(features.dtype),
        shares=positive / positive.sum(1, keepdim=True).clamp(min=1e-300),
        sets=top_sets(evidence, min(SHOWN, evidence.shape[1]), positive=True),
        found_on=found_on,
        features=features,
        labels=labels,
        rows=rows,
        mixed=(confusion + confusion.T).fill_diagonal_(0),
        map=_find_map(audit, head) if min(audit.dataset.image_size) >= CROPPED else None,
    )


def spread(labels: Tensor, limit: int, seed: int) -> Tensor:
    """Numbers of at most `limit` images, as even over the classes as they allow, drawn by seed, in ascending order."""
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


# --- maps ---


@torch.no_grad()
def _find_map(audit: Audit, head: Head) -> str | None:
    """The last layer whose output is a map that, averaged or at its largest, is what the last linear layer gets."""
    with tap(audit.model, [name for name, _ in audit.model.named_modules()]) as taps:
        audit.forward(audit.images(torch.tensor([0])))
    found = [name for name, seen in taps.items() if seen.calls == 1 and _is_map(seen.output, taps[head.name].input)]
    return found[-1] if found else None


@torch.no_grad()
def peaks(audit: Audit, layer: str, best: dict[int, list[int]]) -> dict[tuple[int, int], tuple[int, ...]]:
    """(filter, image) -> (top, bottom, left, right) of half the image's size around the peak of the filter's map."""
    rows = torch.tensor(sorted({row for shown in best.values() for row in shown}))
    with tap(audit.model, [layer]) as taps:
        audit.forward(audit.images(rows))
    maps, size = taps[layer].output, audit.dataset.image_size
    boxes = {}
    for number, shown in best.items():
        for row in shown:
            peak = divmod(int(maps[int((rows == row).nonzero()), number].argmax()), maps.shape[3])
            box: tuple[int, ...] = ()
            for axis in (0, 1):
                side = size[axis] // 2
                middle = (peak[axis] + 0.5) * size[axis] / maps.shape[2 + axis]
                start = min(max(0, round(middle - side / 2)), size[axis] - side)
                box += (start, start + side)
            boxes[number, row] = box
    return boxes


def _is_map(output: Any, pooled: Any) -> bool:
    """Is it (B, C, h, w), more than one position, and its mean or maximum over positions the last layer's input?"""
    if not (isinstance(output, Tensor) and isinstance(pooled, Tensor) and output.dim() == 4):
        return False
    pooled = pooled.mean((2, 3)) if pooled.dim() == 4 else pooled
    if output.shape[:2] != pooled.shape or output[0, 0].numel() < 2:
        return False
    slack = 1e-4 * float(pooled.abs().max().clamp(min=1e-12))
    return any(bool((form - pooled).abs().max() <= slack) for form in (output.mean((2, 3)), output.amax((2, 3))))
