"""What the convolutions of this folder share: zeros as torch puts them, geometry, and whole states in files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class Padded(keras.layers.Layer):
    """A convolution of Keras whose `padding` may also be a number of zeros at both ends of every axis, or one an axis.

    A subclass names its plain twin as the base after this one, and hands `named(padding)` on to it.
    """

    border: tuple[int, ...] | None = None  # zeros at both ends of each axis, where they were given as numbers

    def _set_border(self, padding: str | int | Sequence[int]) -> None:
        self.border = None
        if not isinstance(padding, str):
            rank = len(self.kernel_size)
            widths = (padding,) * rank if isinstance(padding, int) else tuple(padding)
            if len(widths) != rank or not all(isinstance(p, int) and p >= 0 for p in widths):
                raise ValueError(f"padding={padding!r} must be a name, or a number of zeros for each of {rank} axes.")
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
        # Weights are worked on in full precision, and only what enters the convolution is rounded.
        return super().add_weight(*args, **{"autocast": False, **kwargs})

    def save_own_variables(self, store: Any) -> None:
        keras.layers.Layer.save_own_variables(self, store)  # a convolution would store kernel and bias alone

    def load_own_variables(self, store: Any) -> None:
        keras.layers.Layer.load_own_variables(self, store)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: fold the layer first, and adapt the plain convolution that it is."""
        raise ValueError(f"{type(self).__name__} takes no LoRA: fold the model, and adapt its plain convolutions.")

    @property
    def kind(self) -> str:
        """The type of statistics and of what weights are worked on in."""
        return "float64" if self.variable_dtype == "float64" else "float32"

    @property
    def _channel_axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1

    @property
    def _axes(self) -> tuple[int, ...]:
        """The axes of the image."""
        first = 1 if self.data_format == "channels_last" else 2
        return tuple(range(first, first + len(self.kernel_size)))

    @property
    def _spans(self) -> list[int]:
        return [d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation_rate, strict=True)]

    def _widths(self, x: Any) -> list[tuple[Any, Any]]:
        """The zeros that the patches of x reach into, before and after, for every axis of x."""
        size = ops.shape(x)
        widths: list[tuple[Any, Any]] = [(0, 0)] * len(size)
        for place, (axis, span, stride) in enumerate(zip(self._axes, self._spans, self.strides, strict=True)):
            if self.border is not None:
                widths[axis] = (self.border[place], self.border[place])
            elif self.padding == "causal":
                widths[axis] = (span - 1, 0)
            elif self.padding == "same":
                # With stride 1 the size is out of it, and need not be known.
                total = span - 1 if stride == 1 else (-(-size[axis] // stride) - 1) * stride + span - size[axis]
                total = max(total, 0) if isinstance(total, int) else ops.maximum(total, 0)
                widths[axis] = (total // 2, total - total // 2)
        return widths

    def _padded(self, x: Any) -> Any:
        """x with those zeros."""
        widths = self._widths(x)
        return x if all(isinstance(n, int) and n == 0 for pair in widths for n in pair) else ops.pad(x, widths)

    def _convolve(self, x: Any, kernel: Any) -> Any:
        """The plain convolution of padded or unpadded x as the layer's arguments say."""
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
        """A vector (filters,) in the shape of an output."""
        shape = [1] * (len(self.kernel_size) + 2)
        shape[self._channel_axis] = self.filters
        return ops.reshape(bias, shape)


def named(padding: Any) -> str:
    """What the plain twin is told of `padding`."""
    return padding if isinstance(padding, str) else "valid"
