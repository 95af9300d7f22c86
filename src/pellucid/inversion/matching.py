r"""How far what the layers see now is from a statistics table.

Scale-free: the mean over layers of the Gaussian divergence per feature. With live mean and variance m, v and those of
the table M, V of a layer's C features,

$$\frac1{2C} \sum_c \frac{v_c + (m_c - M_c)^2}{V_c} - 1 - \ln \frac{v_c}{V_c},$$

and with covariances, by blocks of F features,

$$\frac1{2F} \left[\operatorname{tr}(V^{-1} v) + (m - M)^\top V^{-1} (m - M) - F - \ln \frac{\det v}{\det V}\right].$$

It is 0 where the moments agree, and no unit, width or depth changes it, so that one weight serves every network. The
papers' term (Yin et al. 2020, equation 4), $\sum_l |m_l - M_l|_2 + |v_l - V_l|_2$, grows with all of them.
"""

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
from pellucid.inversion.features import Live, moments_of


@dataclass(frozen=True)
class Matching:
    """How statistics count in the loss.

    weight: factor of the term. form: "gaussian", the divergence above, or "norms", the papers' sum. first: factor of
    the first layer. covariance: use covariances where the table has them, else variances alone. input: weight, beside
    the layers' 1 each, of mean 0 and variance 1 of the normalised input itself. ridge: share of a layer's mean variance
    that is added to all its variances, of the table and live, and so keeps dead features and small batches finite.
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
                raise InputError(f"A statistics term's {name}={getattr(self, name)} must be at least 0.")
        if self.form not in ("gaussian", "norms"):
            raise InputError(f"A statistics term has the form gaussian or norms, not {self.form!r}.")
        if self.form == "gaussian" and not self.ridge:
            raise InputError("A Gaussian statistics term needs a ridge above 0.")


class Watch:
    """The statistics term of one network while `watching`: each forward pass leaves moments, `take` makes the term."""

    def __init__(self, model: nn.Module, table: Mapping[str, Moments], matching: Matching, sample: Tensor) -> None:
        """Compare with `table` on `model`, whose input is like `sample`.

        Raises:
            InputError: a layer of the table that is not there, or whose features are others.
        """
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
            name: _Full(moments, matching.ridge)
            for name, moments in self.table.items()
            if matching.covariance and moments.cov is not None and matching.form == "gaussian"
        }
        self.diagonal = [name for name in self.table if name not in self.full]
        share = 1 if matching.form == "norms" else max(1, len(layers))
        self.weights = {name: weight / share for name, weight in weights.items()}
        kind = _Norms if matching.form == "norms" else _Divergence
        entries = [self.table[name] for name in self.diagonal]
        weighed = [self.weights[name] for name in self.diagonal]
        self.flat = kind(entries, weighed, matching.ridge) if entries else None

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        """Watch every forward pass while the block runs; the network is then as it was, whatever happens."""
        with contextlib.ExitStack() as stack:
            for name, module in self.modules.items():
                if name not in self.full and self.table[name].mean.dim() == 1 and batchnorm.fusible(module):
                    stack.enter_context(calling(module, self._fused(name, module)))
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
                f"The statistics of layer {name!r} are of {tuple(self.table[name].mean.shape)} features, but its "
                f"input has {tuple(live[0].shape)}: record them with this network."
            )
        self.seen.setdefault(name, []).append(live)

    def take(self) -> Tensor:
        """The term of the forward pass just made, a scalar, without `matching.weight`; the next pass starts anew."""
        live = {name: _pooled(found) for name, found in self.seen.items()}
        self.seen = {}
        missing = [name for name in self.table if name not in live]
        if missing:
            raise InputError(f"Layer {missing[0]!r} did not run, so its statistics cannot be matched: leave it out.")
        terms = [self.weights[name] * full(*live[name]) for name, full in self.full.items()]
        if self.flat is not None:
            mean, var = (torch.cat([live[name][part].flatten() for name in self.diagonal]) for part in (0, 1))
            terms.append(self.flat(mean, var))
        return torch.stack(terms).sum()


class _Divergence:
    """The divergence of all layers of which variances are compared, on their features laid end to end."""

    def __init__(self, entries: Sequence[Moments], weights: Sequence[float], ridge: float) -> None:
        ridges, shares = [], []
        for entry, weight in zip(entries, weights, strict=True):
            count, added = _ridge(entry.var, ridge)
            ridges.append(torch.full_like(entry.var.flatten(), added))
            shares.append(torch.full_like(entry.var.flatten(), weight / count / 2))
        self.mean = torch.cat([entry.mean.flatten() for entry in entries])
        self.ridge, self.share = torch.cat(ridges), torch.cat(shares)
        self.var = torch.cat([entry.var.flatten() for entry in entries]) + self.ridge

    def __call__(self, mean: Tensor, var: Tensor) -> Tensor:
        ratio = (var + self.ridge) / self.var
        return (self.share * (ratio + (mean - self.mean).square() / self.var - 1 - ratio.log())).sum()


class _Norms:
    """The papers' sum of norms, on the features of all layers laid end to end."""

    def __init__(self, entries: Sequence[Moments], weights: Sequence[float], ridge: float) -> None:
        self.mean, self.var = (torch.cat([getattr(e, key).flatten() for e in entries]) for key in ("mean", "var"))
        self.weight = self.mean.new_tensor(weights)
        sizes = torch.tensor([entry.mean.numel() for entry in entries])
        self.layer = torch.arange(len(entries)).repeat_interleave(sizes).to(self.mean.device)

    def __call__(self, mean: Tensor, var: Tensor) -> Tensor:
        total = mean.new_zeros(())
        for gap in (mean - self.mean, var - self.var):
            squares = torch.zeros_like(self.weight).index_add(0, self.layer, gap.square())
            total = total + (self.weight * squares.clamp_min(1e-24).sqrt()).sum()
        return total


