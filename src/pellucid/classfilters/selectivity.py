"""How class-selective a layer's filters are: psi, the class-selectivity index, and the index as a training objective.

N images, C filters, K classes. Responses are pooled activations (N, C) of any layer.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.classfilters.responses import pooled, probe
from pellucid.core.data.batches import Batch
from pellucid.core.data.dataset import Dataset
from pellucid.core.errors import InputError
from pellucid.core.network.tap import module_at
from pellucid.core.train.objective import Objective

# --- how selective a layer is ---


def psi(responses: Tensor, labels: Tensor, classes: int, *, share: float = 0.5, mean: bool = False) -> Tensor:
    """Psi (K,), for each class: how few filters hold the fraction `share` of an image's response; 0 means all, values
    near 1 few.

    With r = a / |a|_1 sorted in descending order, m_i the smallest m such that r_1 + ... + r_m >= share, and M_c the
    median of m_i over the images of class c (the mean, if requested):
        psi_c = (C - M_c) / C            (Badola, Padmanabhan, Lal, MIWAI 2023).
    Each class is judged by its own images, however many: `psi(...).nanmean()` is one number in which every class counts
    the same. The published code counts one filter fewer (those whose sum is still below `share`) and assumes classes of
    equal size. Images without any response are left out; a class without images is NaN.

    Raises:
        InputError: negative responses, of which no fraction can be taken, or a share that is not above 0 and at most 1.
    """
    _non_negative(responses, "psi")
    _labelled(responses, labels, classes)
    if not 0 < share <= 1:
        raise InputError(f"share={share:g} must be above 0 and at most 1.")
    responses = responses.double()
    total = responses.sum(1)
    ordered = responses.sort(dim=1, descending=True).values.cumsum(1)
    # Rounding may leave the last sum below the total, but all filters always hold the whole response.
    needed = 1 + (ordered[:, :-1] < share * total[:, None]).sum(1)
    width = responses.shape[1]
    result = torch.full((classes,), math.nan, dtype=torch.float64)
    for number in range(classes):
        counts = needed[(labels == number) & (total > 0)].tolist()
        if counts:
            middle = statistics.fmean(counts) if mean else statistics.median(counts)
            result[number] = (width - middle) / width
    return result


def class_selectivity(responses: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Class-selectivity index (C,) of every filter, from 0 (all classes alike) to 1 (a single class).

    With mu_c the mean response to the images of class c:
        (mu_max - mu_rest) / (mu_max + mu_rest),   mu_max the largest mu_c, mu_rest the mean of the other mu_c
    (Morcos et al. 2018; Leavitt and Morcos 2020). mu_rest is a mean of class means, not of images, so that every class
    has the same weight. Classes without images are left out; a filter that never responds has index 0. Gradients flow
    through it: subtracted from or added to a loss, it is the published regulariser.

    Raises:
        InputError: negative responses, or fewer than two classes with images.
    """
    _non_negative(responses, "class selectivity")
    _labelled(responses, labels, classes)
    counts = labels.bincount(minlength=classes)
    sums = torch.zeros(classes, responses.shape[1], dtype=responses.dtype, device=responses.device)
    sums = sums.index_add(0, labels, responses)
    there = counts > 0
    if int(there.sum()) < 2:
        raise InputError("Class selectivity compares classes: give images of at least two.")
    means = sums[there] / counts[there, None]
    largest = means.amax(0)
    rest = (means.sum(0) - largest) / (len(means) - 1)
    both = largest + rest
    return torch.where(both > 0, (largest - rest) / torch.where(both > 0, both, 1.0), 0.0)


def _non_negative(responses: Tensor, what: str) -> None:
    if responses.dim() != 2 or not responses.shape[1]:
        raise InputError(f"Responses have shape {list(responses.shape)}: give [images, filters].")
    if not bool((responses >= 0).all()):
        raise InputError(
            f"Some responses are negative or NaN, but {what} is defined for responses of 0 or more: use a layer that "
            "follows a ReLU."
        )


def _labelled(responses: Tensor, labels: Tensor, classes: int) -> None:
    if labels.shape != responses.shape[:1] or not len(labels):
        raise InputError(
            f"Labels {list(labels.shape)} do not fit responses {list(responses.shape)}: give one per image."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise InputError(f"Labels run from {int(labels.min())} to {int(labels.max())}: classes are 0 to {classes - 1}.")


@dataclass
class Selectivity(Objective):
    """Cross-entropy minus alpha times the mean class selectivity of layers.

    Selectivity is computed on each process's own images, so it depends on how many processes share a batch.

    Args:
        alpha: above 0 makes filters selective for a class, below 0 makes them less selective.
        layers: dotted names of layers whose outputs are never negative; default every ReLU.
    """

    alpha: float = -1.0
    layers: list[str] | None = None

    taps = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise InputError(f"alpha={self.alpha} must be a finite number.")

    def prepare(self, model: nn.Module, dataset: Dataset, device: torch.device) -> None:
        """Find the layers, and check that their outputs are not negative."""
        names = self.layers
        if names is None:
            names = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
            if not names:
                raise InputError(
                    f"This {type(model).__name__} has no ReLU: name layers whose outputs are never negative."
                )
        else:
            for name in names:
                _, responses, head = probe(model, dataset, name)
                if head is not None or bool((responses < 0).any()):
                    raise InputError(
                        f"Layer {name!r} has outputs below 0, where selectivity is not defined: name a ReLU."
                    )
        self._places = [module_at(model, name) for name in names]
        self._classes = len(dataset.classes)

    def __call__(
        self, forward: Callable[[Tensor], Tensor], batch: Batch, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of one step, and the logits; see `Objective`."""
        if targets.ndim != 1:
            raise InputError("Class selectivity needs images of a single class each: leave out --mixup and --cutmix.")
        seen: list[Tensor] = []

        def keep(module: nn.Module, _: Any, output: Tensor) -> None:
            # Pooled at once: later layers may overwrite it in place. Each use of a module counts as a layer.
            seen.append(pooled(module, output).float())

        with contextlib.ExitStack() as stack:
            for place in self._places:
                stack.callback(place.register_forward_hook(keep).remove)
            logits = forward(images).float()
        loss = self.cross_entropy(logits, targets)
        if len(targets.unique()) < 2:  # nothing to compare
            return loss, logits
        means = [class_selectivity(responses, targets, self._classes).mean() for responses in seen]
        return loss - self.alpha * torch.stack(means).mean(), logits
