r"""What a whitening layer remembers of its input, and how it becomes a root.

The state is a running mean and a running covariance, and the root that was last made of them; it is float32 whatever
the precision around it. With momentum m the running values after t updates are the bias-corrected averages

$$\hat\mu_t = \hat\mu_{t-1} + w_t (\mu - \hat\mu_{t-1}), \qquad w_t = m / (1 - (1-m)^t),$$

so that the first update counts in full (Kingma and Ba 2015, section 3, for a running average).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pellucid.core.device import at_least_single
from pellucid.core.errors import InputError
from pellucid.core.network.statistics import Moments
from pellucid.whiten.isqrt import METHODS, isqrt

Grad = Literal["full", "mean", "none"]
EVERY_STEP = 50  # steps at the start of training in which the root is made anew each time, whatever `refresh`


class Whitener(nn.Module):
    """Running moments of (G, F) features and the root D (G, F, F) of their covariance.

    Args:
        matrices, features: G and F.
        n_iter: Newton steps, or the ridge they amount to (`isqrt.ridge`).
        eps: added to the covariance's diagonal: absolute, as published, or times its mean with `relative`.
        momentum: weight of a new batch in the running values.
        debias: correct the running values for their start; without, they start from mean 0 and root I, as published.
        method: how roots are made; "auto" is "eigh" on the CPU and "newton-warm" elsewhere.
        refresh: covariance and root are made every so many steps, after the first 50, which all do.
        freeze_after: steps after which statistics and root stay as they are; None is never.
        grad: what the gradient flows through: "full" statistics and root, as published (refresh 1 only), the
            "mean" only, or "none".
        average: evaluation takes the root of the pooled "covariance", or the running average of "roots", as published.
        centre: the covariance is about the sample's mean, not about 0.
        sync: pool mean and covariance over all processes of torch.distributed, by their counts; each needs a batch.
        copy_first: without `debias`, the first update counts in full and the others by `momentum`.

    State: `running_mean` (G, F), `running_cov` (G, F, F), `root` (G, F, F), `steps` and `updates` (). `root` is what
    evaluation whitens by; before the first update it is I, and the mean 0. A batch that is not finite leaves no trace.
    """

    def __init__(
        self,
        matrices: int,
        features: int,
        *,
        n_iter: int,
        eps: float,
        relative: bool,
        momentum: float,
        debias: bool,
        method: str,
        refresh: int,
        freeze_after: int | None,
        grad: Grad,
        average: Literal["covariance", "roots"],
        sync: bool,
        centre: bool = True,
        copy_first: bool = False,
    ) -> None:
        super().__init__()
        _check(n_iter, eps, momentum, method, refresh, freeze_after, grad, average)
        self.n_iter, self.eps, self.relative, self.momentum, self.debias = n_iter, eps, relative, momentum, debias
        self.method, self.refresh, self.freeze_after = method, refresh, freeze_after
        self.grad, self.average, self.sync = grad, average, sync
        self.centre, self.copy_first = centre, copy_first
        self.running_mean: Tensor
        self.running_cov: Tensor
        self.root: Tensor
        self.steps: Tensor
        self.updates: Tensor
        kind = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer("running_mean", torch.zeros(matrices, features, dtype=kind))
        self.register_buffer("running_cov", torch.eye(features, dtype=kind).repeat(matrices, 1, 1))
        self.register_buffer("root", torch.eye(features, dtype=kind).repeat(matrices, 1, 1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._count: int | None = 0  # of `steps`, kept beside it so that an eager step need not wait for the device
        self._kept: tuple[Tensor, Tensor, int] | None = None  # see `_constant`

    def extra_repr(self) -> str:
        return (
            f"matrices={self.running_mean.shape[0]}, features={self.running_mean.shape[1]}, n_iter={self.n_iter}, "
            f"method={self.method!r}, refresh={self.refresh}, grad={self.grad!r}"
        )

    # --- a training step ---

    def step(
        self, x: Tensor, mean: Callable[[], Tensor], rows: Callable[[Tensor], Tensor], count: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Take in a batch; the mean (G, F) and the root D (G, F, F) to whiten it with.

        Args:
            x: the batch.
            mean: makes the mean (G, F) of the whole batch; not called when frozen.
            rows: makes of x the sample (G, F, n) that the covariance is taken of; called only if it is needed.
            count: values that the mean is of, its weight among the processes of `sync`.
        """
        compiling = torch.compiler.is_compiling()
        if compiling:
            self._count = None
        else:
            self._count = (int(self.steps) if self._count is None else self._count) + 1
        with torch.no_grad():
            self.steps.add_(1)
        if not compiling and self.freeze_after is not None and cast(int, self._count) > self.freeze_after:
            return self.running_mean.clone(), self._constant()
        if self.grad == "full":
            now, root = self._full_step(self._pooled(mean(), count), rows(x))
        else:
            with torch.set_grad_enabled(self.grad == "mean" and torch.is_grad_enabled()):
                now = self._pooled(mean(), count)
            with torch.no_grad():
                done = self.steps if self._count is None else self._count
                self._follow(self.running_mean, now, self._weight(done))
                self._refresh(x.detach(), rows)
            root = self._constant()
        live = self._live()
        if live is not None:
            now, root = torch.where(live, now, self.running_mean), torch.where(live, root, self.root)
        return now, root

    def _refresh(self, x: Tensor, rows: Callable[[Tensor], Tensor]) -> None:
        """Covariance and root, if they are due at this step."""
        if self._count is not None or (self.refresh == 1 and self.freeze_after is None):
            if self._due(self._count or 1):
                self._store(*self._updated(self.running_cov, self.root, self.updates, rows(x)))
        else:
            # Flat, since the compiler may lay out x anew for a convolution, but not in the branches.
            flat, shape = x.reshape(-1), x.shape
            self._store(
                *torch.cond(
                    self._due(self.steps),
                    # A branch may not return its inputs themselves, nor read a view of them.
                    lambda cov, root, updates: self._updated(cov, root.clone(), updates, rows(flat.view(shape))),
                    lambda cov, root, updates: (cov.clone(), root.clone(), updates.clone()),
                    (self.running_cov, self.root, self.updates),
                )
            )

    def _live(self) -> Tensor | None:
        """Whether a step is not frozen, where only the device knows: a branch of the host would break a graph."""
        compiling = torch.compiler.is_compiling()
        return self.steps <= self.freeze_after if compiling and self.freeze_after is not None else None

    def _due(self, step: Any) -> Any:
        """Whether covariance and root are made at `step` (from 1), an int or a tensor."""
        due = (step <= EVERY_STEP) | (step % self.refresh == 0)
        return due if self.freeze_after is None else due & (step <= self.freeze_after)

    def _store(self, cov: Tensor, root: Tensor, updates: Tensor) -> None:
        # In place: other processes' copies and captured graphs hold on to the buffers.
        self.running_cov.copy_(cov)
        self.root.copy_(root)
        self.updates.copy_(updates)

    def _updated(self, cov: Tensor, root: Tensor, updates: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if rows.shape[-1] < 2 and not self.sync:
            return cov.clone(), root.clone(), updates.clone()  # one sample does not vary
        batch = self._covariance(rows)
        updates = updates + 1
        cov = torch.lerp(cov, _finite(batch, cov), self._weight(updates))
        return cov, self.solve(cov, root), updates

    def _full_step(self, mean: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The published step: the batch's own root, under autograd; the running values follow it."""
        cov = self._covariance(rows)
        root = self.solve(cov, self.root)
        with torch.no_grad():
            live = self._live()
            self.updates.add_(1 if live is None else live.to(self.updates.dtype))
            weight = self._weight(self.updates)
            self._follow(self.running_mean, mean, weight)
            self._follow(self.running_cov, cov, weight)
            if self.average == "roots":
                self._follow(self.root, root, weight)
            else:
                made = self.solve(self.running_cov, self.root)
                self.root.copy_(made if live is None else torch.where(live, made, self.root))
        return mean, root

    def _follow(self, running: Tensor, value: Tensor, weight: Any) -> None:
        """One running value takes in another; not one that overflowed, which would stay for good."""
        live = self._live()
        if live is not None:
            weight = weight * live.to(running.dtype)
        running.lerp_(_finite(value, running), weight)

    def _weight(self, updates: Any) -> Any:
        """The weight of the newest batch after `updates` batches, this one included; an int or a tensor, as given."""
        if self.debias:
            count = updates.to(self.running_mean.dtype) if isinstance(updates, Tensor) else updates
            return self.momentum / (1 - (1 - self.momentum) ** count)
        if not self.copy_first:
            return self.momentum
        first = (updates == 1).to(self.running_mean.dtype) if isinstance(updates, Tensor) else updates == 1
        return self.momentum + (1 - self.momentum) * first

    def weight(self) -> Any:
        """The weight of the newest batch, after its step."""
        return self._weight(self.updates)

    def solve(self, cov: Tensor, root: Tensor) -> Tensor:
        """The root of `cov` (G, F, F) by the layer's method; `root` is the last one."""
        size = cov.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] if self.relative else 1.0
        eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
        method = self.method
        if method == "auto":
            method = "eigh" if cov.device.type == "cpu" else "newton-warm"
        return isqrt(cov + self.eps * size * eye, method, self.n_iter, root)

    def _constant(self) -> Tensor:
        """The root for a graph to keep: a copy, out of reach of a refresh before this pass's backward (a layer used
        twice); made once a refresh, not once a step."""
        captured = self.root.is_cuda and torch.cuda.is_current_stream_capturing()
        if captured or torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or self.root.is_inference():
            return self.root.clone()
        if self._kept is None or self._kept[1] is not self.root or self._kept[2] != self.root._version:
            self._kept = (self.root.clone(), self.root, self.root._version)
        return self._kept[0]

    # --- evaluation ---

    def at_eval(self) -> tuple[Tensor, Tensor]:
        """The mean (G, F) and root (G, F, F) of evaluation; 0 and I before any training step."""
        return self.running_mean, self.root

    def train(self, mode: bool = True) -> Whitener:
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._count, self._kept = None, None

    def _apply(self, fn: Any, recurse: bool = True) -> Whitener:
        return super()._apply(at_least_single(fn), recurse)

    def moments(self, of: str) -> Moments:
        """Running mean (G, F) and covariance (G, F, F) for the statistics table, as moments of `of`."""
        mean, cov = self.running_mean.detach().clone(), self.running_cov.detach().clone()
        if not self.centre:
            cov -= mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return Moments(mean, cov.diagonal(dim1=-2, dim2=-1).clone(), cov, 0, of)

    # --- several processes ---

    def _pooled(self, value: Tensor, count: int) -> Tensor:
        """The mean of `value` over all processes, each weighted by its `count`."""
        if not self.sync or not _several():
            return value
        from torch.distributed.nn.functional import all_reduce

        total = all_reduce(torch.cat([value.flatten() * count, value.new_full((1,), count)]))
        return (total[:-1] / total[-1]).reshape(value.shape)

    def _covariance(self, rows: Tensor) -> Tensor:
        """Population covariance (G, F, F) of rows (G, F, n), over all processes with `sync`."""
        n = rows.shape[-1]
        # The mean first, then the moment about it: a difference of large second moments would lose all digits.
        centred = rows - self._pooled(rows.mean(-1, keepdim=True), n) if self.centre else rows
        return self._pooled(centred @ centred.mT / n, n)


def _finite(value: Tensor, otherwise: Tensor) -> Tensor:
    """`value` if all of it is finite."""
    return torch.where(value.isfinite().all(), value, otherwise)


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _check(
    n_iter: int,
    eps: float,
    momentum: float,
    method: str,
    refresh: int,
    freeze_after: int | None,
    grad: str,
    average: str,
) -> None:
    rules = [
        (n_iter >= 1, f"n_iter={n_iter} must be at least 1"),
        (eps >= 0, f"eps={eps} must be at least 0"),
        (0 < momentum <= 1, f"momentum={momentum} must be above 0 and at most 1"),
        (method in ("auto", *METHODS), f"method={method!r} must be auto, {', '.join(METHODS)}"),
        (refresh >= 1, f"refresh={refresh} must be at least 1"),
        (freeze_after is None or freeze_after >= 1, f"freeze_after={freeze_after} must be None or at least 1"),
        (grad in ("full", "mean", "none"), f"grad={grad!r} must be full, mean or none"),
        (average in ("covariance", "roots"), f"average={average!r} must be covariance or roots"),
        (grad != "full" or refresh == 1, f"grad='full' needs a root at every step, so refresh=1, not {refresh}"),
        (
            grad != "full" or method not in ("auto", "eigh", "newton-warm"),
            f"grad='full' goes through the root, not possible by method={method!r}: use newton, polynomial or cholesky",
        ),
        (average != "roots" or grad == "full", "average='roots' needs the root of every batch: use grad='full'"),
    ]
    for holds, sentence in rules:
        if not holds:
            raise InputError(f"A whitening layer's {sentence}.")
