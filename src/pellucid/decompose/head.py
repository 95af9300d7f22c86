"""A last layer in which each class sees its own few filters, and the fits that make up for the others.

    logit_c(a) = sum over j in I_c of V_cj a_j + b_c

(Badola et al. 2021). The sets I are kept with the weights V. It computes as a dense layer whose other
weights are zero: the published gather form is several times slower in batches.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.core import fold as folds
from pellucid.core.checkpoint import load
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of
from pellucid.core.swap import Rule, module_at, register, swap
from pellucid.decompose.evidence import Head, look, matrix, named, open_data, responses
from pellucid.decompose.select import ClassFilters


class DecomposedHead(nn.Module):
    """Linear layer (N, C) -> (N, K) that sees at most k inputs for each output.

    Args:
        in_features: inputs (C).
        out_features: outputs (K).
        k: inputs that an output sees, at most; 1 to C.
        bias: learn an additive bias.
        spatial: stands for a 1x1 convolution, maps (N, C, H, W) to (N, K, H, W).
        indices: one list of inputs an output, each of at most k different ones; default none, so that all outputs
            are the bias until some are loaded.

    Attributes:
        indices: buffer (K, k) int64 in the state dict, so that weights never lose their meaning. Entries beyond an
            output's number of inputs are C.
        weight: parameter (K, k); entries beyond are zero and get no gradient.
        bias: parameter (K,), or None.

    Raises:
        InputError: sizes out of range, or `indices` that do not fit them.
    """

    indices: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        k: int,
        bias: bool = True,
        *,
        spatial: bool = False,
        indices: Sequence[Sequence[int]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1 or not 1 <= k <= in_features:
            raise InputError(
                f"A decomposed head of {in_features} inputs and {out_features} outputs cannot have k={k}: "
                f"it must be 1 to {in_features}."
            )
        self.in_features, self.out_features, self.k, self.spatial = in_features, out_features, k, spatial
        padded = torch.full((out_features, k), in_features, dtype=torch.int64)
        if indices is not None:
            if len(indices) != out_features:
                raise InputError(f"There are {len(indices)} sets of inputs for {out_features} outputs: give one each.")
            for row, chosen in zip(padded, indices, strict=True):
                if len(chosen) > k:
                    raise InputError(f"A set of {len(chosen)} inputs does not fit k={k}.")
                row[: len(chosen)] = torch.tensor(list(chosen), dtype=torch.int64)
            if fault := _fault(padded, in_features):
                raise InputError(fault)
        self.register_buffer("indices", padded.to(device))
        self.weight = nn.Parameter(torch.zeros(out_features, k, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        )

    @property
    def counts(self) -> Tensor:
        """(K,) int64: inputs of each output."""
        return (self.indices < self.in_features).sum(1)

    def dense(self) -> Tensor:
        """(K, C): the weights with zeros for all other inputs; gradients flow through it."""
        # One column more than there are inputs takes what is beyond an output's number, and is cut off.
        wide = self.weight.new_zeros(self.out_features, self.in_features + 1)
        return wide.scatter(1, self.indices, self.weight)[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        if self.spatial:
            return F.conv2d(x, self.dense()[:, :, None, None], self.bias)
        return F.linear(x, self.dense(), self.bias)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear | nn.Conv2d:
        """The same as plain torch: a linear layer, or a 1x1 convolution, most of whose weights are zero."""
        made: nn.Linear | nn.Conv2d
        arguments: dict[str, Any] = {"bias": self.bias is not None, "device": "meta"}
        if self.spatial:
            made = nn.Conv2d(self.in_features, self.out_features, 1, **arguments)
        else:
            made = nn.Linear(self.in_features, self.out_features, **arguments)
        weight = self.dense().detach().clone()
        made.weight = nn.Parameter(weight[:, :, None, None] if self.spatial else weight)
        if self.bias is not None:
            made.bias = nn.Parameter(self.bias.detach().clone())
        return made.train(self.training)

    @torch.no_grad()
    def subset(self, outputs: Sequence[int]) -> DecomposedHead:
        """A head of some outputs only, in this order.

        Raises:
            InputError: none, one twice, or one that is not there.
        """
        rows = list(outputs)
        if not rows or len(set(rows)) != len(rows) or any(not 0 <= row < self.out_features for row in rows):
            raise InputError(f"Outputs {rows} must be different numbers from 0 to {self.out_features - 1}.")
        made = DecomposedHead(
            self.in_features,
            len(rows),
            self.k,
            self.bias is not None,
            spatial=self.spatial,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        made.indices.copy_(self.indices[rows])
        made.weight.copy_(self.weight[rows])
        if self.bias is not None and made.bias is not None:
            made.bias.copy_(self.bias[rows])
        return made.train(self.training)

    def extra_repr(self) -> str:
        """Sizes, as torch prints them."""
        spatial = ", spatial=True" if self.spatial else ""
        return f"{self.in_features}, {self.out_features}, k={self.k}, bias={self.bias is not None}{spatial}"

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        key = f"{prefix}indices"
        found = state.get(key)
        # What a file claims is looked at before it is used as an address; rest[-1] collects complaints.
        if isinstance(found, Tensor) and found.shape == self.indices.shape and not found.is_meta:
            fault = "are no whole numbers" if found.dtype != torch.int64 else _fault(found, self.in_features)
            if fault:
                rest[-1].append(f"{key}: {fault}")
                return
        super()._load_from_state_dict(state, prefix, *rest)


def _fault(indices: Tensor, width: int) -> str | None:
    """What is wrong with padded sets, if anything."""
    inside = indices < width
    if bool(((indices < 0) | (indices > width)).any()):
        return f"Indices of inputs must be from 0 to {width - 1}."
    if bool((inside[:, 1:] & ~inside[:, :-1]).any()):
        return "Sets of inputs have gaps."
    ordered = indices.sort(1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] < width)).any()):
        return "An input is twice in a set."
    return None


def _folded(layer: DecomposedHead, axes: int | None = None) -> nn.Module:
    return layer.to_linear()


folds.register(DecomposedHead, _folded)


# --- into a model ---


def decomposed(model: nn.Module, filters: ClassFilters, classes: Sequence[str] | None = None) -> nn.Module:
    """A copy of `model`, in evaluation mode, with a `DecomposedHead` of `filters` for a last layer.

    Args:
        model: what the filters were found in, or one like it.
        filters: of its last layer.
        classes: keep the outputs of these only, in this order; default all.

    Returns:
        The copy, with `classes` and, where the old one's `description` is of plain layers, a description by which
        `pellucid.load` rebuilds it.

    Raises:
        InputError: sets of an inner layer, or of other numbers of filters or classes than the model's last layer; a
            class that is not there.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    name = filters.layer or last_linear(model, len(filters.classes))
    old = module_at(model, name)
    found = matrix(old)
    if not filters.layer and found is not None and filters.width < found[0].shape[1]:  # the papers' files do not say
        width = found[0].shape[1]
        filters = dataclasses.replace(filters, width=width, scores=torch.zeros(len(filters.classes), width))
    if found is None or tuple(found[0].shape) != (len(filters.classes), filters.width):
        form = type(old).__name__ if found is None else f"{type(old).__name__} {list(found[0].shape)}"
        raise InputError(
            f"Sets of {filters.width} filters for {len(filters.classes)} classes do not make a last layer of "
            f"{name!r} ({form}): find sets of the model's last layer, without layer=."
        )
    weight, bias, spatial = found
    sets = filters.indices
    has_bias = filters.bias is not None or getattr(old, "bias", None) is not None
    head = DecomposedHead(
        filters.width,
        len(sets),
        max(1, *map(len, sets)),
        has_bias,
        spatial=spatial,
        indices=sets,
        device=weight.device,
        dtype=weight.dtype,
    )
    with torch.no_grad():
        for row, chosen in enumerate(sets):
            own = (
                weight[row, list(chosen)]
                if filters.weights is None
                else torch.tensor(filters.weights[row], dtype=torch.float64)
            )
            head.weight[row, : len(chosen)] = own.to(weight)
        if head.bias is not None:
            head.bias.copy_(bias if filters.bias is None else torch.tensor(filters.bias, dtype=torch.float64))
    new = copy.deepcopy(model).eval()
    swap(new, lambda _: {name: head})
    vars(new).update(classes=tuple(filters.classes))
    if hasattr(model, "description"):
        vars(new).update(description=_described(model.description, name, head))
    return new if classes is None else cut(new, classes)


