"""Convolutions on whitened patches in one, two and three dimensions: Network Deconvolution (Ye et al., ICLR 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from pellucid.keras.blocks import Blocks, columns
from pellucid.keras.initializers import BiasHeUniform
from pellucid.keras.options import DEFAULTS
from pellucid.keras.padding import Padded, named
from pellucid.keras.state import Whitening, thinned


class _FastDeconv(Whitening, Padded):
    """A convolution of any rank; a subclass names the plain Keras layer as its second base."""

    bias_initializer: Any

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        *,
        block: int = 16,
        sampling_stride: int = 3,
        blocks: str = "separate",
        **kwargs: Any,
    ) -> None:
        options = {name: kwargs.pop(name, default) for name, default in DEFAULTS.items()}
        plain: Any = super()  # the constructor of the plain layer, which Whitening passes arguments on to
        plain.__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=named(padding),
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            **kwargs,
        )
        self._set(block, sampling_stride, blocks, options)
        self._set_border(padding)

    def build(self, input_shape: Any) -> None:
        channels = input_shape[self._channel_axis]
        if channels is None:
            raise ValueError(
                f"{type(self).__name__} cannot take the input shape {input_shape}: give a known number of channels."
            )
        if isinstance(self.bias_initializer, BiasHeUniform):
            self.bias_initializer = self.bias_initializer.of((*self.kernel_size, channels // self.groups, self.filters))
        super().build(input_shape)
        self.cut = self._cut(channels)
        self._add_state(1 if self._shared else self.cut.matrices, self.cut.features)

    def call(self, inputs: Any, training: bool = False) -> Any:
        mean, root = self._see(inputs) if training and self.trainable else self.at_eval()
        kernel, bias = self.folded(mean, root)
        y = self._in_range(self._convolve, inputs, kernel, self._along_channels(bias))
        return y if self.activation is None else self.activation(y)

    def folded(self, mean: Any = None, root: Any = None) -> tuple[Any, Any]:
        r"""Kernel $W' = W D$ and bias $b' = b - W' \mu$ of the equal plain convolution; by default of evaluation."""
        if mean is None or root is None:
            mean, root = self.at_eval()
        rank, shape = len(self.kernel_size), tuple(self.kernel.shape)
        w = ops.transpose(ops.cast(self.kernel, self.kind), (rank + 1, rank, *range(rank)))  # (O, C / groups, *kernel)
        flat = ops.reshape(w, (self.filters, -1))
        if self._shared:
            rows = ops.swapaxes(ops.reshape(flat, (self.filters, self.cut.features, self.cut.count)), 1, 2) @ root[0]
            made, shift = ops.swapaxes(rows, 1, 2), ops.sum(ops.matmul(rows, mean[0]), 1)
        else:
            made, shift = self.cut.times(flat, mean, root)
        made = ops.transpose(ops.reshape(made, (shape[-1], shape[-2], *shape[:-2])), (*range(2, rank + 2), 1, 0))
        return made, -shift if self.bias is None else ops.cast(self.bias, self.kind) - shift

    @property
    def _shared(self) -> bool:
        """Whether all blocks share one matrix, as published."""
        return self.blocks == "pooled" and self.groups == 1

    def _cut(self, channels: int) -> Blocks:
        positions = math.prod(self.kernel_size)
        if self._shared:  # a block that does not divide the channels is replaced by their greatest common divisor
            size = min(self.block, channels)
            size = size if channels % size == 0 else math.gcd(size, channels)
            return Blocks(channels, 1, channels // size, size, positions)
        block = channels if self.blocks == "pooled" else self.block  # published: one block per convolution group
        return Blocks.cut(channels, self.groups, block, positions)

    def _see(self, x: Any) -> tuple[Any, Any]:
        """The mean and root of the patches of x in a training step, which update the statistics."""
        last, kernel, dilation = self.data_format == "channels_last", self.kernel_size, self.dilation_rate
        channels, x = self.cut.channels, ops.cast(x, self.kind)
        if self.blocks == "pooled":
            rows = self._published_rows(x)
            return self._take_in(lambda: ops.mean(rows, -1), lambda: rows)

        def mean() -> Any:
            # Averaging and cutting patches commute, so the patches of the mean image give the mean of all patches.
            image = self._padded(ops.mean(x, 0, keepdims=True))
            seen = ops.mean(columns(image, channels, kernel, self.strides, dilation, last), -1, keepdims=True)
            return self.cut.fold(seen)[..., 0]

        def rows_of() -> Any:
            seen = self._padded(x)
            size = ops.shape(seen)
            sampled = [
                stride * thinned(self.sampling_stride, (size[axis] - span) // stride + 1)
                for axis, span, stride in zip(self._axes, self._spans, self.strides, strict=True)
            ]
            return self.cut.fold(columns(seen, channels, kernel, sampled, dilation, last))

        return self._take_in(mean, rows_of)

    def _published_rows(self, x: Any) -> Any:
        """Rows (G, F, n) as published; where pooled, column j = cK + p is feature j // G of block j mod G."""
        last, step = self.data_format == "channels_last", [s * self.sampling_stride for s in self.strides]
        if math.prod(self.kernel_size) == 1:
            # A 1x1 convolution samples every s^2-th pixel of all images in raster order, without padding.
            pixels = ops.reshape(x if last else ops.moveaxis(x, 1, -1), (-1, self.cut.channels))
            seen = ops.expand_dims(ops.transpose(pixels[:: math.prod(step)]), 1)
        else:
            seen = columns(self._padded(x), self.cut.channels, self.kernel_size, step, self.dilation_rate, last)
        return ops.reshape(seen, (1, self.cut.features, -1)) if self._shared else self.cut.fold(seen)


@keras.saving.register_keras_serializable(package="pellucid")
class FastDeconv1D(_FastDeconv, keras.layers.Conv1D):
    """`keras.layers.Conv1D` on whitened windows of a signal; arguments as in `FastDeconv2D`, or padding "causal"."""


@keras.saving.register_keras_serializable(package="pellucid")
class FastDeconv2D(_FastDeconv, keras.layers.Conv2D):
    r"""`keras.layers.Conv2D` on whitened patches: $y = W D (x - \mu) + b$ (Ye et al., ICLR 2020, algorithm 1).

    The first arguments are those of `keras.layers.Conv2D`; `padding` may also be a number of zeros at both ends of
    every axis, or one number per axis, as in torch. By keyword:

        block: maximum number of channels that are whitened together, default 16. Channels are split into the fewest
            blocks of equal size, which never cross convolution groups.
        sampling_stride: sample the covariance at every `sampling_stride`-th position, but keep at least eight positions
            along an axis where there are as many; default 3. The mean is always taken over all positions.
        blocks: "separate" (default) gives each block of consecutive channels its own mean and covariance; "pooled" is
            the published pooling of all blocks into one matrix, with its interleaved order of features and its
            sampling.
        options: see `Whitening`.

    Before the first training step, evaluation is the plain convolution.

    Raises ValueError for values out of range.
    """


@keras.saving.register_keras_serializable(package="pellucid")
class FastDeconv3D(_FastDeconv, keras.layers.Conv3D):
    """`keras.layers.Conv3D` on whitened patches of a volume; arguments as in `FastDeconv2D`."""
