"""The filters that decide each class: sets of channels by a rule, one for each class.

Sets are found by `decompose`, from the sums of one pass over images (`evidence`), and put to work by `apply`, as a
last layer that sees nothing else (`head`).
"""

from __future__ import annotations

import base64
import binascii
import heapq
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.files import write_atomic
from pellucid.core.seeds import seed_of
from pellucid.decompose import pursuit
from pellucid.decompose.essential import Essentiality, Guide, Noise, essentiality
from pellucid.decompose.evidence import Evidence, measure, open_data, responses

FORMAT = 1
RULES = ("evidence", "frequency", "mass", "omp", "l1", "gradient", "weight", "random")
INNER = ("frequency", "mass", "gradient", "random")  # rules that need no last layer
COUNTED = ("frequency", "mass")  # that assume responses of 0 or more, and count an image's k largest
FITTED = ("omp", "l1")  # that fit weights of their own


@dataclass(frozen=True)
class ClassFilters:
    """For each class the channels of one layer that decide it.

    Attributes:
        indices: for each class its channels (0 to width - 1), most influential first; sets may differ in size.
        shares: of the same shape, 0 to 1: each filter's part of the sum of the class's positive scores. For
            `evidence` that is its part of what speaks for the class in the mean logit; for `omp` its part of the
            logit's variance.
        rule: the rule that found them; "" for sets from a file of the papers.
        layer: dotted name of the layer whose channels are meant: the last linear layer, whose *inputs* are meant,
            or an inner layer, whose outputs are.
        width: how many channels there are (C).
        classes: names of the K classes.
        scores: (K, C) float32, the rule's score of every filter for every class.
        weights: of the shape of `indices`, the last layer's weights of just these filters where the rule fits its
            own (`omp`, `l1`, refit=True); None: those of the model.
        bias: K numbers that go with `weights`.
    """

    indices: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]
    rule: str
    layer: str
    width: int
    classes: tuple[str, ...]
    scores: Tensor
    weights: tuple[tuple[float, ...], ...] | None = None
    bias: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.indices) != len(self.classes) or len(self.shares) != len(self.classes):
            raise InputError(f"{len(self.indices)} sets of filters for {len(self.classes)} classes: give one a class.")
        for name, chosen, shares in zip(self.classes, self.indices, self.shares, strict=True):
            if len(set(chosen)) != len(chosen) or any(not 0 <= index < self.width for index in chosen):
                raise InputError(
                    f"The filters {list(chosen)[:9]} of class {name!r} must be different numbers from 0 to "
                    f"{self.width - 1}."
                )
            if len(shares) != len(chosen):
                raise InputError(f"Class {name!r} has {len(chosen)} filters but {len(shares)} shares: give one each.")
        if tuple(self.scores.shape) != (len(self.classes), self.width):
            raise InputError(
                f"scores have shape {list(self.scores.shape)}: they must be "
                f"[classes, channels] = [{len(self.classes)}, {self.width}]."
            )
        if (self.weights is None) != (self.bias is None):
            raise InputError("Weights and bias of filters belong together: give both.")
        if self.weights is not None and self.bias is not None:
            sizes = [len(chosen) for chosen in self.indices]
            if [len(row) for row in self.weights] != sizes or len(self.bias) != len(sizes):
                raise InputError("Weights must be one a filter, and bias one a class.")

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of `model`, in evaluation mode, whose last layer is a `DecomposedHead` of these filters.

        It holds the model's own weights of them, or `weights` where the rule fitted some.

        Raises:
            InputError: the sets are of another layer than the model's last, or of another width or number of classes.
        """
        from pellucid.decompose.head import decomposed

        return decomposed(model, self)

    def overlap(self) -> Tensor:
        r"""(K, K) float64: Jaccard index of every pair of classes' sets, |A and B| / |A or B|; 1 for two empty ones."""
        members = torch.zeros(len(self.indices), self.width, dtype=torch.float64)
        for row, chosen in zip(members, self.indices, strict=True):
            row[list(chosen)] = 1.0
        both = members @ members.T
        sizes = members.sum(1)
        either = sizes[:, None] + sizes[None, :] - both
        return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))

    def essential(
        self,
        model: nn.Module,
        data: Any,
        *,
        noise: Noise = "gaussian",
        by: Guide = "label",
        split: str = "test",
        seed: int = 0,
    ) -> Essentiality:
        """Accuracy while the filters of an image's class are replaced, or as many others, or all others.

        Args:
            model: the network whose last layer's input the sets are of.
            data, split: as of `decompose`; by default test images.
            noise, by, seed: as of `essential.essentiality`.

        Raises:
            InputError: the sets are of another layer or width, or what `decompose` refuses.
        """
        features, labels, head = responses(model, open_data(model, data, split))
        if self.layer != head.name or self.width != features.shape[1]:
            raise InputError(
                f"The sets are of {self.width} filters at {self.layer!r}, but the model's last layer {head.name!r} "
                f"sees {features.shape[1]}: decompose this model."
            )
        return essentiality(features, labels, head.weight, head.bias, self.indices, noise=noise, by=by, seed=seed)

    # --- files ---

    def to_json(self, *, published: bool = False) -> dict[str, Any]:
        """A table that JSON holds and `from_json` reads: the papers' `{"0": [...], ...}` if `published`."""
        if published:
            return {str(number): list(chosen) for number, chosen in enumerate(self.indices)}
        scores = self.scores.detach().cpu().to(torch.float32).contiguous()
        return {
            "pellucid": "class filters",
            "format": FORMAT,
            "rule": self.rule,
            "layer": self.layer,
            "width": self.width,
            "classes": list(self.classes),
            "indices": [list(chosen) for chosen in self.indices],
            "shares": [list(row) for row in self.shares],
            "weights": None if self.weights is None else [list(row) for row in self.weights],
            "bias": None if self.bias is None else list(self.bias),
            # float32, little end first, row by row: exact, and a seventh of the text that numbers would be
            "scores": base64.b64encode(scores.numpy().astype("<f4").tobytes()).decode(),
        }

    @classmethod
    def from_json(
        cls,
        table: Mapping[str, Any],
        *,
        width: int | None = None,
        classes: Sequence[str] | None = None,
        layer: str = "",
    ) -> ClassFilters:
        """Read what `to_json` made, or the papers' `{"0": [...], ...}`.

        Args:
            table: as read from JSON.
            width, classes, layer: what the papers' form does not say: the number of channels (default the least that
                fits), names of classes (default their numbers), and the layer's name. Its order of filters is kept,
                shares and scores are 0.

        Raises:
            InputError: not such a table, or one that contradicts itself.
        """
        try:
            if "pellucid" in table:
                return cls._own(table)
            sets = [table[str(number)] for number in range(len(table))]
            indices = tuple(tuple(_whole(index) for index in chosen) for chosen in sets)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise InputError(
                f'These are no class filters ({error!r}): give a table {{"0": [numbers], ...}}, or what save() wrote.'
            ) from None
        if not indices:
            raise InputError("There are no class filters in an empty table: give at least one class.")
        names = tuple(map(str, range(len(indices)))) if classes is None else tuple(classes)
        least = 1 + max((index for chosen in indices for index in chosen), default=0)
        size = least if width is None else width
        shares = tuple((0.0,) * len(chosen) for chosen in indices)
        return cls(indices, shares, "", layer, size, names, torch.zeros(len(indices), size))

    @classmethod
    def _own(cls, table: Mapping[str, Any]) -> ClassFilters:
        if table["format"] != FORMAT:
            raise InputError(f"Class filters of format {table['format']!r} are of another version of pellucid.")
        classes = tuple(map(str, table["classes"]))
        width = _whole(table["width"])
        raw = np.frombuffer(base64.b64decode(table["scores"], validate=True), dtype="<f4").astype(np.float32)
        weights, bias = table.get("weights"), table.get("bias")
        return cls(
            indices=tuple(tuple(_whole(index) for index in chosen) for chosen in table["indices"]),
            shares=_numbers(table["shares"]),
            rule=str(table["rule"]),
            layer=str(table["layer"]),
            width=width,
            classes=classes,
            scores=torch.from_numpy(raw.reshape(len(classes), width)),
            weights=None if weights is None else _numbers(weights),
            bias=None if bias is None else _numbers([bias])[0],
        )

    def save(self, path: str | os.PathLike[str], *, published: bool = False) -> None:
        """Write `to_json` to the file `path`, whole or not at all."""
        write_atomic(path, (json.dumps(self.to_json(published=published), allow_nan=False) + "\n").encode())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        width: int | None = None,
        classes: Sequence[str] | None = None,
        layer: str = "",
    ) -> ClassFilters:
        """Read a file of `save`, or one of the papers; arguments and errors as of `from_json`."""
        try:
            table = json.loads(Path(path).read_text())
            if not isinstance(table, dict):
                raise ValueError("no table")
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{os.fspath(path)!r} cannot be read as class filters: {error}.") from None
        try:
            return cls.from_json(table, width=width, classes=classes, layer=layer)
        except InputError as error:
            raise InputError(f"{os.fspath(path)!r}: {error}") from None


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")
    return value


