"""What all convolutions here share: padding with a number of zeros as in torch, geometry, and complete saved state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class Padded(keras.layers.Layer):
    """A Keras convolution whose `padding` may also be a number of zeros at both ends of every axis, or one per axis.

    A subclass names the plain Keras layer as its next base, and passes `named(padding)` on to it.
    """

    border: tuple[int, ...] | None = None  # zeros at both ends of each axis, if given as numbers

    def _set_border(self, padding: str | int | Sequence[int]) -> None:
        self.border = None
        if not isinstance(padding, str):
            rank = len(self.kernel_size)
            widths = (padding,) * rank if isinstance(padding, int) else tuple(padding)
            if len(widths) != rank or not all(isinstance(p, int) and p >= 0 for p in widths):
                raise ValueError(
                    f"padding={padding!r} must be a name such as same, or a number of zeros for each of {rank} axes."
                )
            self.border = widths

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return config if self.border is None else {**config, "padding": self.border}

    def compute_output_shape(self, input_shape: Any) -> Any:
        if self.border is not None:
            padded = list(input_shape)
            for axis, p in zip(self._axes, self.border, strict=True):
                padded[axis] = None if padded[axis] is None else padded[axis] + 2 * p
            input_shape = tuple(padded)
        return super().compute_output_shape(input_shape)

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        # Arithmetic on weights is in full precision; only what enters the convolution is rounded.
        return super().add_weight(*args, **{"autocast": False, **kwargs})

    def save_own_variables(self, store: Any) -> None:
        keras.layers.Layer.save_own_variables(self, store)  # a convolution would store only kernel and bias

    def load_own_variables(self, store: Any) -> None:
        keras.layers.Layer.load_own_variables(self, store)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError: fold the model first, and adapt its plain convolutions."""
        raise ValueError(f"{type(self).__name__} takes no LoRA: fold the model, and adapt its plain convolutions.")

    @property
    def kind(self) -> str:
        """The dtype of statistics and of arithmetic on weights."""
        return "float64" if self.variable_dtype == "float64" else "float32"

    @property
    def _channel_axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1

    @property
    def _axes(self) -> tuple[int, ...]:
        """The spatial axes of the input."""
        first = 1 if self.data_format == "channels_last" else 2
        return tuple(range(first, first + len(self.kernel_size)))

    @property
    def _spans(self) -> list[int]:
        return [d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation_rate, strict=True)]

    def _widths(self, x: Any) -> list[tuple[Any, Any]]:
        """The padding of x with zeros, (before, after) for every axis."""
        size = ops.shape(x)
        widths: list[tuple[Any, Any]] = [(0, 0)] * len(size)
        for place, (axis, span, stride) in enumerate(zip(self._axes, self._spans, self.strides, strict=True)):
            if self.border is not None:
                widths[axis] = (self.border[place], self.border[place])
            elif self.padding == "causal":
                widths[axis] = (span - 1, 0)
            elif self.padding == "same":
                # With stride 1 the padding does not depend on the size, which may be unknown.
                total = span - 1 if stride == 1 else (-(-size[axis] // stride) - 1) * stride + span - size[axis]
                total = max(total, 0) if isinstance(total, int) else ops.maximum(total, 0)
                widths[axis] = (total // 2, total - total // 2)
        return widths

    def _padded(self, x: Any) -> Any:
        """x, padded by `_widths`."""
        widths = self._widths(x)
        return x if all(isinstance(n, int) and n == 0 for pair in widths for n in pair) else ops.pad(x, widths)

    def _convolve(self, x: Any, kernel: Any) -> Any:
        """The plain convolution of x with `kernel`, padded as the layer's arguments require."""
        ahead = self.border is not None or self.padding == "causal"
        return ops.conv(
            self._padded(x) if ahead else x,
            kernel,
            strides=list(self.strides),
            padding="valid" if ahead else self.padding,
            dilation_rate=list(self.dilation_rate),
            data_format=self.data_format,
        )

    def _along_channels(self, bias: Any) -> Any:
        """A vector (filters,), reshaped to broadcast over an output."""
        shape = [1] * (len(self.kernel_size) + 2)
        shape[self._channel_axis] = self.filters
        return ops.reshape(bias, shape)


def named(padding: Any) -> str:
    """The `padding` argument for the plain Keras layer."""
    return padding if isinstance(padding, str) else "valid"
