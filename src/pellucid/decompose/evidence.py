r"""What images say about the filters of a layer: one pass, sums only, and a score of every filter for every class.

For image i of class $y_i$ let $a_i \in R^C$ be its responses: what enters the last linear layer, or the output of an
inner layer averaged over positions. With K classes the pass keeps counts $n_c$, class sums (K, C), the covariance
(C, C) and histograms (K, C), never responses: 1000 classes of 2048 filters take about 100 MB in float64.

Scores $s_{cj}$ of filter j for class c; W and b are the last layer's weights and bias, $\mu_c$ is the class's mean
response, "top k" are an image's k largest responses:

| rule | $s_{cj}$ |
|---|---|
| `frequency` | share of the class's images that have j in their top k (1) |
| `mass` | mean over the class's images of $a_{ij} / \sum_m a_{im}$ where j is in the top k, else 0 (1) |
| `evidence` | $W_{cj}\,\mu_{cj}$: the filter's part of the class's mean logit |
| `omp` | drop of the logit's mean squared error when j joins the set (2) |
| `l1` | the penalty at which j joins the lasso's path (3) |
| `gradient` | mean over the class's images of the sum over positions of $a_j\,\partial z_c/\partial a_j$ (4) |
| `weight` | $W_{cj}$; a control |
| `random` | uniform in (0, 1] from the seed; the control |

(1) Badola et al. 2021: their histogram, and their L1-normalised responses added up. (2) Pati, Rezaiifar and
Krishnaprasad 1993; Chen, Billings and Luo 1989. (3) Tibshirani 1996; Efron et al. 2004. (4) Gradient times input of
Shrikumar et al. 2016, on channels.

`omp` and `l1` approximate the logit $z_c = W_c a + b_c$ by few filters, v and b'. With the covariance $\Sigma$ of all
images $E(z_c - v a - b')^2 = (W_c - v)\,\Sigma\,(W_c - v)^\top$ for the best b', so that sums suffice (`pursuit`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.batches import batches
from pellucid.core.data import Dataset
from pellucid.core.data import load as load_data
from pellucid.core.errors import InputError
from pellucid.core.metrics import check_fits, normalization
from pellucid.core.swap import module_at, tap

__all__ = [
    "Evidence",
    "Head",
    "Pairs",
    "find_head",
    "look",
    "matrix",
    "measure",
    "named",
    "open_data",
    "pooled",
    "probe",
    "responses",
]

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
_CLOSE = 1e-4  # of the largest output: what rounding may leave between a layer's output and the network's


# --- data ---


@dataclass
class Pairs:
    """Images and labels as a stream of (images (B, ...), labels (B,)), and what is known of the classes.

    Iterating again passes over the images again, unless they came as a generator.
    """

    open: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    classes: tuple[str, ...] | None
    title: str

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.open()


def open_data(model: nn.Module, data: Any, split: str = "train", *, batch_size: int = 256, workers: int = 0) -> Pairs:
    """`data` as a stream of images, normalised as `model` expects, with labels.

    Args:
        model: the network that will see them; its `normalization`, `classes` and `description` are heeded.
        data: a data set's name as in `load_data`, a `Dataset`, (images, labels) already normalised, or an iterable of
            such pairs (a DataLoader).
        split: part of a named data set or `Dataset`: "train", "val" or "test".
        batch_size: images in a step; an iterable has its own.
        workers: processes that decode images of a data set too large for memory.

    Raises:
        InputError: none of these, or a data set that does not fit the network.
    """
    if batch_size < 1:
        raise InputError(f"A batch size of {batch_size} is out of range: give at least 1.")
    data = named(model, data)
    if isinstance(data, Dataset):
        if split not in ("train", "val", "test"):
            raise InputError(f"There is no split {split!r}: choose train, val or test.")
        dataset = data
        check_fits(model, dataset, _device(model))
        norm = normalization(model, dataset)

        def read() -> Iterator[tuple[Tensor, Tensor]]:
            stream = batches(
                getattr(dataset, split),
                batch_size,
                mean=norm["mean"],
                std=norm["std"],
                device=_device(model),
                workers=workers,
            )
            return ((batch.images, batch.labels) for batch in stream)

        return Pairs(read, dataset.classes, f"{dataset.name} ({split})")
    known = getattr(model, "classes", None)
    names = tuple(known) if known else None
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        images, labels = data
        if len(images) != len(labels):
            raise InputError(f"There are {len(images)} images but {len(labels)} labels: give one label an image.")

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


def named(model: nn.Module, data: Any) -> Any:
    """The `Dataset` of a name, in the image size that `model` was trained on; anything else as it is."""
    if not isinstance(data, str):
        return data
    size = (getattr(model, "description", None) or {}).get("image_size")
    return load_data(data, image_size=size[0] if size and size[0] == size[1] else None)


def _device(model: nn.Module) -> torch.device:
    sample = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if sample is None else sample.device


def _fitting(model: nn.Module, images: Tensor) -> Tensor:
    """`images` on the model's device, in its floating type."""
    sample = next(model.parameters(), None)
    return images.to(_device(model), sample.dtype if sample is not None else images.dtype)


