r"""The statistics table: moments of the input of each layer, `{layer name: Moments}`.

It is what one idea leaves for another to read. It comes from a network's own buffers (batch norm, or any layer with a
method `declared_moments()`), or from one pass of images through any layers.

For recording in batches b of $n_b$ values each (images times positions), the pooled moments are

$$\mu = \frac1n \sum_b n_b \mu_b, \qquad
  \Sigma = \frac1n \sum_b n_b \left[\Sigma_b + (\mu_b-\mu)(\mu_b-\mu)^\top\right]$$

(Chan, Golub and LeVeque 1983, equation 1.5b, population form: divided by n).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pellucid.core.device import check_values, double, fitting
from pellucid.core.errors import InputError, first_line, shown
from pellucid.core.facts import unwrapped
from pellucid.core.files.atomic import write_atomic
from pellucid.core.files.conform import conform
from pellucid.core.files.structured import check_regular, parse_json
from pellucid.core.modes import evaluating
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.network.plain import CONVOLUTIONS
from pellucid.core.network.tap import module_at
from pellucid.core.ranges import Number

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
RECORDED = (CONVOLUTIONS, nn.Linear, *BATCH_NORMS)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)  # modules whose features are the last axis whatever the rank


@dataclass(frozen=True)
class Moments:
    """Moments of one layer's input.

    mean: (C,) or (G, F) for G blocks of F features.
    var: like `mean`; population variance.
    cov: (C, C) or (G, F, F), or None when only variances are known.
    count: number of values that each entry averages over; 0 if unknown (running averages).
    of: what the features are: "channels" of the input, "patches" (channel-major unfolded windows), or "pooled" (blocks
        of such windows, treated as samples of one block).
    """

    mean: Tensor
    var: Tensor
    cov: Tensor | None = None
    count: int = 0
    of: str = "channels"

    def merge(self, other: Moments) -> Moments:
        """The moments of both samples together.

        Raises:
            InputError: the features differ, or the counts are unknown.
        """
        n = self.count + other.count
        if n == 0 or self.of != other.of:
            raise InputError("Only moments of the same features with known counts can be merged.")
        a, b = self.count / n, other.count / n
        mean = a * self.mean + b * other.mean
        gap = other.mean - self.mean
        var = a * self.var + b * other.var + a * b * gap.square()
        cov = None
        if self.cov is not None and other.cov is not None:
            cov = a * self.cov + b * other.cov + a * b * gap.unsqueeze(-1) * gap.unsqueeze(-2)
        return Moments(mean, var, cov, n, self.of)


@runtime_checkable
class Declares(Protocol):
    """A layer that holds moments of its own input."""

    def declared_moments(self) -> Moments: ...


class Statistics(dict[str, Moments]):
    """A statistics table: a dict that can be saved and loaded (safetensors, float32 or float64).

    Attributes:
        idle: layers of the network that did not run when it was recorded, of which it holds nothing.
    """

    idle: tuple[str, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to one safetensors file, atomically."""
        from safetensors.torch import save

        tensors, entries = {}, {}
        for name, moments in self.items():
            for key in ("mean", "var", "cov"):
                value = getattr(moments, key)
                if value is not None:
                    tensors[f"{name}/{key}"] = value.detach().cpu().contiguous()
            entries[name] = {"count": moments.count, "of": moments.of}
        write_atomic(path, save(tensors, {"pellucid.statistics": json.dumps(entries)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read a table that `save` wrote.

        Raises:
            InputError: no such file, or not a statistics table.
        """
        from safetensors import SafetensorError, safe_open

        check_regular(path)
        try:
            with safe_open(os.fspath(path), "pt") as file:
                what = f"{shown(os.fspath(path), 300)} is damaged"
                raw = (file.metadata() or {})["pellucid.statistics"]
                entries = parse_json(raw, what, dict[str, dict[str, Any]])
                present = set(file.keys())
                table = cls()
                for name, entry in entries.items():
                    conform(entry, {"count": Number, "of": str}, what, name)
                    parts = {
                        k: file.get_tensor(f"{name}/{k}") for k in ("mean", "var", "cov") if f"{name}/{k}" in present
                    }
                    table[name] = _checked(Moments(**parts, count=entry["count"], of=entry["of"]))
                return table
        except InputError:
            raise
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{os.fspath(path)!r} is not a statistics table of pellucid ({type(error).__name__}): record one with "
                "pellucid.statistics(model, images).save(path)."
            ) from None


def _checked(moments: Moments) -> Moments:
    """`moments`, if their shapes and types belong together; else ValueError."""
    mean, var, cov = moments.mean, moments.var, moments.cov
    whole = all(part is None or part.is_floating_point() for part in (mean, var, cov))
    if not whole or mean.ndim not in (1, 2) or not mean.numel() or var.shape != mean.shape:
        raise ValueError("moments that are not of one layer")
    if cov is not None and cov.shape != (*mean.shape, mean.shape[-1]):
        raise ValueError("a covariance of other features")
    return moments


def statistics(
    model: nn.Module,
    images: Tensor | Iterable[Tensor] | None = None,
    *,
    layers: Sequence[str] | None = None,
    covariance: bool = False,
) -> Statistics:
    """Read the statistics that `model` holds, or record them from images.

    Args:
        model: any network; the mode of every submodule and all gradients are left as they were.
        images: None to read the network's own buffers: batch norm's running mean and variance, and the moments of every
            layer with a method `declared_moments()`. A tensor (N, C, H, W), or an iterable of such batches, normalised
            as the network expects, is passed through once in evaluation mode, and the inputs of `layers` are recorded.
        layers: dotted names; default every convolution, linear and batch-norm layer when recording, or every layer that
            holds statistics when reading.
        covariance: record the (C, C) covariance of the channels too.

    Returns:
        `{name: Moments}` in the model's order; recorded moments are float64. Layers that do not run in evaluation mode,
        such as auxiliary heads, are left out and listed in its attribute `idle`.

    Raises:
        InputError: an unknown layer, a layer named in `layers` that did not run, no images, or a network that holds no
            statistics.
    """
    model = unwrapped(model)
    needs_layers(model, "Reading statistics")
    if images is None:
        return _declared(model, layers)
    chosen = layers
    if chosen is None:
        chosen = [name for name, module in model.named_modules() if isinstance(module, RECORDED)]
    if not chosen:
        raise InputError("The model has no convolution, linear or batch-norm layer to record: name some in layers=.")
    batches = [images] if isinstance(images, Tensor) else images
    return _recorded(model, batches, chosen, covariance, named=layers is not None)


def _declared(model: nn.Module, layers: Sequence[str] | None) -> Statistics:
    named = model.named_modules() if layers is None else [(name, module_at(model, name)) for name in layers]
    table = Statistics()
    for name, module in named:
        if isinstance(module, Declares):
            table[name] = module.declared_moments()
        elif isinstance(module, BATCH_NORMS) and module.running_mean is not None and module.running_var is not None:
            table[name] = Moments(module.running_mean.detach().clone(), module.running_var.detach().clone())
        elif layers is not None:
            raise InputError(f"Layer {name!r} ({type(module).__name__}) holds no statistics: record them with images=.")
    if not table:
        raise InputError(
            "This network holds no statistics (no batch norm, no layer that declares any): record them from a few "
            "images with pellucid.statistics(model, images)."
        )
    return table


@torch.no_grad()
def _recorded(
    model: nn.Module, batches: Iterable[Tensor], layers: Sequence[str], covariance: bool, *, named: bool
) -> Statistics:
    found: dict[str, Moments] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            moments = _moments(inputs[0], isinstance(module, _CHANNELS_LAST), covariance)
            found[name] = found[name].merge(moments) if name in found else moments

        return record

    check_values(model)
    empty = True
    with contextlib.ExitStack() as stack, evaluating(model):
        for name in layers:
            stack.callback(module_at(model, name).register_forward_pre_hook(hook(name)).remove)
        for batch in batches:
            try:
                model(fitting(model, batch))
            except Exception as error:  # a module of the user's may fail in any way
                raise InputError(
                    f"The model cannot take images of shape {list(batch.shape)} ({first_line(error)})."
                ) from error
            empty = False
    if empty:
        raise InputError("There are no images to record statistics from.")
    silent = tuple(name for name in layers if name not in found)
    if silent and (named or not found):
        raise InputError(f"Layer {silent[0]!r} did not run on these images, so nothing was recorded for it.")
    table = Statistics((name, found[name]) for name in layers if name in found)
    table.idle = silent
    return table


def _moments(x: Tensor, channels_last: bool, covariance: bool) -> Moments:
    """Moments over everything but the channel axis of x: (N, C), (N, C, ...) or, channels last, (..., C)."""
    x = double(x.detach())
    rows = x.flatten(0, -2) if channels_last else x.movedim(1, -1).flatten(0, -2)  # (n, C)
    n = rows.shape[0]
    mean = rows.mean(0)
    centred = rows - mean
    if not covariance:
        return Moments(mean, centred.square().mean(0), None, n)
    cov = centred.T @ centred / n
    return Moments(mean, cov.diagonal().clone(), cov, n)
