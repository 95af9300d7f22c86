r"""What a whitening layer remembers of its input, and how that becomes a root.

The state is a running mean and a running covariance, and the root last made of them; it is float32 whatever the
precision around it. With momentum m the running values after t updates are the bias-corrected averages

$$\hat\mu_t = \hat\mu_{t-1} + w_t (\mu - \hat\mu_{t-1}), \qquad w_t = m / (1 - (1-m)^t),$$

so that the first update counts in full (Kingma and Ba 2015, section 3, for a running average).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pellucid.core.device import at_least_single
from pellucid.core.network.statistics import Moments
from pellucid.whiten.isqrt import isqrt
from pellucid.whiten.moments import Sample
from pellucid.whiten.options import Options, completed
from pellucid.whiten.pooling import covariance, pooled

EVERY_STEP = 50  # steps at the start of training in which the root is recomputed each time, whatever `refresh`


class Whitener(nn.Module):
    """Running moments of (G, F) features and the root D (G, F, F) of their covariance.

    Args:
        matrices, features: G and F.
        options: those of every whitening layer, see `FastDeconv2d`. Without `debias`, running values start from mean 0
            and root I, as published.
        centre: take the covariance about the sample's mean, not about 0.
        copy_first: without `debias`, let the first update count in full and the others by `momentum`.

    State: `running_mean` (G, F), `running_cov` (G, F, F), `root` (G, F, F), `steps` and `updates` (). `root` is what
    evaluation whitens by; before the first update it is I, and the mean 0. A batch that is not finite leaves no trace.

    Raises:
        InputError: an option out of range.
    """

    def __init__(
        self, matrices: int, features: int, options: Options, *, centre: bool = True, copy_first: bool = False
    ) -> None:
        super().__init__()
        chosen = completed(options)
        self.n_iter, self.eps, self.relative = chosen["n_iter"], chosen["eps"], chosen["relative_eps"]
        self.momentum, self.debias, self.method = chosen["momentum"], chosen["debias"], chosen["method"]
        self.refresh, self.freeze_after = chosen["refresh"], chosen["freeze_after"]
        self.grad, self.average, self.sync = chosen["grad"], chosen["average"], chosen["sync"]
        self.centre, self.copy_first = centre, copy_first
        self.running_mean: Tensor
        self.running_cov: Tensor
        self.root: Tensor
        self.steps: Tensor
        self.updates: Tensor
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer("running_mean", torch.zeros(matrices, features, dtype=dtype))
        self.register_buffer("running_cov", torch.eye(features, dtype=dtype).repeat(matrices, 1, 1))
        self.register_buffer("root", torch.eye(features, dtype=dtype).repeat(matrices, 1, 1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._count: int | None = 0  # a copy of `steps` on the host, so that an eager step need not wait for the device
        self._kept: tuple[Tensor, Tensor, int] | None = None  # see `_constant`
        self.register_load_state_dict_post_hook(_forget)

    def extra_repr(self) -> str:
        return (
            f"matrices={self.running_mean.shape[0]}, features={self.running_mean.shape[1]}, n_iter={self.n_iter}, "
            f"method={self.method!r}, refresh={self.refresh}, grad={self.grad!r}"
        )

    # --- a training step ---

    def step(self, x: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:
        """Take in a batch x; return the mean (G, F) and the root D (G, F, F) to whiten it with.

        `sample` computes the moments of x: nothing when the layer is frozen, rows only when the root is due.
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
        dtype = self.root.dtype
        with torch.autocast(x.device.type, enabled=False):
            if self.grad == "full":
                mean, root = self._full_step(x, sample)
            else:
                with torch.set_grad_enabled(self.grad == "mean" and torch.is_grad_enabled()):
                    mean = pooled(sample.mean(x, dtype), sample.count(x), self.sync)
                with torch.no_grad():
                    self._follow(self.running_mean, mean, self._weight(self.steps if compiling else self._count))
                    if compiling and (self.refresh > 1 or self.freeze_after is not None):
                        self._renew_on_device(x.detach(), sample)
                    elif compiling or self._due(self._count):
                        rows = sample.rows(x.detach(), dtype)
                        self._store(*self._renewed(self.running_cov, self.root, self.updates, rows))
                root = self._constant()
            live = self._live()
            if live is not None:
                mean, root = torch.where(live, mean, self.running_mean), torch.where(live, root, self.root)
            return mean, root

    def _renewed(self, cov: Tensor, root: Tensor, updates: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Covariance, root and number of updates after a sample's rows (G, F, n)."""
        if rows.shape[-1] < 2 and not self.sync:
            return cov.clone(), root.clone(), updates.clone()  # one sample does not vary
        updates = updates + 1
        cov = torch.lerp(cov, _finite(covariance(rows, self.centre, self.sync), cov), self._weight(updates))
        return cov, isqrt(*self._regularised(cov), self.n_iter, root), updates

    def _full_step(self, x: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:
        """The published step: the batch's own root, under autograd; the running values follow it."""
        mean = pooled(sample.mean(x, self.root.dtype), sample.count(x), self.sync)
        cov = covariance(sample.rows(x, self.root.dtype), self.centre, self.sync)
        root = isqrt(*self._regularised(cov), self.n_iter, self.root)
        with torch.no_grad():
            live = self._live()
            self.updates.add_(1 if live is None else live.to(self.updates.dtype))
            weight = self._weight(self.updates)
            self._follow(self.running_mean, mean, weight)
            self._follow(self.running_cov, cov, weight)
            if self.average == "roots":
                self._follow(self.root, root, weight)
            else:
                made = isqrt(*self._regularised(self.running_cov), self.n_iter, self.root)
                self.root.copy_(made if live is None else torch.where(live, made, self.root))
        return mean, root

    def _renew_on_device(self, x: Tensor, sample: Sample) -> None:
        """Recompute covariance and root if the device, which alone knows, finds them due: the graph stays whole."""
        # Flat, since the compiler may lay out x anew for a convolution, but not in the branches.
        flat, shape, dtype = x.reshape(-1), x.shape, self.root.dtype
        self._store(
            *torch.cond(
                self._due(self.steps),
                # A branch may not return its inputs themselves, nor read a view of them.
                lambda cov, root, updates: self._renewed(
                    cov, root.clone(), updates, sample.rows(flat.view(shape), dtype)
                ),
                lambda cov, root, updates: (cov.clone(), root.clone(), updates.clone()),
                (self.running_cov, self.root, self.updates),
            )
        )

    def _live(self) -> Tensor | None:
        """Whether a step is not frozen, where only the device knows."""
        compiling = torch.compiler.is_compiling()
        return self.steps <= self.freeze_after if compiling and self.freeze_after is not None else None

    def _due(self, step: Any) -> Any:
        """Whether covariance and root are recomputed at `step` (from 1), an int or a tensor."""
        due = (step <= EVERY_STEP) | (step % self.refresh == 0)
        return due if self.freeze_after is None else due & (step <= self.freeze_after)

    def _store(self, cov: Tensor, root: Tensor, updates: Tensor) -> None:
        # In place: other processes' copies and captured graphs hold on to the buffers.
        self.running_cov.copy_(cov)
        self.root.copy_(root)
        self.updates.copy_(updates)

    def _follow(self, running: Tensor, value: Tensor, weight: Any) -> None:
        """Move a running value towards `value`, unless that overflowed: it would stay for good."""
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

    def _regularised(self, cov: Tensor) -> tuple[Tensor, str]:
        r"""What `isqrt` is given: $\Sigma + \epsilon I$ (G, F, F), and the method for its device."""
        size = cov.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] if self.relative else 1.0
        eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
        method = self.method
        if method == "auto":
            method = "eigh" if cov.device.type == "cpu" else "newton-warm"
        return cov + self.eps * size * eye, method

    def _constant(self) -> Tensor:
        """The root as a constant for autograd to keep: a copy, made once per refresh, so that the refresh of a later
        pass through the same layer leaves this pass's backward alone."""
        captured = self.root.is_cuda and torch.cuda.is_current_stream_capturing()
        if captured or torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or self.root.is_inference():
            return self.root.clone()
        version = self.root._version  # torch's only count of changes in place; it has no public name
        if self._kept is None or self._kept[1] is not self.root or self._kept[2] != version:
            self._kept = (self.root.clone(), self.root, version)
        return self._kept[0]

    # --- evaluation ---

    def at_eval(self) -> tuple[Tensor, Tensor]:
        """The mean (G, F) and root (G, F, F) of evaluation; 0 and I before any training step."""
        return self.running_mean, self.root

    def moments(self, of: str) -> Moments:
        """Running mean (G, F) and covariance (G, F, F) for the statistics table, as moments of `of`."""
        mean, cov = self.running_mean.detach().clone(), self.running_cov.detach().clone()
        if not self.centre:
            cov -= mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return Moments(mean, cov.diagonal(dim1=-2, dim2=-1).clone(), cov, 0, of)

    # --- as a module ---

    def train(self, mode: bool = True) -> Whitener:
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _apply(self, fn: Any, recurse: bool = True) -> Whitener:  # torch's one hook into half() and the like
        return super()._apply(at_least_single(fn), recurse)


def _forget(whitener: Whitener, keys: object) -> None:
    """After new values are loaded, read the count from `steps` and copy the root again."""
    whitener._count, whitener._kept = None, None


def _finite(value: Tensor, otherwise: Tensor) -> Tensor:
    """`value` if all of it is finite."""
    return torch.where(value.isfinite().all(), value, otherwise)
