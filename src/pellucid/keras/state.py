r"""The state of a whitening layer: running statistics of its input, and the inverse square root made from them.

The arithmetic is that of `pellucid.FastDeconv2d`: a running mean and covariance, bias-corrected,

$$\hat\mu_t = \hat\mu_{t-1} + w_t (\mu - \hat\mu_{t-1}), \qquad w_t = m / (1 - (1-m)^t),$$

and the latest root of that covariance. All of it is at least float32 under every dtype policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from pellucid.keras.isqrt import isqrt
from pellucid.keras.options import DEFAULTS, PUBLISHED, check

EVERY_STEP = 50  # steps at the start of training that all recompute the root, whatever `refresh`


class Whitening(keras.layers.Layer):
    """The part that all whitening layers share: their options, and the state of G matrices of F features.

    Options, by keyword:

        n_iter: number of Newton steps, or for the other methods the ridge equivalent to them; default 5.
        eps: added to the diagonal of the covariance, with `relative_eps` times its mean; default 1e-5.
        relative_eps: default False.
        momentum: weight of a new batch in the running mean and covariance (the complement of batch norm's in Keras);
            default 0.1.
        debias: correct the running values for their initial values; default True.
        method: how the root is computed: "auto" (default: eigh on a CPU, newton-warm elsewhere), "newton",
            "newton-warm", "polynomial", "eigh", "cholesky".
        refresh: recompute covariance and root every `refresh` steps (every step for the first 50); default 16.
        freeze_after: number of steps after which mean, covariance and root no longer change; default None, never.
        grad: what the gradient flows through: "full" (statistics and root, as published; needs refresh=1), "mean"
            (default) or "none".
        average: evaluate with the root of the pooled "covariance" (default), or with the running average of "roots".

    Non-trainable weights: running_mean (G, F), running_cov (G, F, F), root (G, F, F), steps and updates (). They change
    in training steps only, and not at all if the layer is not `trainable`; a batch with NaN or infinity does not change
    them.
    """

    block: int
    sampling_stride: int
    blocks: str
    published_block = 64
    n_iter: int
    eps: float
    relative_eps: bool
    momentum: float
    debias: bool
    method: str
    refresh: int
    freeze_after: int | None
    grad: str
    average: str
    centre = True  # the covariance is about the mean of the sample, not about 0
    copy_first = False  # without `debias`, the first update has weight 1 and the others `momentum`

    def _set(self, block: int, sampling_stride: int, blocks: str, options: dict[str, Any]) -> None:
        """Set the options.

        Raises:
            ValueError: one is out of range.
        """
        for name, value in {"block": block, "sampling_stride": sampling_stride, "blocks": blocks, **options}.items():
            setattr(self, name, value)
        check(self.options)

    @property
    def options(self) -> dict[str, Any]:
        """The whitening options, as the constructor takes them."""
        return {name: getattr(self, name) for name in ("block", "sampling_stride", "blocks", *DEFAULTS)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.options}

    @classmethod
    def as_published(cls, *args: Any, **options: Any) -> Any:
        """Make the same layer in the paper's published arithmetic, which `options` override.

        That is one pooled matrix, five Newton steps with their gradient at every training step, and running averages of
        mean and root that start from 0 and I.
        """
        return cls(*args, **{**PUBLISHED, "blocks": "pooled", "block": cls.published_block, **options})

    # --- state ---

    @property
    def kind(self) -> str:
        """The dtype of statistics and root."""
        return "float64" if self.variable_dtype == "float64" else "float32"

    def _add_state(self, matrices: int, features: int) -> None:
        def roots(shape: Any, dtype: Any = None) -> Any:
            return ops.tile(ops.expand_dims(ops.eye(features, dtype=dtype), 0), (shape[0], 1, 1))

        square = (matrices, features, features)
        self.running_mean = self._statistic("running_mean", (matrices, features), "zeros")
        self.running_cov = self._statistic("running_cov", square, roots)
        self.root = self._statistic("root", square, roots)
        self.steps = self._statistic("steps", (), "zeros", "int32")
        self.updates = self._statistic("updates", (), "zeros", "int32")

    def _statistic(self, name: str, shape: tuple[int, ...], start: Any, dtype: str | None = None) -> Any:
        # Without autocast=False a mixed-precision policy would cast the statistics to half precision.
        return self.add_weight(
            name=name, shape=shape, initializer=start, dtype=dtype or self.kind, trainable=False, autocast=False
        )

    def at_eval(self) -> tuple[Any, Any]:
        """The mean (G, F) and root (G, F, F) used in evaluation; 0 and I before any training step."""
        return ops.convert_to_tensor(self.running_mean), ops.convert_to_tensor(self.root)

    # --- a training step ---

    def _take_in(self, mean: Callable[[], Any], rows: Callable[[], Any]) -> tuple[Any, Any]:
        """Update the statistics with a batch, and return the mean (G, F) and root D (G, F, F) to whiten it with.

        mean: computes the mean (G, F) of the whole batch.
        rows: computes the sample (G, F, n) for the covariance; called only when one is due.
        """
        steps = self.steps + 1
        live = ops.convert_to_tensor(True) if self.freeze_after is None else steps <= self.freeze_after
        held = self.at_eval()
        now, root = (self._full_step if self.grad == "full" else self._step)(mean, rows, steps, live)
        self.steps.assign(steps)
        if self.freeze_after is not None:
            now, root = ops.where(live, now, held[0]), ops.where(live, root, held[1])
        return now, root

    def _step(self, mean: Callable[[], Any], rows: Callable[[], Any], steps: Any, live: Any) -> tuple[Any, Any]:
        now = mean()
        if self.grad == "none":
            now = ops.stop_gradient(now)
        self._follow(self.running_mean, now, self._weight(steps), live)
        cov, root, updates = (ops.convert_to_tensor(v) for v in (self.running_cov, self.root, self.updates))

        def made() -> tuple[Any, Any, Any]:
            seen = ops.stop_gradient(rows())
            varied = ops.convert_to_tensor(ops.shape(seen)[-1] > 1)  # one sample has no variance
            count = updates + 1
            new = lerp(cov, finite_or(self._covariance(seen), cov), self._weight(count))
            taken = (new, self.solve(new, root), count)
            return tuple(ops.where(varied, a, b) for a, b in zip(taken, (cov, root, updates), strict=True))

        due = ops.logical_and(live, ops.logical_or(steps <= EVERY_STEP, steps % self.refresh == 0))
        cov, root, updates = ops.cond(due, made, lambda: (cov, root, updates))
        for weight, value in ((self.running_cov, cov), (self.root, root), (self.updates, updates)):
            weight.assign(value)
        return now, ops.stop_gradient(root)

    def _full_step(self, mean: Callable[[], Any], rows: Callable[[], Any], steps: Any, live: Any) -> tuple[Any, Any]:
        """The published step: whiten by the batch's own root, with its gradient, and update the running averages."""
        now, cov = mean(), self._covariance(rows())
        last = ops.convert_to_tensor(self.root)
        root = self.solve(cov, last)
        self.updates.assign(self.updates + ops.cast(live, "int32"))
        weight = self._weight(ops.convert_to_tensor(self.updates))
        self._follow(self.running_mean, now, weight, live)
        self._follow(self.running_cov, cov, weight, live)
        if self.average == "roots":
            self._follow(self.root, root, weight, live)
        else:
            self.root.assign(ops.where(live, self.solve(ops.convert_to_tensor(self.running_cov), last), last))
        return now, root

    def _follow(self, running: Any, value: Any, weight: Any, live: Any) -> None:
        """Update one running value by another, unless that overflowed: infinity would stay for good."""
        old = ops.convert_to_tensor(running)
        value = finite_or(ops.stop_gradient(value), old)
        running.assign(ops.where(live, lerp(old, value, weight), old))

    def _weight(self, count: Any) -> Any:
        """The weight of the newest of `count` batches."""
        count = ops.cast(count, self.kind)
        if self.debias:
            return self.momentum / (1 - (1 - self.momentum) ** count)
        if not self.copy_first:
            return ops.cast(self.momentum, self.kind)
        return ops.where(count == 1, ops.ones_like(count), self.momentum * ops.ones_like(count))

    def solve(self, cov: Any, root: Any) -> Any:
        """Compute the root of `cov` (G, F, F) by the layer's method; `root` is the previous one."""
        size = ops.mean(ops.diagonal(cov, axis1=-2, axis2=-1), -1)[..., None, None] if self.relative_eps else 1.0
        eye = ops.eye(cov.shape[-1], dtype=cov.dtype)
        return isqrt(cov + self.eps * size * eye, self.method, self.n_iter, root)

    def _covariance(self, rows: Any) -> Any:
        """Population covariance (G, F, F) of rows (G, F, n)."""
        n = ops.cast(ops.shape(rows)[-1], self.kind)
        # Subtract the mean first: a difference of large second moments would lose all digits.
        centred = rows - ops.mean(rows, -1, keepdims=True) if self.centre else rows
        return centred @ ops.swapaxes(centred, -2, -1) / n

    # --- the product ---

    def _in_range(self, product: Callable[[Any, Any], Any], x: Any, weight: Any, bias: Any) -> Any:
        """Compute `product(x, weight) + bias` in the layer's compute dtype; bias already has the output's shape.

        In float16, W D and the product before the mean is subtracted may be out of range although the result is not:
        the root brings any scale to about 1. Input and weight are therefore scaled, and the mean is subtracted in
        float32.
        """
        if self.compute_dtype != "float16":
            return product(ops.cast(x, self.compute_dtype), ops.cast(weight, self.compute_dtype)) + ops.cast(
                bias, self.compute_dtype
            )
        variance = ops.max(ops.diagonal(self.running_cov, axis1=-2, axis2=-1))
        most = ops.max(ops.abs(ops.diagonal(self.root, axis1=-2, axis2=-1)))
        most = ops.maximum(most, float(np.finfo("float32").tiny))
        spread = ops.max(ops.abs(self.running_mean)) + ops.sqrt(ops.maximum(variance, 0.0))
        down = 1 / ops.maximum(spread, 1 / most)
        # An upper bound of the product, for inputs up to 1 and the number of terms of one output.
        terms = int(np.prod(weight.shape[:-1]))
        up = ops.maximum(ops.max(ops.abs(weight)) * terms / down / 1024, 1.0)
        down, up = ops.stop_gradient(down), ops.stop_gradient(up)
        y = product(ops.cast(ops.cast(x, self.kind) * down, "float16"), ops.cast(weight / (down * up), "float16"))
        return ops.cast(ops.cast(y, self.kind) * up + bias, "float16")


def thinned(stride: int, places: Any) -> Any:
    """The sampling stride along an axis of `places` positions: small maps are not thinned.

    Too few samples would make the covariance singular.
    """
    if isinstance(places, int):
        return max(1, min(stride, places // 8))
    return ops.maximum(1, ops.minimum(stride, places // 8))


def finite_or(value: Any, otherwise: Any) -> Any:
    """`value` if all its entries are finite, else `otherwise`."""
    return ops.where(ops.all(ops.isfinite(value)), value, otherwise)


def lerp(start: Any, end: Any, weight: Any) -> Any:
    """Linear interpolation: `start` at weight 0, `end` at weight 1."""
    return start + weight * (end - start)