def with_file(model: nn.Module, file: str | os.PathLike[str]) -> nn.Module:
    """A copy of `model`, in evaluation mode, with the decomposed last layer that a file tells.

    Args:
        model: the full network.
        file: sets of filters, as of `ClassFilters.save` or as the papers' JSON; or a decomposed model, as of
            `pellucid decompose`, that is this one but for its last layer.

    Raises:
        InputError: none of these, sets that do not fit the last layer, or a model whose other weights are others.
    """
    known = getattr(model, "classes", None)
    if Path(file).suffix != ".safetensors":
        filters = ClassFilters.load(file, classes=known)
        new = decomposed(model, filters)
        if known is None and not filters.layer:  # the papers' files do not say the classes' names
            vars(new).update(classes=None)
        return new
    new = load(file, device=next(model.parameters()).device)
    head = head_of(new)
    prefix = next(f"{name}." for name, module in new.named_modules() if module is head)
    own = model.state_dict()
    for name, value in new.state_dict().items():
        if not name.startswith(prefix) and not (name in own and torch.equal(own[name], value)):
            raise InputError(
                f"{os.fspath(file)!r} differs from the model in {name!r} too (--fit network?): evaluate it by itself."
            )
    vars(new).update(normalization=getattr(model, "normalization", None))
    return new


