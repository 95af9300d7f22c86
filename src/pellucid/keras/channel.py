"""A layer that whitens the channels of its input."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from pellucid.keras.blocks import Blocks
from pellucid.keras.options import DEFAULTS
from pellucid.keras.state import Whitening, finite_or, lerp, thinned


@keras.saving.register_keras_serializable(package="pellucid")
class ChannelDeconv(Whitening):
    r"""Whiten the channels of (N, C), (N, L, C), (N, H, W, C) or (N, D, H, W, C): $y = D (x - \mu)$ at every pixel.

    Before a `Dense` layer it is the whitening head: `ChannelDeconv(128, **HEAD)`. Arguments:

        block: maximum number of channels that are whitened together, default 64.
        sampling_stride: as in `FastDeconv2D`.
        blocks: "separate" (default) splits the channels into the fewest blocks of nearly equal size. "pooled" is the
            published arithmetic: row b of one matrix pools C // B consecutive channels, its covariance is not centred,
            and the channels that remain share one mean and one variance.
        data_format: "channels_last" or "channels_first"; default that of Keras.
        options: see `Whitening`.

    Raises ValueError for values out of range.
    """

    def __init__(
        self,
        block: int = 64,
        *,
        sampling_stride: int = 3,
        blocks: str = "separate",
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        options = {name: kwargs.pop(name, default) for name, default in DEFAULTS.items()}
        super().__init__(**kwargs)
        self._set(block, sampling_stride, blocks, options)
        self.data_format = data_format or keras.config.image_data_format()
        if self.data_format not in ("channels_last", "channels_first"):
            raise ValueError(f"data_format={self.data_format!r} is unknown: choose channels_last or channels_first.")
        if blocks == "pooled":
            self.centre, self.copy_first = False, True

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "data_format": self.data_format}

    def build(self, input_shape: Any) -> None:
        if not 2 <= len(input_shape) <= 5 or input_shape[self._axis(len(input_shape))] is None:
            raise ValueError(
                f"ChannelDeconv cannot take inputs of shape {input_shape}: give 2 to 5 axes and a number of channels."
            )
        self.channels = input_shape[self._axis(len(input_shape))]
        if self.blocks == "separate":
            self.cut = Blocks.cut(self.channels, 1, self.block, 1)
            self._add_state(self.cut.matrices, self.cut.features)
            return
        size = min(self.block, self.channels)
        self.cut = Blocks(self.channels // size * size, 1, self.channels // size, size, 1)
        self._add_state(1, size)
        self.rest_mean = self._statistic("rest_mean", (), "zeros")
        self.rest_var = self._statistic("rest_var", (), "ones")

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def call(self, inputs: Any, training: bool = False) -> Any:
        rank = len(inputs.shape)
        axis = self._axis(rank)
        x = ops.moveaxis(ops.cast(inputs, self.kind), axis, 0)  # (C, N, *size)
        step = training and self.trainable
        if self.blocks == "pooled":
            y = self._published(x, step)
        else:
            mean, root = self._see(x) if step else self.at_eval()
            columns = self.cut.fold(ops.reshape(x, (self.channels, 1, -1)))
            y = self.cut.unfold(root @ (columns - ops.expand_dims(mean, -1)))
        y = ops.moveaxis(ops.reshape(y, ops.shape(x)), 0, axis)
        return ops.cast(y, self.compute_dtype)

    def folded(self) -> tuple[Any, Any]:
        r"""What evaluation computes: $D$ as a matrix (C, C), $y_i = \sum_j D_{ij} x_j$, and the bias $-D \mu$ (C,)."""
        mean, root = self.at_eval()
        eye = ops.eye(self.channels, dtype=self.kind)
        if self.blocks == "separate":
            weight = self.cut.unfold(root @ self.cut.fold(ops.expand_dims(eye, 1)))[:, 0]
            shift = self.cut.unfold(ops.expand_dims(mean, -1))[:, 0, 0]
        else:
            each, c = self.cut.count, self.cut.channels  # channels per row, and of all rows
            weight = ops.pad(ops.kron(root[0], eye[:each, :each]), [(0, self.channels - c)] * 2)
            scale = 1 / ops.sqrt(self.rest_var + self.eps)
            weight = weight + eye * scale * ops.cast(ops.expand_dims(ops.arange(self.channels) >= c, 0), self.kind)
            rest = ops.broadcast_to(ops.convert_to_tensor(self.rest_mean), (self.channels - c,))
            shift = ops.concatenate([ops.repeat(mean[0], each), rest])
        return weight, -ops.matmul(weight, shift)

    def _axis(self, rank: int) -> int:
        return 1 if self.data_format == "channels_first" else rank - 1

    def _see(self, x: Any) -> tuple[Any, Any]:
        def mean() -> Any:
            return self.cut.fold(ops.mean(ops.reshape(x, (self.channels, 1, -1)), -1, keepdims=True))[..., 0]

        def rows() -> Any:
            thin = [slice(None, None, thinned(self.sampling_stride, n)) for n in ops.shape(x)[2:]]
            index = (slice(None), slice(None), *thin)
            return self.cut.fold(ops.reshape(x[index], (self.channels, 1, -1)))

        return self._take_in(mean, rows)

    def _published(self, x: Any, step: bool) -> Any:
        c, size = self.cut.channels, x.shape[2:]
        kept, rest = x[:c], x[c:]
        rows = ops.reshape(kept, (1, self.cut.size, -1))
        sparse = self.sampling_stride > 1 and len(size) > 0 and min(size) >= self.sampling_stride
        every = self.sampling_stride**2 if sparse else 1
        if step:
            seen = rows[..., ::every]
            mean, root = self._take_in(lambda: ops.mean(seen, -1), lambda: seen)
        else:
            mean, root = self.at_eval()
        y = ops.reshape(root @ (rows - ops.expand_dims(mean, -1)), (c, -1))
        if c == self.channels:
            return y
        # The remaining channels of an image are one row, of which one in `every` values is used.
        flat = ops.reshape(ops.moveaxis(rest, 0, 1), (ops.shape(x)[1], -1))
        middle, var = self._rest(flat[:, ::every]) if step else (self.rest_mean, self.rest_var)
        rest = (ops.reshape(rest, (self.channels - c, -1)) - middle) / ops.sqrt(var + self.eps)
        return ops.concatenate([y, rest], 0)

    def _rest(self, x: Any) -> tuple[Any, Any]:
        """Mean and variance of the remaining channels in a training step, which update the running ones."""
        mean = ops.mean(x)
        n = ops.cast(ops.size(x), self.kind)
        now = (mean, ops.sum(ops.square(x - mean)) / (n - 1))
        live = ops.convert_to_tensor(True) if self.freeze_after is None else self.steps <= self.freeze_after
        weight, held = self._weight(ops.convert_to_tensor(self.updates)), []
        for running, value in zip((self.rest_mean, self.rest_var), now, strict=True):
            old = ops.convert_to_tensor(running)
            held.append(ops.where(live, value, old))
            running.assign(ops.where(live, lerp(old, finite_or(ops.stop_gradient(value), old), weight), old))
        return held[0], held[1]
