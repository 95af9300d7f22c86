r"""What images say about the filters of a layer: one pass that keeps only sums, and the table of the rules' formulas.

For image i of class $y_i$ let $a_i \in R^C$ be its responses: the inputs of the last linear layer, or the outputs of an
inner layer averaged over positions. With K classes the pass keeps counts $n_c$, class sums (K, C), the covariance
(C, C) and histograms (K, C), never responses: 1000 classes of 2048 filters take about 100 MB in float64.

Scores $s_{cj}$ of filter j for class c; W and b are the last layer's weights and bias, $\mu_c$ is the class's mean
response, "top k" are an image's k largest responses:

| rule | $s_{cj}$ |
|---|---|
| `frequency` | fraction of the class's images that have j in their top k (1) |
| `mass` | mean over the class's images of $a_{ij} / \sum_m a_{im}$ where j is in the top k, else 0 (1) |
| `evidence` | $W_{cj}\,\mu_{cj}$: the filter's contribution to the class's mean logit |
| `omp` | decrease of the logit's mean squared error when j joins the set (2) |
| `l1` | the penalty at which j joins the lasso's path (3) |
| `gradient` | mean over the class's images of the sum over positions of $a_j\,\partial z_c/\partial a_j$ (4) |
| `weight` | $W_{cj}$; a control |
| `random` | uniform in (0, 1], drawn from the seed; the control |

(1) Badola et al. 2021: their histogram, and the sums of their L1-normalised responses. (2) Pati, Rezaiifar and
Krishnaprasad 1993; Chen, Billings and Luo 1989. (3) Tibshirani 1996; Efron et al. 2004. (4) Gradient times input of
Shrikumar et al. 2016, on channels.

`omp` and `l1` approximate the logit $z_c = W_c a + b_c$ by few filters, with weights v and bias b'. With the covariance
$\Sigma$ of all images $E(z_c - v a - b')^2 = (W_c - v)\,\Sigma\,(W_c - v)^\top$ for the best b', so that sums suffice
(see `omp`, `lasso` and `refit`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.classfilters.last_layer import Head
from pellucid.classfilters.responses import batch_responses, check_labels, requested_head
from pellucid.core.device import fitting, has_double
from pellucid.core.errors import InputError
from pellucid.core.facts import unwrapped
from pellucid.core.measure.pairs import Pairs, open_data
from pellucid.core.modes import on_device


@dataclass(frozen=True)
class Evidence:
    """Sums of one pass over the images; floating-point tensors are float64 on the CPU.

    Attributes:
        layer: name of the layer: the last layer, whose inputs were read, or an inner layer, whose outputs were read.
        classes: K names.
        counts: (K,) int64, images per class; 0 for classes of the network that the data do not have.
        mean: (K, C) mean response of each filter over the images of a class; 0 without any.
        total: (C,) mean response over all images.
        cov: (C, C) population covariance over all images, if requested.
        frequency: {k: (K, C)} fraction of a class's images in which a filter is among the k largest responses. Filters
            that do not respond (0) are never counted; ties go to the lower index.
        mass: {k: (K, C)} mean of the L1-normalised response where it is among the k largest.
        gradient: (K, C) mean of gradient times activation, if requested.
        least: the smallest response.
        scale: the largest magnitude of a response.
        head: the last layer; None if an inner layer was read.
        correct: images that the whole network classifies correctly.
    """

    layer: str
    classes: tuple[str, ...]
    counts: Tensor
    mean: Tensor
    total: Tensor
    cov: Tensor | None
    frequency: dict[int, Tensor]
    mass: dict[int, Tensor]
    gradient: Tensor | None
    least: float
    scale: float
    head: Head | None
    correct: int

    @property
    def width(self) -> int:
        """Filters of the layer (C)."""
        return self.mean.shape[1]


def measure(
    model: nn.Module,
    data: Any,
    layer: str | None = None,
    *,
    tops: Sequence[int] = (),
    covariance: bool = False,
    gradient: bool = False,
    split: str = "train",
    device: str | torch.device | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> Evidence:
    """Pass once over labelled images, in evaluation mode, and keep only sums.

    Args:
        model: any classifier, images (N, ...) -> logits (N, K). Afterwards it is as before: its device, the training
            mode of every submodule, gradients.
        data: as in `open_data`.
        layer: dotted name of an inner layer, whose outputs are averaged over positions; default the inputs of the last
            linear layer.
        tops: numbers of largest responses per image to count in `frequency` and `mass`.
        covariance: also sum up the (C, C) covariance.
        gradient: also sum up gradient times activation; costs a backward pass from the logits to the layer.
        split: part of a named data set or `Dataset`: "train" or "val".
        device: where to compute; the model is moved there and back. Default: where it is.
        batch_size: images per step.
        workers: processes that decode streamed images.

    Raises:
        InputError: no such layer, a layer that does not run exactly once per pass, no last linear layer, labels that
            are not whole numbers from 0 to K - 1, a class without an image that has some in another split, responses
            that are not finite, or a number in `tops` out of range; or the test split, on which accuracy is measured.
    """
    model = unwrapped(model)
    with on_device(model, device):
        pairs = open_data(model, data, split, fitting="Filters are chosen", batch_size=batch_size, workers=workers)
        return _measure(model, pairs, layer, tops, covariance, gradient)


def _measure(
    model: nn.Module, pairs: Pairs, layer: str | None, tops: Sequence[int], covariance: bool, gradient: bool
) -> Evidence:
    sums: _Sums | None = None
    head: Head | None = None
    correct = 0
    for images, labels in pairs:
        if not len(images):
            continue
        images = fitting(model, images)
        if sums is None:
            head = requested_head(model, images, layer)
        name = head.name if head is not None else str(layer)
        responses, products, logits = batch_responses(model, images, name, head, labels if gradient else None)
        if sums is None:
            names = pairs.classes or tuple(map(str, range(logits.shape[1])))
            if len(names) != logits.shape[1]:
                raise InputError(
                    f"The network has {logits.shape[1]} outputs, but there are {len(names)} classes: give data with as "
                    "many classes as outputs."
                )
            sums = _Sums(responses.shape[1], names, tops, covariance, gradient, responses.device)
        labels = check_labels(labels, len(images), len(sums.names)).to(logits.device)
        correct += int((logits.argmax(1) == labels).sum())
        sums.add(responses, labels, products)
    if sums is None:
        raise InputError(f"There are no images in {pairs.title}: give at least one per class.")
    return sums.result(name, head, correct, pairs)


class _Sums:
    """The sums of a pass, updated batch by batch; nothing here grows with the number of images."""

    def __init__(
        self,
        width: int,
        names: tuple[str, ...],
        tops: Sequence[int],
        covariance: bool,
        gradient: bool,
        device: torch.device,
    ) -> None:
        if any(not 1 <= k <= width for k in tops):
            worst = next(k for k in tops if not 1 <= k <= width)
            raise InputError(f"k={worst} is out of range: the layer has {width} filters.")
        self.names, self.tops = names, tuple(tops)
        # Without float64 there, responses are summed up on the CPU.
        self.device = device if has_double(device) else torch.device("cpu")

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=self.device)

        self.counts = torch.zeros(len(names), dtype=torch.int64, device=self.device)
        self.sums = zeros(len(names), width)
        self.mean, self.scatter = zeros(width), zeros(width, width) if covariance else None
        self.gradient = zeros(len(names), width) if gradient else None
        self.frequency = {k: zeros(len(names), width) for k in self.tops}
        self.mass = {k: zeros(len(names), width) for k in self.tops}
        self.n = 0
        self.least, self.scale = math.inf, 0.0

    def add(self, responses: Tensor, labels: Tensor, products: Tensor | None) -> None:
        a, labels = responses.detach().to(self.device).double(), labels.to(self.device)
        least, most = (float(value) for value in a.aminmax())
        if not math.isfinite(least) or not math.isfinite(most):
            raise InputError("The layer returns NaN or infinity: check the weights and the normalisation.")
        self.least, self.scale = min(self.least, least), max(self.scale, abs(least), abs(most))
        self.counts += torch.bincount(labels, minlength=len(self.names))
        self.sums.index_add_(0, labels, a)
        # Chan, Golub and LeVeque 1983: centred batch by batch, so that large means do not cost precision.
        mean, b = a.mean(0), len(a)
        gap = mean - self.mean
        if self.scatter is not None:
            centred = a - mean
            self.scatter.addmm_(centred.T, centred)
            self.scatter.addr_(gap, gap, alpha=self.n * b / (self.n + b))
        self.n += b
        self.mean += gap * (b / self.n)
        if self.gradient is not None and products is not None:
            self.gradient.index_add_(0, labels, products.to(self.device).double())
        if self.tops and self.least >= 0:
            values, order = a.sort(dim=1, descending=True, stable=True)
            part = values / values.sum(1, keepdim=True).clamp(min=1e-300)
            responding = (values > 0).double()
            for k in self.tops:
                where = labels[:, None] * a.shape[1] + order[:, :k]
                self.frequency[k].view(-1).index_add_(0, where.flatten(), responding[:, :k].flatten())
                self.mass[k].view(-1).index_add_(0, where.flatten(), part[:, :k].flatten())

    def result(self, layer: str, head: Head | None, correct: int, pairs: Pairs) -> Evidence:
        counts = self.counts.cpu()
        if missing := [place for place in (counts == 0).nonzero().flatten().tolist() if place not in pairs.absent]:
            name = self.names[missing[0]]
            raise InputError(f"Class {name!r} has no image in {pairs.title}: give at least one image of every class.")
        each = counts.double().clamp(min=1)[:, None]
        cov = None if self.scatter is None else (self.scatter / self.n).cpu()
        return Evidence(
            layer=layer,
            classes=self.names,
            counts=counts,
            mean=self.sums.cpu() / each,
            total=self.mean.cpu(),
            cov=cov,
            frequency={k: histogram.cpu() / each for k, histogram in self.frequency.items()},
            mass={k: histogram.cpu() / each for k, histogram in self.mass.items()},
            gradient=None if self.gradient is None else self.gradient.cpu() / each,
            least=self.least,
            scale=self.scale,
            head=head,
            correct=correct,
        )
