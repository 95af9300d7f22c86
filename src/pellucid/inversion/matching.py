"""The statistics term of the loss: moments are recorded during a pass and compared with a table by `divergence`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.network.statistics import Moments
from pellucid.core.network.tap import module_at
from pellucid.inversion import batchnorm
from pellucid.inversion.divergence import CovarianceDivergence, NormSum, VarianceDivergence
from pellucid.inversion.features import Live, moments_of
from pellucid.inversion.frozen import computing


@dataclass(frozen=True)
class Matching:
    """How statistics count in the loss.

    Args:
        weight: factor of the term.
        form: "gaussian", the scale-free divergence, or "norms", the papers' sum of norms; see `divergence`.
        first: factor of the first layer.
        covariance: compare covariances where the table has them; otherwise variances alone.
        input: weight of the normalised input itself, which should have mean 0 and variance 1; every layer has 1.
        ridge: fraction of a layer's mean variance that is added to all its variances, in the table and in the batch. It
            keeps the divergence finite for dead features and small batches.

    Raises:
        InputError: a number below 0 or not finite, an unknown form, or "gaussian" without a ridge.
    """

    weight: float = 10.0
    form: Literal["gaussian", "norms"] = "gaussian"
    first: float = 1.0
    covariance: bool = True
    input: float = 0.0
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("weight", "first", "input", "ridge"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"The {name} of a statistics term is {getattr(self, name)}: give at least 0.")
        if self.form not in ("gaussian", "norms"):
            raise InputError(f"Unknown form {self.form!r} of a statistics term: choose gaussian or norms.")
        if self.form == "gaussian" and not self.ridge:
            raise InputError("A Gaussian statistics term needs a ridge: give one above 0.")


class Watch:
    """The statistics term of one network.

    While `watching`, each forward pass records the moments of the layers' inputs, and `take` turns them into the term.

    Args:
        model: the network.
        table: the moments to compare with, by layer.
        matching: how they are compared.
        sample: a tensor like the input, (B, C, ...), on the network's device.

    Raises:
        InputError: a layer of the table that the network does not have, or numbers in it that are not finite.
    """

    def __init__(self, model: nn.Module, table: Mapping[str, Moments], matching: Matching, sample: Tensor) -> None:
        self.matching = matching
        self.modules = {name: module_at(model, name) for name in table}
        device = sample.device
        self.table = {name: _on(moments, device) for name, moments in table.items()}
        self.seen: dict[str, list[Live]] = {}
        weights = dict.fromkeys(table, 1.0)
        if matching.input and "" not in table:
            self.modules = {"": model, **self.modules}
            one = torch.ones(sample.shape[1], device=device)
            self.table = {"": Moments(0 * one, one), **self.table}
            weights[""] = matching.input
        layers = [name for name in self.table if name]
        if layers:
            weights[layers[0]] *= matching.first
        self.full = {
            name: CovarianceDivergence(moments, matching.ridge)
            for name, moments in self.table.items()
            if matching.covariance and moments.cov is not None and matching.form == "gaussian"
        }
        self.diagonal = [name for name in self.table if name not in self.full]
        count = 1 if matching.form == "norms" else max(1, len(layers))
        self.weights = {name: weight / count for name, weight in weights.items()}
        kind = NormSum if matching.form == "norms" else VarianceDivergence
        entries = [self.table[name] for name in self.diagonal]
        diagonal_weights = [self.weights[name] for name in self.diagonal]
        self.flat = kind(entries, diagonal_weights, matching.ridge) if entries else None

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        """Record the moments of every forward pass while the block runs; afterwards all hooks are removed."""
        with contextlib.ExitStack() as stack:
            for name, module in self.modules.items():
                if name not in self.full and self.table[name].mean.dim() == 1 and batchnorm.fusible(module):
                    stack.enter_context(computing(module, self._fused(name, module)))
                else:
                    hook: Any = self._hook(name)
                    stack.callback(module.register_forward_pre_hook(hook).remove)
            yield self

    def _fused(self, name: str, module: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(input: Tensor) -> Tensor:
            y, mean, var = batchnorm.evaluate(module, input)
            self._keep(name, (mean, var))
            return y

        return forward

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._keep(name, moments_of(inputs[0], module, self.table[name], name in self.full))

        return hook

    def _keep(self, name: str, live: Live) -> None:
        if live[0].shape != self.table[name].mean.shape:
            raise InputError(
                f"The statistics of layer {name!r} describe {tuple(self.table[name].mean.shape)} features, but its "
                f"input has {tuple(live[0].shape)}: record them with this network."
            )
        self.seen.setdefault(name, []).append(live)

    def forget(self) -> None:
        """Drop what passes since the last `take` have left."""
        self.seen = {}

    def take(self) -> Tensor:
        """The term of the passes since the last call, a scalar, not yet multiplied by `matching.weight`."""
        live = {name: _merged(found) for name, found in self.seen.items()}
        self.seen = {}
        missing = [name for name in self.table if name not in live]
        if missing:
            raise InputError(f"Layer {missing[0]!r} did not run, so its statistics cannot be matched: leave it out.")
        terms = [self.weights[name] * full(*live[name]) for name, full in self.full.items()]
        if self.flat is not None:
            mean, var = (torch.cat([live[name][part].flatten() for name in self.diagonal]) for part in (0, 1))
            terms.append(self.flat(mean, var))
        return torch.stack(terms).sum()


def _on(entry: Moments, device: torch.device) -> Moments:
    """The entry on a device, mean and variance in float32; InputError for a number that is not finite."""
    parts = {key: getattr(entry, key) for key in ("mean", "var", "cov")}
    if not all(bool(value.isfinite().all()) for value in parts.values() if value is not None):
        raise InputError("The statistics table holds values that are not finite: record it again.")
    mean, var = (parts[key].to(device, torch.float32) for key in ("mean", "var"))
    return Moments(mean, var, None if entry.cov is None else entry.cov.to(device), entry.count, entry.of)


def _merged(found: Sequence[Live]) -> Live:
    """The moments of all inputs of a layer that ran several times in a pass, every input counting equally."""
    if len(found) == 1:
        return found[0]
    means, seconds = (torch.stack(values) for values in zip(*found, strict=True))
    mean = means.mean(0)
    gap = means - mean
    between = gap.unsqueeze(-1) * gap.unsqueeze(-2) if seconds.dim() > means.dim() else gap.square()
    return mean, (seconds + between).mean(0)