def cut(model: nn.Module, classes: Sequence[str]) -> nn.Module:
    """A copy of a decomposed model that tells only `classes` apart, in this order; it can be saved and loaded.

    Raises:
        InputError: no decomposed head, no names of classes, or one that is not there.
    """
    name = next((name for name, module in model.named_modules() if isinstance(module, DecomposedHead)), None)
    known = tuple(getattr(model, "classes", None) or ())
    unknown = [each for each in classes if each not in known]
    if name is None or unknown:
        raise InputError(f"There is no class {unknown[0]!r}: the classes are {', '.join(known[:20])}." if unknown
                         else f"This {type(model).__name__} has no decomposed head.")  # fmt: skip
    new = copy.deepcopy(model)
    head = head_of(new).subset([known.index(each) for each in classes])
    swap(new, lambda _: {name: head})
    vars(new).update(classes=tuple(classes))
    if hasattr(model, "description"):
        vars(new).update(description=_described(model.description, name, head))
    return new


def _described(description: object, name: str, head: DecomposedHead) -> dict[str, Any] | None:
    if not isinstance(description, Mapping) or description.get("layers") not in ("plain", "decomposed"):
        return None  # a description knows of one rule, applied to the network as it was built
    if description.get("folded"):
        return None
    options = {"k": head.k, "layer": name, "bias": head.bias is not None}
    return {**description, "num_classes": head.out_features, "layers": "decomposed", "options": options}


def last_linear(model: nn.Module, outputs: int | None = None) -> str:
    """The dotted name of the last linear layer (or 1x1 convolution) by its place in the model, without running it.

    Args:
        outputs: how many it must have; default any number.

    Raises:
        InputError: there is none.
    """
    known = [(name, found) for name, module in model.named_modules() if name and (found := matrix(module)) is not None]
    names = [name for name, found in known if outputs is None or len(found[0]) == outputs]
    if not names:
        raise InputError(f"The {type(model).__name__} has no linear layer of {outputs or 'any'} outputs.")
    return names[-1]