def _numbers(rows: Any) -> tuple[tuple[float, ...], ...]:
    found = tuple(tuple(float(value) for value in row) for row in rows)
    if not all(math.isfinite(value) for row in found for value in row):
        raise ValueError("a number is not finite")
    return found


# --- finding them ---


def decompose(
    model: nn.Module,
    data: Any,
    k: int = 5,
    rule: str = "evidence",
    layer: str | None = None,
    *,
    budget: int | None = None,
    refit: bool | None = None,
    split: str = "train",
    device: str | torch.device | None = None,
    batch_size: int = 256,
    workers: int = 0,
    seed: int = 0,
) -> ClassFilters:
    """The filters that decide each class of a classifier, by one pass over labelled images.

    Args:
        model: any classifier, images (N, ...) -> logits (N, K); it stays as it is.
        data: a data set's name as in `load_data`, a `Dataset`, (images already normalised, labels), or an iterable of
            such pairs (a DataLoader).
        k: filters a class; rules that count take each image's k largest responses too.
        rule: one of `RULES`; their formulas and sources are on top of `evidence`.
        layer: dotted name of an inner layer, whose outputs (averaged over positions) are meant; default the inputs of
            the last linear layer.
        budget: filters of all classes together instead of k for each: those with the largest scores of all. `l1` has
            one penalty for all classes, so k of it is an average: its budget is k for each class, or this.
        refit: fit the last layer's weights of the chosen filters to the full logits by least squares; default for
            `omp` and `l1` alone. The other rules keep the model's weights.
        split: part of a named data set: "train", "val" or "test".
        device: where to compute; the model is moved there. Default: where it is.
        batch_size: images in a step; the sets do not depend on it but by rounding.
        workers: processes that decode images of a data set too large for memory.
        seed: of the rule `random`.

    Returns:
        Sets that hold filters of a positive score only, so that they may be smaller than k.

    Raises:
        InputError: no such rule, one that does not fit the layer or its responses, k or budget out of range, or
            what `evidence.measure` refuses of model and data.
    """
    _known(rule)
    seen = measure(
        model,
        data,
        layer,
        tops=(k,) if rule in COUNTED else (),
        covariance=bool(refit) or rule in FITTED,
        gradient=rule == "gradient",
        split=split,
        device=device,
        batch_size=batch_size,
        workers=workers,
    )
    return choose(seen, k, rule, budget=budget, refit=refit, seed=seed)


