"""Change what a classifier decides by editing its last layer, and measure what that does to everything else.

An edit is a copy of the model with another last layer, and its accuracy before and after on given images. Removing the
filters of a class alone does not remove the class: other filters carry its evidence too (on CIFAR-10 the accuracy of a
ResNet-20 on a class falls from 92 % to 87 % without the 5 filters most selective to it). Removing its row does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.classfilters.accuracy import accuracy, check
from pellucid.classfilters.last_layer import Head
from pellucid.classfilters.responses import responses
from pellucid.core.data.dataset import Dataset
from pellucid.core.errors import InputError
from pellucid.core.facts import unwrapped
from pellucid.core.measure.pairs import named, open_data
from pellucid.core.measure.share import Share
from pellucid.core.network.duplicate import duplicate
from pellucid.core.network.tap import module_at

NEVER = -1e4  # bias of a removed class: finite even in half precision, so that losses and exports stay finite


@dataclass(frozen=True)
class Edit:
    """An edited copy and what the edit costs.

    Attributes:
        model: the copy, in evaluation mode; its last layer is a plain linear one (or a 1x1 convolution, as before).
        class_before, class_after: accuracy on the images of the class.
        others_before, others_after: accuracy on all other images.
    """

    model: nn.Module
    class_before: Share
    class_after: Share
    others_before: Share
    others_after: Share

    def to_json(self) -> dict[str, Any]:
        """The four accuracies as plain JSON values."""
        names = ("class_before", "class_after", "others_before", "others_after")
        return {name: getattr(self, name).to_json() for name in names}


def remove_class(
    model: nn.Module,
    class_index: int,
    data: Any,
    filters: Sequence[int] | int | None = None,
    *,
    means: Tensor | None = None,
    split: str = "test",
    selected_on: Any = None,
) -> Edit:
    """A copy that never predicts a class: its row of the last layer is zero, its bias -10,000.

    Args:
        model: a classifier with a linear last layer; it stays as it is.
        class_index: the class, from 0.
        data: images to measure accuracy on: a data set's name, a `Dataset`, (images already normalised, labels), or a
            DataLoader.
        filters: also hold these filters at their mean for all images and all classes, so that no class depends on them
            any more: their numbers, or how many of those most selective to the class (`selective_filters`); default
            none.
        means: (C,) mean of each filter, used for `filters`; default their means over `selected_on`.
        split: part of a named data set or `Dataset` that accuracy is measured on; with `filters`, "val" or "test".
        selected_on: images on which `filters` are selected and their means taken, never those that accuracy is measured
            on: in any of the forms of `data`, of a named data set or `Dataset` the training images. Default: the
            training images of `data`, if it has any; images handed over as tensors or by a DataLoader have none.

    Raises:
        InputError: a class or filter that does not exist, filters selected on the images that accuracy is measured on,
            data that do not fit, or no linear last layer.
    """
    data = named(model, data)
    others: Any = None
    if filters is not None and (isinstance(filters, int) or means is None):
        others = _apart(data, split, named(model, selected_on))
    features, labels, head = responses(model, open_data(model, data, split))
    classes, width = head.weight.shape
    _within("class", class_index, classes)
    weight, bias = head.weight.clone(), head.bias.clone()
    if filters is not None:
        found, classes_of = features, labels
        if others is not None:
            pairs = open_data(model, others, "train", fitting="Filters are selected, and their means taken,")
            found, classes_of, _ = responses(model, pairs)
        middle = found.double().mean(0) if means is None else means.double().cpu()
        if tuple(middle.shape) != (width,):
            raise InputError(f"means have shape {list(middle.shape)}: give one for each of {width} filters.")
        if isinstance(filters, int):
            filters = selective_filters(found, classes_of, head.weight, class_index, filters)
        for number in filters:
            _within("filter", number, width)
        chosen = torch.tensor(sorted(set(filters)), dtype=torch.int64)
        # W a + b with a_j = mean_j for all images: the mean's contribution moves into the bias.
        bias += weight[:, chosen] @ middle[chosen]
        weight[:, chosen] = 0
    weight[class_index], bias[class_index] = 0, NEVER
    return _edited(model, head, weight, bias, features, labels, class_index)


def _apart(data: Any, split: str, selected_on: Any) -> Any:
    """The images to select filters on, where accuracy is measured on `split` of `data`.

    Raises:
        InputError: they would be the same images.
    """
    if selected_on is None and not isinstance(data, Dataset):
        raise InputError(
            "Filters are selected, and their means taken, on other images than those that accuracy is measured on: "
            "give them with selected_on=."
        )
    chosen = data if selected_on is None else selected_on
    if isinstance(chosen, Dataset) and isinstance(data, Dataset):
        same = chosen.fingerprint == data.fingerprint and data.part(split).role == "train"
    else:
        same = chosen is data
    if same:
        raise InputError(
            "Filters would be selected on the images that accuracy is then measured on: use other images for one of "
            "the two (split='test', or selected_on=)."
        )
    return chosen


def reweight(model: nn.Module, filter: int, class_index: int, factor: float, data: Any, *, split: str = "test") -> Edit:
    """A copy in which one filter counts `factor` times as much for one class: W_cj becomes factor * W_cj.

    Args:
        model: a classifier with a linear last layer; it stays as it is.
        filter: input of the last layer, from 0.
        class_index: the class, from 0.
        factor: 0 removes the filter from the class, -1 reverses its effect.
        data, split: as in `remove_class`.

    Raises:
        InputError: a class or filter that does not exist, a factor that is not finite, data that do not fit, or no
            linear last layer.
    """
    if not torch.isfinite(torch.tensor(float(factor))):
        raise InputError(f"factor={factor} must be a finite number.")
    features, labels, head = responses(model, open_data(model, data, split))
    _within("class", class_index, len(head.weight))
    _within("filter", filter, head.weight.shape[1])
    weight = head.weight.clone()
    weight[class_index, filter] *= factor
    return _edited(model, head, weight, head.bias, features, labels, class_index)


def selective_filters(features: Tensor, labels: Tensor, weight: Tensor, class_index: int, k: int) -> tuple[int, ...]:
    """The k filters whose evidence for a class most exceeds their evidence for the others, most selective first.

    With mu_cj the mean of filter j over the images of class c, and c' over the other classes that have images:
        s_j = W_cj mu_cj - mean over c' of W_c'j mu_c'j.

    Args:
        features, labels, weight: (N, C), (N,), (K, C).
        class_index: c.
        k: how many, from 1 to C.

    Raises:
        InputError: no image of the class or of any other, or a k out of range.
    """
    check(features, labels, weight)
    classes, width = weight.shape
    _within("class", class_index, classes)
    if not 1 <= k <= width:
        raise InputError(f"k={k} filters for a class: choose from 1 to {width}.")
    counts = labels.bincount(minlength=classes)
    sums = torch.zeros(classes, width, dtype=torch.float64).index_add_(0, labels, features.double())
    evidence = weight.double() * sums / counts.clamp(min=1)[:, None]
    others = (counts > 0) & (torch.arange(classes) != class_index)
    if not counts[class_index] or not others.any():
        raise InputError(f"Filters selective to class {class_index} need images of it and of another class.")
    score = evidence[class_index] - evidence[others].mean(0)
    return tuple(score.argsort(descending=True, stable=True)[:k].tolist())


def _edited(
    model: nn.Module, head: Head, weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, class_index: int
) -> Edit:
    before = accuracy(features, labels, head.weight, head.bias).per_class
    after = accuracy(features, labels, weight, bias).per_class
    return Edit(
        with_head(model, head, weight, bias),
        before[class_index],
        after[class_index],
        _sum(before[:class_index] + before[class_index + 1 :]),
        _sum(after[:class_index] + after[class_index + 1 :]),
    )


def with_head(model: nn.Module, head: Head, weight: Tensor, bias: Tensor) -> nn.Module:
    """A copy of `model`, in evaluation mode, whose last layer holds `weight` (K, C) and `bias` (K,)."""
    edited = duplicate(unwrapped(model)).eval()
    old: Any = module_at(edited, head.name)
    kind = next(p for p in [*old.parameters(), *old.buffers()] if p.is_floating_point())
    classes, width = weight.shape
    # A new layer: the old one may lack a bias, or be a decomposed head that cannot hold other filters. Built without
    # weights, because random ones would advance the random state.
    new: Any = nn.Conv2d(width, classes, 1, device="meta") if head.spatial else nn.Linear(width, classes, device="meta")
    new.weight = nn.Parameter(weight.view(new.weight.shape).to(kind, copy=True))
    new.bias = nn.Parameter(bias.to(kind, copy=True))
    new.eval()
    if not head.name:
        return new
    edited.set_submodule(head.name, new)
    return edited


def _sum(shares: Iterable[Share]) -> Share:
    listed = list(shares)
    return Share(sum(share.correct for share in listed), sum(share.n for share in listed))


def _within(what: str, number: int, count: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
        raise InputError(f"There is no {what} {number!r}: choose from 0 to {count - 1}.")