# --- the last layer ---


@dataclass(frozen=True)
class Head:
    """The linear layer whose outputs are the classes.

    name: dotted; weight: (K, C); bias: (K,), zeros where it has none; spatial: a 1x1 convolution, whose input (and so
    its output) is averaged over positions. Both float64 on the CPU.
    """

    name: str
    weight: Tensor
    bias: Tensor
    spatial: bool


def matrix(module: nn.Module) -> tuple[Tensor, Tensor, bool] | None:
    """(weight (K, C), bias (K,), whether it is a 1x1 convolution) of a linear layer, None for any other."""
    if isinstance(module, nn.Linear):
        weight, spatial = module.weight, False
    elif isinstance(module, nn.Conv2d) and _is_pointwise(module):
        weight, spatial = module.weight.flatten(1), True
    elif hasattr(module, "to_linear"):  # a decomposed head is linear as well
        linear: Any = module.to_linear()  # type: ignore[operator]
        return linear.weight.detach(), _bias(linear), bool(getattr(module, "spatial", False))
    else:
        return None
    return weight.detach(), _bias(module), spatial


def _bias(module: Any) -> Tensor:
    return torch.zeros_like(module.weight.detach().flatten(1)[:, 0]) if module.bias is None else module.bias.detach()


def _is_pointwise(module: nn.Conv2d) -> bool:
    return (
        module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        and module.padding in (0, (0, 0), "valid", "same")
    )  # fmt: skip


@torch.no_grad()
def find_head(model: nn.Module, images: Tensor) -> Head:
    """The linear layer (or 1x1 convolution before or after pooling) whose outputs are the network's.

    Every candidate's output is compared with the network's on `images`: equal, or equal after (log-)softmax. Auxiliary
    heads, which do not run in evaluation or whose outputs are others, are thereby left out.

    Args:
        model: any classifier, images (N, ...) -> logits (N, K).
        images: a few, normalised as the network expects.

    Raises:
        InputError: an output that is no tensor (N, K), or that of no single linear layer; the sentence names those
            layers that have K outputs.
    """
    linear = [name for name, module in model.named_modules() if matrix(module) is not None]
    images = _fitting(model, images[:8])
    with _evaluating(model), tap(model, linear) as taps:
        logits = _logits(model(images))
    if not bool(logits.isfinite().all()):
        raise InputError("The network answers NaN or infinity: its weights or the normalisation are off.")
    scale = logits.abs().max().clamp(min=1e-12)
    found, near = [], []
    for name in linear:
        weight, bias, spatial = matrix(module_at(model, name)) or (torch.zeros(0, 0), torch.zeros(0), False)
        own = taps[name].output
        if len(weight) != logits.shape[1]:
            continue
        near.append(name)
        if taps[name].calls != 1 or not isinstance(own, Tensor):
            continue
        if spatial and own.ndim == 4:
            # In-place layers after it may have changed its output, so compute it again.
            own = taps[name].input.mean((2, 3)) @ weight.T + bias
        elif own.ndim == 2:
            own = taps[name].input @ weight.T + bias
        forms = [own, own.log_softmax(-1), own.softmax(-1)] if own.shape == logits.shape else []
        if any(bool((form - logits).abs().max() <= _CLOSE * scale) for form in forms):
            found.append(Head(name, weight.double().cpu(), bias.double().cpu(), spatial))
    if found:
        return found[-1]
    listed = ", ".join(map(repr, near))
    raise InputError(
        f"The {logits.shape[1]} outputs of this {type(model).__name__} are not those of one linear layer"
        + (f", though {listed} have as many" if near else "")
        + ": name a layer and a rule that needs no last layer (gradient, frequency, mass)."
    )