class _Full:
    """The divergence of one layer of which covariances are compared, in float64."""

    def __init__(self, entry: Moments, ridge: float) -> None:
        assert entry.cov is not None
        cov = entry.cov if entry.cov.dim() == 3 else entry.cov.unsqueeze(0)
        self.count, added = _ridge(entry.var, ridge)
        self.mean = entry.mean.double().reshape(len(cov), -1, 1)
        self.ridge = added * torch.eye(cov.shape[-1], dtype=torch.float64, device=cov.device)
        factor, failed = torch.linalg.cholesky_ex(cov.double() + self.ridge)
        if bool(failed.any()):
            raise InputError("A covariance in the statistics table is not positive: record it from more images.")
        self.whiten = torch.linalg.solve_triangular(factor, torch.eye(len(self.ridge)).to(self.ridge), upper=False)

    def __call__(self, mean: Tensor, cov: Tensor) -> Tensor:
        cov = cov.double().reshape(self.mean.shape[0], *self.ridge.shape)
        gap = self.whiten @ (mean.double().reshape(self.mean.shape) - self.mean)
        white = self.whiten @ (cov + self.ridge) @ self.whiten.mT  # I where the covariances agree
        diagonal = torch.linalg.cholesky_ex(white).L.diagonal(dim1=-2, dim2=-1)
        trace = white.diagonal(dim1=-2, dim2=-1)
        return ((trace - 1 - 2 * diagonal.log()).sum() + gap.square().sum()).float() / (2 * self.count)


def _ridge(var: Tensor, share: float) -> tuple[float, float]:
    """How many features are not constant, and what is added to every variance of the layer."""
    count = max(1, int((var > 0).sum()))
    return float(count), share * float(var.double().sum()) / count or 1.0


def _on(entry: Moments, device: torch.device) -> Moments:
    """The entry in float32 on a device (its covariance as it is); its numbers must be."""
    parts = {key: getattr(entry, key) for key in ("mean", "var", "cov")}
    if not all(bool(value.isfinite().all()) for value in parts.values() if value is not None):
        raise InputError("The statistics table holds values that are not finite: record it anew.")
    mean, var = (parts[key].to(device, torch.float32) for key in ("mean", "var"))
    return Moments(mean, var, None if entry.cov is None else entry.cov.to(device), entry.count, entry.of)


def _pooled(found: Sequence[Live]) -> Live:
    """Moments of all the inputs of a layer that ran several times in a pass, each counting the same."""
    if len(found) == 1:
        return found[0]
    means, seconds = (torch.stack(values) for values in zip(*found, strict=True))
    mean = means.mean(0)
    gap = means - mean
    between = gap.unsqueeze(-1) * gap.unsqueeze(-2) if seconds.dim() > means.dim() else gap.square()
    return mean, (seconds + between).mean(0)


@contextlib.contextmanager
def calling(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let `module` compute by `forward` while the block runs."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before