def choose(
    seen: Evidence,
    k: int = 5,
    rule: str = "evidence",
    *,
    budget: int | None = None,
    refit: bool | None = None,
    seed: int = 0,
) -> ClassFilters:
    """The sets that `rule` makes of what one pass has `measure`d; arguments and errors as of `decompose`.

    The pass must have counted the k largest responses for `frequency` and `mass` (tops), the covariance for `omp`,
    `l1` and a refit, and the gradient for `gradient`.
    """
    _known(rule)
    classes, width = len(seen.classes), seen.width
    if (budget is None or rule in COUNTED) and not 1 <= k <= width:
        raise InputError(f"k={k} is out of range: layer {seen.layer!r} has {width} filters.")
    if budget is not None and not 1 <= budget <= classes * width:
        raise InputError(
            f"A budget of {budget} filters is out of range: {classes} classes of {width} filters can have 1 to "
            f"{classes * width}."
        )
    if seen.head is None and (rule not in INNER or refit):
        raise InputError(
            f"Rule {rule!r}{' with a refit' if refit else ''} needs the last layer's weights, but {seen.layer!r} is an "
            f"inner layer: use {', '.join(INNER[:-1])} or {INNER[-1]} without a refit."
        )
    fit = rule in FITTED if refit is None else refit
    if (fit or rule in FITTED) and seen.cov is None:
        raise InputError(f"Rule {rule!r} needs a covariance: measure with covariance=True.")
    if rule == "l1":
        assert seen.head is not None and seen.cov is not None
        sets, scores = pursuit.lasso_paths(seen.head.weight, seen.cov, budget or k * classes)
        whole = scores.sum(1)
    elif rule == "omp":
        sets, scores, whole = _pursued(seen, k, budget)
    else:
        scores = _scores(seen, k, rule, seed)
        sets = largest(scores, k, budget)
        whole = scores.clamp(min=0).sum(1)
    weights, bias = None, None
    if fit:
        assert seen.head is not None and seen.cov is not None
        fitted, biases = pursuit.refit(seen.head.weight, seen.head.bias, seen.total, seen.cov, sets)
        weights, bias = tuple(map(tuple, fitted)), tuple(biases)
    return ClassFilters(
        indices=tuple(map(tuple, sets)),
        shares=tuple(parts(scores[c, chosen], float(whole[c])) for c, chosen in enumerate(sets)),
        rule=rule,
        layer=seen.layer,
        width=width,
        classes=seen.classes,
        scores=scores.float(),
        weights=weights,
        bias=bias,
    )