def _logits(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 2:
        form = f"shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InputError(f"The network answers {form}: it must give one tensor (images, classes) in evaluation.")
    return output


class _evaluating:
    """Evaluation mode while the block runs; afterwards every module is as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, training in self.modes:
            module.training = training


# --- the pass ---


@dataclass(frozen=True)
class Evidence:
    """Sums of one pass over images, float64 (histograms too) on the CPU.

    Attributes:
        layer: whose filters these are: the last layer's inputs, or an inner layer's outputs.
        classes: K names.
        counts: (K,) images of each class.
        mean: (K, C) mean response of each filter over a class's images.
        total: (C,) mean response over all images.
        cov: (C, C) population covariance over all images, if asked for.
        frequency: {k: (K, C)} share of a class's images in which a filter is among the k largest responses. Filters
            that do not respond (0) are never counted; of equal ones the first.
        mass: {k: (K, C)} mean of the L1-normalised response where it is among the k largest.
        gradient: (K, C) mean gradient times activation, if asked for.
        least: the smallest response seen; scale: the largest magnitude.
        head: the last layer; None where an inner layer was looked at.
        correct: images that the whole network got right.
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
    """One pass over labelled images, in evaluation mode, that keeps only sums.

    Args:
        model: any classifier, images (N, ...) -> logits (N, K); its mode and gradients stay as they are.
        data: as in `open_data`.
        layer: dotted name of an inner layer, whose outputs are averaged over positions; default the inputs of the last
            linear layer.
        tops: numbers of largest responses an image to count in `frequency` and `mass`.
        covariance: add up the (C, C) covariance.
        gradient: add up gradient times activation; costs a backward pass from the logits to the layer.
        split: part of a named data set.
        device: where to compute; the model is moved there. Default: where it is.
        batch_size: images in a step.
        workers: processes that decode streamed images.

    Raises:
        InputError: no such layer, one that does not run exactly once a pass, no last linear layer, labels that are
            not whole numbers from 0 to K - 1, a class without an image, responses that are not finite, or a `tops`
            out of range.
    """
    if device is not None:
        model.to(device)
    pairs = open_data(model, data, split, batch_size=batch_size, workers=workers)
    sums: _Sums | None = None
    head: Head | None = None
    correct = 0
    for images, labels in pairs:
        if not len(images):
            continue
        images = _fitting(model, images)
        if sums is None:
            head = _head_meant(model, images, layer)
        name = head.name if head is not None else str(layer)
        responses, products, logits = _look(model, images, name, head, labels if gradient else None)
        if sums is None:
            names = pairs.classes or tuple(map(str, range(logits.shape[1])))
            if len(names) != logits.shape[1]:
                raise InputError(f"The network has {logits.shape[1]} outputs for {len(names)} classes: give it others.")
            sums = _Sums(responses.shape[1], names, tops, covariance, gradient, responses.device)
        labels = _checked(labels, len(images), len(sums.names)).to(logits.device)
        correct += int((logits.argmax(1) == labels).sum())
        sums.add(responses, labels, products)
    if sums is None:
        raise InputError(f"There are no images in {pairs.title}: give at least one a class.")
    return sums.result(name, head, correct, pairs.title)


def _head_meant(model: nn.Module, images: Tensor, layer: str | None) -> Head | None:
    """The last layer where `layer` means it: by None, or by its name. None for an inner layer."""
    if layer is None:
        return find_head(model, images)
    if matrix(module_at(model, layer)) is None:
        return None
    try:
        last = find_head(model, images)
    except InputError:
        return None  # an inner layer needs no last one
    return last if last.name == layer else None


def probe(model: nn.Module, dataset: Dataset, layer: str | None = None) -> tuple[str, Tensor, Head | None]:
    """What a layer answers to a few training images, in evaluation mode.

    Returns:
        Its name, its responses (B, C), and the last layer where that is it, whose inputs are then meant.

    Raises:
        InputError: as of `measure`.
    """
    images, _ = next(iter(open_data(model, dataset, batch_size=8)))
    images = _fitting(model, images)
    head = _head_meant(model, images, layer)
    name = head.name if head is not None else str(layer)
    return name, _look(model, images, name, head, None)[0], head


def _checked(labels: Tensor, images: int, classes: int) -> Tensor:
    if labels.ndim != 1 or len(labels) != images or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"Labels of shape {list(labels.shape)} and type {str(labels.dtype).removeprefix('torch.')} do not fit "
            f"{images} images: give one whole number an image."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"Label {low if low < 0 else high} is out of range: the network has the classes 0 to {classes - 1}."
        )
    return labels.long()


