"""The filters of every class as a value, and the files that hold it."""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.classfilters.ablation import Essentiality, Guide, Noise, essentiality
from pellucid.classfilters.install import decomposed
from pellucid.classfilters.overlap import jaccard_pairs
from pellucid.classfilters.responses import responses
from pellucid.core.errors import InputError, first_line, shown
from pellucid.core.files.atomic import write_atomic
from pellucid.core.files.structured import read_json
from pellucid.core.measure.pairs import open_data

FORMAT = 1
MOST_FILTERS = 2**24  # far beyond the width of any layer


@dataclass(frozen=True)
class ClassFilters:
    """For each class the filters (channels of one layer) that decide it.

    Attributes:
        indices: for each class its filters (0 to width - 1), most influential first; sets may differ in size.
        shares: of the same shape, 0 to 1: each filter's fraction of the sum of the class's positive scores. For
            `evidence` that is its fraction of the positive contributions to the mean logit; for `omp` of the logit's
            variance.
        rule: the rule that found them; "" for sets from a file of the papers.
        layer: dotted name of the layer: the last linear layer, whose *inputs* are the filters, or an inner layer, whose
            outputs are.
        width: number of filters of the layer (C).
        classes: names of the K classes.
        scores: (K, C) float32, the rule's score of every filter for every class.
        weights: of the shape of `indices`, the last layer's weights of these filters where the rule fits its own
            (`omp`, `l1`, refit=True); None: those of the model.
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
            raise InputError(
                f"{len(self.indices)} sets of filters for {len(self.classes)} classes: give one per class."
            )
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
            raise InputError("Weights and bias belong together: give both.")
        if self.weights is not None and self.bias is not None:
            sizes = [len(chosen) for chosen in self.indices]
            if [len(row) for row in self.weights] != sizes or len(self.bias) != len(sizes):
                raise InputError("Give one weight per filter and one bias per class.")

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of `model`, in evaluation mode, with a `DecomposedHead` of these filters as its last layer.

        The head holds the model's own weights of the filters, or `weights` where the rule fitted some.

        Raises:
            InputError: the sets are of another layer than the model's last, or of another width or number of classes.
        """
        return decomposed(model, self)

    def overlap(self) -> Tensor:
        r"""(K, K) float64: Jaccard index of every pair of classes' sets, |A and B| / |A or B|; 1 for two empty ones."""
        return jaccard_pairs(self.indices, self.width)

    def essential(
        self,
        model: nn.Module,
        data: Any,
        *,
        noise: Noise = "gaussian",
        by: Guide = "label",
        draws: int = 10,
        split: str = "test",
        seed: int = 0,
    ) -> Essentiality:
        """Accuracy while the filters of an image's class are replaced by noise, or as many others, or all others.

        Args:
            model: the network whose last layer's inputs the sets are of.
            data: as in `decompose`.
            noise, by, draws, seed: as in `ablation.essentiality`.
            split: part of a named data set; by default the test images.

        Raises:
            InputError: the sets are of another layer or width, no draw, or data that `decompose` refuses.
        """
        features, labels, head = responses(model, open_data(model, data, split))
        if self.layer != head.name or self.width != features.shape[1]:
            raise InputError(
                f"The sets are of {self.width} filters at {self.layer!r}, but the model's last layer {head.name!r} "
                f"has {features.shape[1]} inputs: decompose this model."
            )
        return essentiality(
            features, labels, head.weight, head.bias, self.indices, noise=noise, by=by, draws=draws, seed=seed
        )

    # --- files ---

    def to_json(self, *, published: bool = False) -> dict[str, Any]:
        """A JSON table that `from_json` reads; the papers' form `{"0": [...], ...}` if `published`."""
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
            # float32, little-endian, row by row: exact, and a seventh of the size of decimal numbers
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
        """Read what `to_json` returned, or the papers' form `{"0": [...], ...}`.

        Args:
            table: as parsed from JSON.
            width, classes, layer: what the papers' form leaves out: the number of filters (default the smallest that
                fits), the classes' names (default their numbers), and the layer's name. Its order of filters is kept;
                shares and scores are 0.

        Raises:
            InputError: the table is neither, or contradicts itself.
        """
        try:
            if "pellucid" in table:
                return cls._own(table)
            sets = [table[str(number)] for number in range(len(table))]
            indices = tuple(tuple(_whole(index) for index in chosen) for chosen in sets)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as error:
            raise InputError(
                f'These are no class filters ({first_line(error)}): give a table {{"0": [numbers], ...}}, '
                "or what save() wrote."
            ) from None
        if not indices:
            raise InputError("There are no class filters in an empty table: give at least one class.")
        names = tuple(map(str, range(len(indices)))) if classes is None else tuple(classes)
        least = 1 + max((index for chosen in indices for index in chosen), default=0)
        size = least if width is None else width
        if max(least, size) > MOST_FILTERS:
            raise InputError(
                f"The filter {shown(least - 1, 30)} is beyond any layer: give numbers below {MOST_FILTERS}."
            )
        shares = tuple((0.0,) * len(chosen) for chosen in indices)
        # One number in memory, seen as a whole table: the layer that the sets are for is not known yet.
        return cls(indices, shares, "", layer, size, names, torch.zeros(1, 1).expand(len(indices), size))

    @classmethod
    def _own(cls, table: Mapping[str, Any]) -> ClassFilters:
        if table["format"] != FORMAT:
            raise InputError(f"Class filters of format {table['format']!r} are from another version of pellucid.")
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
        """Write `to_json` to the file `path`; an old file is replaced whole or not at all."""
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
        """Read a file of `save`, or one of the papers'; arguments and errors as in `from_json`."""
        table = read_json(path)
        try:
            return cls.from_json(table, width=width, classes=classes, layer=layer)
        except InputError as error:
            raise InputError(f"{shown(os.fspath(path), 300)}: {error}") from None


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{shown(value, 40)} is not a whole number")
    return value


def _numbers(rows: Any) -> tuple[tuple[float, ...], ...]:
    found = tuple(tuple(float(value) for value in row) for row in rows)  # OverflowError beyond the range of a float
    if not all(math.isfinite(value) for row in found for value in row):
        raise ValueError("a number is not finite")
    return found