def _known(rule: str) -> None:
    if rule not in RULES:
        raise InputError(f"There is no rule {rule!r}: choose one of {', '.join(RULES)}.")


def _scores(seen: Evidence, k: int, rule: str, seed: int) -> Tensor:
    """(K, C) float64 of the rules that score every filter by itself."""
    if rule == "random":
        generator = torch.Generator().manual_seed(seed_of("random filters", seed))
        return 1 - torch.rand(seen.mean.shape, generator=generator, dtype=torch.float64)
    if rule == "gradient":
        if seen.gradient is None:
            raise InputError("Rule 'gradient' needs a gradient: measure with gradient=True.")
        return seen.gradient
    if rule in COUNTED:
        if seen.least < 0:
            raise InputError(
                f"Rule {rule!r} takes a large response for a strong one, but layer {seen.layer!r} answers down to "
                f"{seen.least:.3g}: use {'gradient' if seen.head is None else 'evidence, omp or l1'}, which heed signs."
            )
        histograms = seen.frequency if rule == "frequency" else seen.mass
        if k not in histograms:
            raise InputError(f"Rule {rule!r} with k={k} needs the {k} largest responses: measure with tops=({k},).")
        return histograms[k]
    assert seen.head is not None
    return seen.head.weight if rule == "weight" else seen.head.weight * seen.mean


def largest(scores: Tensor, k: int, budget: int | None) -> list[list[int]]:
    """The filters of positive score: the k largest of each class, or `budget` of all; of equal ones the first."""
    if budget is None:
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        return [[j for j in row.tolist() if line[j] > 0] for row, line in zip(order, scores, strict=True)]
    ranked = scores.flatten().argsort(descending=True, stable=True)[:budget]
    return _grouped(((int(place) // scores.shape[1], int(place) % scores.shape[1]) for place in ranked
                     if scores.flatten()[place] > 0), len(scores))  # fmt: skip


def _grouped(pairs: Iterable[tuple[int, int]], classes: int) -> list[list[int]]:
    sets: list[list[int]] = [[] for _ in range(classes)]
    for c, j in pairs:
        sets[c].append(j)
    return sets


def _pursued(seen: Evidence, k: int, budget: int | None) -> tuple[list[list[int]], Tensor, Tensor]:
    """Sets by matching pursuit, the drops as scores (K, C), and the variances of the logits (K,)."""
    assert seen.head is not None and seen.cov is not None
    weight, cov = seen.head.weight, seen.cov
    classes, width = weight.shape
    if budget is None:
        indices, drops = pursuit.omp(weight, cov, k)
        taken = (indices >= 0).sum(1).tolist()
    else:
        # Each class's own pursuit; of their next filters always the one that lowers its logit's error most.
        steps = min(width, 2 * -(-budget // classes) + 8)
        while True:
            indices, drops = pursuit.omp(weight, cov, steps)
            taken = _spent(drops.tolist(), budget)
            if steps == width or max(taken) < steps:
                break
            steps = min(width, 2 * steps)
    scores = torch.zeros(classes, width, dtype=torch.float64)
    sets = []
    for c, count in enumerate(taken):
        chosen = indices[c, :count]
        scores[c, chosen] = drops[c, :count]
        sets.append(chosen.tolist())
    return sets, scores, ((weight @ cov) * weight).sum(1)


def _spent(drops: list[list[float]], budget: int) -> list[int]:
    """How many of each class's drops to take in their order so that always the largest on offer is taken."""
    taken = [0] * len(drops)
    offers = [(-row[0], c) for c, row in enumerate(drops) if row[0] > 0]
    heapq.heapify(offers)
    for _ in range(budget):
        if not offers:
            break
        _, c = heapq.heappop(offers)
        taken[c] += 1
        if taken[c] < len(drops[c]) and drops[c][taken[c]] > 0:
            heapq.heappush(offers, (-drops[c][taken[c]], c))
    return taken


def parts(scores: Tensor, whole: float) -> tuple[float, ...]:
    """Each score's part of `whole`; 0 where there is no whole."""
    return tuple(float(score) / whole if whole > 0 else 0.0 for score in scores)
