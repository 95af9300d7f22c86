"""The filters of every class as a value, and their files."""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.classfilters.ablation import Essentiality, Guide, Noise, essentiality
from pellucid.classfilters.responses import responses
from pellucid.core.errors import InputError
from pellucid.core.files.atomic import write_atomic
from pellucid.core.measure.pairs import open_data

FORMAT = 1


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
        from pellucid.classfilters.install import decomposed

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