def rule(k: int = 5, layer: str | None = None, bias: bool = True) -> Rule:
    """A decomposed last layer: each class sees k filters, those of the largest weights until others are loaded.

    Args:
        k: filters a class.
        layer: dotted name of the last linear layer; default the last in the model's order.
        bias: whether it has one.
    """

    def apply(model: nn.Module) -> dict[str, nn.Module]:
        name = layer or last_linear(model)
        old = module_at(model, name)
        found = matrix(old)
        if found is None:
            raise InputError(f"Layer {name!r} ({type(old).__name__}) is no linear layer that could be decomposed.")
        weight, offset, spatial = found
        head = DecomposedHead(
            weight.shape[1], len(weight), k, bias, spatial=spatial, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            values, places = weight.topk(k, dim=1)
            head.indices.copy_(places)
            head.weight.copy_(values)
            if head.bias is not None:
                head.bias.copy_(offset)
        return {name: head}

    return apply


register("decomposed", rule)


def head_of(model: nn.Module) -> DecomposedHead:
    """The decomposed head in `model`.

    Raises:
        InputError: there is none.
    """
    for module in model.modules():
        if isinstance(module, DecomposedHead):
            return module
    raise InputError(f"This {type(model).__name__} has no decomposed head: make one with ClassFilters.apply.")


@torch.no_grad()
def accuracies(
    model: nn.Module,
    heads: Mapping[str, DecomposedHead],
    data: Any,
    split: str = "test",
    *,
    outputs: Sequence[int] | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> tuple[dict[str, int], int]:
    """Images that `model` gets right with each of several last layers in turn, by one pass.

    Args:
        model: any classifier with one last linear layer.
        heads: in its place, by name; the model's own is added under the name "model".
        data, split, batch_size, workers: as of `decompose`.
        outputs: classes that the heads tell apart, in their order; images of others are left out. Default: all.

    Returns:
        How many each gets right, and how many images there were.

    Raises:
        InputError: no image of these classes, or what `evidence.measure` refuses.
    """
    right = dict.fromkeys(["model", *heads], 0)
    n = 0
    name: Head | None = None
    for images, labels in open_data(model, data, split, batch_size=batch_size, workers=workers):
        features, logits, name, labels = look(model, images, labels, name)
        if outputs is not None:
            places = torch.full((logits.shape[1],), -1, device=labels.device)
            places[list(outputs)] = torch.arange(len(outputs), device=labels.device)
            labels = places[labels]
            kept = labels >= 0
            features, logits, labels = features[kept], logits[kept][:, list(outputs)], labels[kept]
        n += len(labels)
        right["model"] += int((logits.argmax(1) == labels).sum())
        for key, head in heads.items():
            answers = F.linear(features, head.dense(), head.bias)
            right[key] += int((answers.argmax(1) == labels).sum())
    if not n:
        raise InputError("There is no image of these classes: give at least one.")
    return right, n


# --- fits ---


def objective(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats against labels (N,) int64, or against probabilities (N, K)."""
    return F.cross_entropy(logits, targets)


def fit_features(
    head: DecomposedHead,
    features: Tensor,
    targets: Tensor,
    *,
    solver: str = "lbfgs",
    steps: int = 100,
    lr: float = 1e-2,
    decay: float = 0.0,
) -> tuple[float, float]:
    """Fit weights and bias of `head`, in place, on what enters it: multinomial logistic regression, each class
    restricted to its filters. The problem is convex.

    Args:
        head: sets stay as they are.
        features: (N, C) what enters it.
        targets: labels (N,) int64, or probabilities (N, K) of another model (distillation).
        solver: "lbfgs" with a strong Wolfe line search over all images in float64, or "adamw" in batches of 256.
        steps: iterations of L-BFGS, or passes of AdamW.
        lr: of AdamW.
        decay: factor of half the squared distance from the starting weights, added to the objective; 0 fits freely.

    Returns:
        The objective (nats, decay included) before and after; after is never larger: the start is kept otherwise.

    Raises:
        InputError: shapes that do not fit, no such solver, or a number out of range.
    """
    if features.ndim != 2 or features.shape[1] != head.in_features or len(features) != len(targets) or not len(targets):
        raise InputError(
            f"Features {list(features.shape)} and targets {list(targets.shape)} do not fit a head of "
            f"{head.in_features} inputs: they must be [images, {head.in_features}] and as many targets."
        )
    if targets.ndim == 2 and targets.shape[1] != head.out_features:
        raise InputError(f"Probabilities of {targets.shape[1]} classes do not fit a head of {head.out_features}.")
    if targets.ndim == 1 and not 0 <= int(targets.min()) <= int(targets.max()) < head.out_features:
        raise InputError(f"Labels must be from 0 to {head.out_features - 1}.")
    if solver not in ("lbfgs", "adamw"):
        raise InputError(f"There is no solver {solver!r}: choose lbfgs or adamw.")
    if steps < 1 or not (math.isfinite(lr) and lr > 0) or not (math.isfinite(decay) and decay >= 0):
        raise InputError(f"steps={steps}, lr={lr} and decay={decay} must be at least 1, above 0, and at least 0.")
    # A copy in float64: a line search near the minimum lives on differences that float32 does not have.
    work = copy.deepcopy(head).double().requires_grad_(True)
    work.spatial = False
    x = features.detach().to(work.weight)
    y = targets.detach().to(work.weight.device)
    y = y.double() if y.ndim == 2 else y.long()
    starts = [parameter.detach().clone() for parameter in work.parameters()]

    def loss(rows: Tensor | slice = slice(None)) -> Tensor:
        value = objective(work(x[rows]), y[rows])
        if decay:
            away = sum((p - start).square().sum() for p, start in zip(work.parameters(), starts, strict=True))
            value = value + decay / 2 * away
        return value

    with torch.enable_grad():
        before = float(loss().detach())
        if solver == "lbfgs":
            optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
                work.parameters(), max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-10
            )

            def closure() -> float:
                optimizer.zero_grad()
                value = loss()
                value.backward()
                return float(value.detach())

            optimizer.step(closure)
        else:
            _adamw(work, loss, len(x), steps, lr)
        after = float(loss().detach())
    if not after <= before:
        return before, before
    with torch.no_grad():
        for parameter, fitted in zip(head.parameters(), work.parameters(), strict=True):
            parameter.copy_(fitted)
    return before, after


def _adamw(work: nn.Module, loss: Callable[[Tensor], Tensor], n: int, steps: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(work.parameters(), lr=lr, weight_decay=0.0)
    for epoch in range(steps):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed_of("head fit", epoch)))
        for rows in order.split(256):
            optimizer.zero_grad()
            loss(rows.to(next(work.parameters()).device)).backward()
            optimizer.step()


def fit(
    model: nn.Module,
    data: Any,
    how: str = "head",
    *,
    teacher: nn.Module | None = None,
    solver: str = "lbfgs",
    steps: int | None = None,
    lr: float | None = None,
    decay: float = 0.0,
    split: str = "train",
    batch_size: int | None = None,
    workers: int = 0,
    seed: int = 0,
) -> nn.Module:
    """Fit a model with a decomposed head, in place, to labels or to another model.

    Args:
        model: with a `DecomposedHead`, as from `ClassFilters.apply`; left in evaluation mode.
        data: as of `decompose`.
        how: "head" computes what enters the head once and fits its weights (seconds; `fit_features`); "network" trains
            all parameters as published: Adam without decay or schedule, batch norm in training mode, with flips and
            shifts of 4 pixels where the data set may be mirrored (Badola et al. 2021).
        teacher: the full model; its probabilities take the place of labels. Default: labels.
        solver: of "head": "lbfgs" or "adamw".
        steps: iterations of L-BFGS (100) or passes over the images (AdamW 100, network 1).
        lr: learning rate; default 1e-2 for AdamW, 1e-4 for "network".
        decay: as of `fit_features`, of "head" only.
        split: part of a named data set.
        batch_size: images in a step; default 256 for "head", 128 for "network".
        workers: processes that decode streamed images.
        seed: of the order and augmentation of "network".

    Returns:
        `model`.

    Raises:
        InputError: no decomposed head, no such fit, or data that do not fit.
    """
    if how not in ("head", "network"):
        raise InputError(f"There is no fit {how!r}: choose head or network.")
    if (steps is not None and steps < 1) or (lr is not None and not (math.isfinite(lr) and lr > 0)):
        raise InputError(f"steps={steps} and lr={lr} must be at least 1 and above 0.")
    head = head_of(model)
    if how == "network":
        _train(model, data, teacher, steps or 1, lr or 1e-4, split, batch_size or 128, workers, seed)
        return model.eval()
    pairs = open_data(model, data, split, batch_size=batch_size or 256, workers=workers)
    soft: list[Tensor] = []

    def stream() -> Any:
        for images, labels in pairs:
            if teacher is not None:
                soft.append(_probabilities(teacher, images).cpu())
            yield images, labels

    features, labels, _ = responses(model, stream())
    targets = torch.cat(soft) if soft else labels
    fit_features(head, features, targets, solver=solver, steps=steps or 100, lr=lr or 1e-2, decay=decay)
    return model.eval()


@torch.no_grad()
def _probabilities(teacher: nn.Module, images: Tensor) -> Tensor:
    teacher.eval()
    sample = next(teacher.parameters())
    return teacher(images.to(sample.device, sample.dtype)).softmax(1)


def _train(
    model: nn.Module,
    data: Any,
    teacher: nn.Module | None,
    passes: int,
    lr: float,
    split: str,
    batch_size: int,
    workers: int,
    seed: int,
) -> None:
    """A plain loop: all parameters, Adam, cross-entropy."""
    from pellucid.core.data import Augment, Dataset, batches
    from pellucid.core.metrics import check_fits, normalization

    data = named(model, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    device = next(model.parameters()).device
    for epoch in range(passes):
        if isinstance(data, Dataset):
            check_fits(model, data, device)
            norm = normalization(model, data)
            augment = Augment(flip=data.flip, crop=4 if data.flip and min(data.image_size) >= 32 else 0)
            stream: Any = (
                (batch.images, batch.labels)
                for batch in batches(
                    getattr(data, split), batch_size, mean=norm["mean"], std=norm["std"], device=device, shuffle=True,
                    augment=augment, seed=seed, epoch=epoch, workers=workers,
                )
            )  # fmt: skip
        else:
            stream = open_data(model, data, split, batch_size=batch_size, workers=workers)
        model.train()
        for images, labels in stream:
            images = images.to(device)
            targets = labels.long().to(device) if teacher is None else _probabilities(teacher, images).to(device)
            optimizer.zero_grad()
            objective(model(images), targets).backward()
            optimizer.step()
    model.eval()