def _look(
    model: nn.Module, images: Tensor, name: str, head: Head | None, labels: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Responses (B, C), gradient times activation (B, C) if there are `labels`, and logits of a batch."""
    module = module_at(model, name)
    seen: list[Tensor] = []

    def keep(value: Any) -> Tensor:
        if not isinstance(value, Tensor) or value.ndim < 2:
            raise InputError(f"Layer {name!r} answers no tensor of channels: choose another.")
        if seen:
            raise InputError(f"Layer {name!r} runs more than once a pass, so its filters have no one response.")
        if labels is None:
            seen.append(pooled(module, value.detach(), head))
            return value
        # A leaf of its own: the backward pass ends here; the clone may be overwritten in place by what follows.
        seen.append(value.detach().clone().requires_grad_())
        return seen[0].clone()

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (keep(inputs[0]), *inputs[1:])

    def after(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        return keep(output)

    handle = module.register_forward_pre_hook(before) if head is not None else module.register_forward_hook(after)
    try:
        with _evaluating(model), torch.set_grad_enabled(labels is not None):
            logits = _logits(model(images))
            if not seen:
                raise InputError(f"Layer {name!r} did not run on these images, so it has no responses.")
            if labels is None:
                return seen[0], None, logits
            own = _checked(labels, len(images), logits.shape[1]).to(logits.device)
            picked = logits.gather(1, own[:, None]).sum()
            (slope,) = torch.autograd.grad(picked, seen[0])
    finally:
        handle.remove()
    value = seen[0].detach()
    size = value[0].numel()
    means = pooled(module, value, head)
    # A sum over positions, hence the mean times their number.
    products = pooled(module, value * slope, head).double() * (size // means.shape[1])
    return means, products, logits.detach()


def pooled(module: nn.Module, value: Tensor, head: Head | None = None) -> Tensor:
    """(B, C): the mean over all positions."""
    if value.ndim == 2:
        return value
    if head is not None:
        return value.flatten(2).mean(2) if head.spatial else value.flatten(1, -2).mean(1)
    last = isinstance(module, _CHANNELS_LAST) or (value.ndim == 3 and not isinstance(module, _CHANNELS_FIRST))
    return value.flatten(1, -2).mean(1) if last else value.flatten(2).mean(2)


class _Sums:
    """What a pass adds up, batch by batch; nothing here grows with the number of images."""

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
        # Metal has no float64; its responses are added up on the CPU.
        self.device = torch.device("cpu") if device.type == "mps" else device

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
            raise InputError("The layer answers NaN or infinity: the weights or the normalisation are off.")
        self.least, self.scale = min(self.least, least), max(self.scale, abs(least), abs(most))
        self.counts += torch.bincount(labels, minlength=len(self.names))
        self.sums.index_add_(0, labels, a)
        # Chan, Golub and LeVeque 1983: centred batch by batch, so that large means do not eat the digits.
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

    def result(self, layer: str, head: Head | None, correct: int, title: str) -> Evidence:
        counts = self.counts.cpu()
        if not counts.all():
            name = self.names[int((counts == 0).nonzero()[0])]
            raise InputError(f"Class {name!r} has no image in {title}: give at least one image of every class.")
        each = counts.double()[:, None]
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


# --- responses themselves, for fits ---


def look(
    model: nn.Module, images: Tensor, labels: Tensor, head: Head | None = None
) -> tuple[Tensor, Tensor, Head, Tensor]:
    """What enters the last linear layer (B, C), logits (B, K), that layer (found if not given), and checked labels."""
    images = _fitting(model, images)
    head = head or find_head(model, images)
    seen, _, logits = _look(model, images, head.name, head, None)
    return seen, logits, head, _checked(labels, len(images), logits.shape[1]).to(logits.device)


def responses(model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Head]:
    """What enters the last linear layer: (N, C) on the CPU, labels (N,), and that layer.

    This grows with the images (4 N C bytes in float32): for fits of the head and for curves over a test set.

    Raises:
        InputError: no images, or what `measure` refuses of a head and labels.
    """
    rows, kept = [], []
    head: Head | None = None
    for images, labels in pairs:
        seen, _, head, labels = look(model, images, labels, head)
        rows.append(seen.cpu())
        kept.append(labels.cpu())
    if head is None:
        raise InputError("There are no images: give at least one.")
    return torch.cat(rows), torch.cat(kept), head
