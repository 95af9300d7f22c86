"""VGG and ResNet-20 for small images, plain or with whitening layers.

Layers have the names of `pellucid.build`, with underscores for dots: `features.0` is `features_0`.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from pellucid.keras.channel import ChannelDeconv
from pellucid.keras.convolution import FastDeconv2D
from pellucid.keras.initializers import BiasHeUniform
from pellucid.keras.options import DEFAULTS, HEAD, PUBLISHED

_WIDTHS = (64, 128, 256, 512, 512)
_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class Plain:
    """The parts of a plain network: 3x3 convolutions padded by 1, batch norm after each, and a dense head."""

    def __init__(self, data_format: str) -> None:
        self.data_format = data_format

    def conv(self, x: Any, name: str, filters: int, strides: int = 1, *, use_bias: bool, first: bool = False) -> Any:
        """A convolution initialised by He et al. 2015 (section 2.2, the condition on the backward pass)."""
        if strides > 1:  # "same" would pad an even side only at its end
            x = keras.layers.ZeroPadding2D(1, data_format=self.data_format)(x)
        padding = "valid" if strides > 1 else "same"
        return keras.layers.Conv2D(filters, 3, strides, padding, use_bias=use_bias, name=name, **self._start())(x)

    def norm(self, x: Any, name: str) -> Any:
        """Batch norm, with the momentum and epsilon of torch."""
        axis = -1 if self.data_format == "channels_last" else 1
        return keras.layers.BatchNormalization(axis, momentum=0.9, epsilon=1e-5, name=name)(x)

    def head(self, x: Any, name: str, num_classes: int) -> Any:
        """The logits of pooled features, in float32."""
        features = x.shape[-1]
        start = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        bias = BiasHeUniform(features)
        return keras.layers.Dense(
            num_classes, kernel_initializer=start, bias_initializer=bias, name=name, dtype="float32"
        )(x)

    def _start(self) -> dict[str, Any]:
        start = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        return {"kernel_initializer": start, "data_format": self.data_format}


class Deconv(Plain):
    """The parts of a whitening network: no batch norm, every convolution and the head on whitened input.

    The same as `pellucid.build(layers="deconv")`. Options:

        block, block_fc: maximum number of channels that a convolution, and of features that the head, whitens together.
        first_block, first_n_iter: block and n_iter of the first convolution.
        head: "linear" whitens the features before the dense layer with a new root at every step (`HEAD`), "channel"
            with the options of the convolutions, "plain" not at all.
        published: use the paper's published arithmetic for every option that has its default value.
        others: as in `FastDeconv2D`.
    """

    def __init__(
        self,
        data_format: str,
        *,
        block: int = 16,
        block_fc: int = 128,
        head: str = "linear",
        first_block: int | None = None,
        first_n_iter: int = 15,
        published: bool = False,
        sampling_stride: int = 3,
        blocks: str = "separate",
        **options: Any,
    ) -> None:
        super().__init__(data_format)
        if head not in ("linear", "channel", "plain"):
            raise ValueError(f"head={head!r} is unknown: choose linear, channel or plain.")
        unknown = sorted(set(options) - set(DEFAULTS))
        if unknown:
            raise ValueError(f"The layers 'deconv' have no option {unknown[0]!r}: choose from {', '.join(DEFAULTS)}.")
        options = {**DEFAULTS, **options}
        if published:
            options |= {name: value for name, value in PUBLISHED.items() if options[name] == DEFAULTS[name]}
            blocks = "pooled"
            block = FastDeconv2D.published_block if block == 16 else block
            block_fc = 512 if block_fc == 128 else block_fc
        own_root = head == "linear" and blocks == "separate"
        self.kind, self.block_fc = head, block_fc
        self.head_options = {**options, **HEAD} if own_root else options
        self.options = {**options, "block": block, "blocks": blocks, "sampling_stride": sampling_stride}
        self.first_options = {**self.options, "block": first_block or block, "n_iter": first_n_iter}

    def conv(self, x: Any, name: str, filters: int, strides: int = 1, *, use_bias: bool, first: bool = False) -> Any:
        options = self.first_options if first else self.options
        return FastDeconv2D(filters, 3, strides, padding=1, name=name, **options, **self._start())(x)

    def norm(self, x: Any, name: str) -> Any:
        return x

    def head(self, x: Any, name: str, num_classes: int) -> Any:
        if self.kind != "plain":
            x = ChannelDeconv(self.block_fc, name=f"{name}_whiten", **self.head_options)(x)
        return super().head(x, name, num_classes)


LAYERS: dict[str, type[Plain]] = {"plain": Plain, "deconv": Deconv}


@keras.saving.register_keras_serializable(package="pellucid")
class PadShortcut(keras.layers.Layer):
    """Shortcut of option A (He et al. 2016, section 4.2): every second pixel, zero-padded to `filters` channels."""

    def __init__(self, filters: int, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters, self.data_format = filters, data_format or keras.config.image_data_format()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "data_format": self.data_format}

    def compute_output_shape(self, input_shape: Any) -> Any:
        half = [None if n is None else -(-n // 2) for n in input_shape]
        if self.data_format == "channels_last":
            return (input_shape[0], half[1], half[2], self.filters)
        return (input_shape[0], self.filters, half[2], half[3])

    def call(self, inputs: Any) -> Any:
        last = self.data_format == "channels_last"
        x = inputs[:, ::2, ::2] if last else inputs[:, :, ::2, ::2]
        new = self.filters - x.shape[-1 if last else 1]
        widths = [(0, 0)] * 4
        widths[-1 if last else 1] = (new // 2, new - new // 2)
        return ops.pad(x, widths)


def VGG(
    depth: int,
    num_classes: int = 10,
    input_shape: tuple[int | None, int | None, int] = (32, 32, 3),
    layers: str = "plain",
    **options: Any,
) -> keras.Model:
    """Build VGG for small images (Simonyan & Zisserman 2015), with global average pooling and one dense layer.

    Args:
        depth: 11, 13, 16 or 19 layers.
        num_classes: number of logits, which the model returns.
        input_shape: (H, W, C), or (C, H, W) if Keras is set to channels_first; H and W may be None. A pooling layer
            that would leave less than one pixel is omitted.
        layers: "plain" (batch norm after every convolution) or "deconv".
        options: options of "deconv", see `Deconv`.

    Raises ValueError for any other depth, layers or options.
    """
    if depth not in _DEPTHS:
        raise ValueError(f"There is no VGG of {depth} layers: choose 11, 13, 16 or 19.")
    parts, smallest = _parts(layers, options, input_shape)
    x = inputs = keras.Input(input_shape)
    place = 0
    for width, count in zip(_WIDTHS, _DEPTHS[depth], strict=True):
        for _ in range(count):
            x = parts.conv(x, f"features_{place}", width, use_bias=True, first=not place)
            x = parts.norm(x, f"features_{place + 1}")
            x = keras.layers.ReLU(name=f"features_{place + 2}")(x)
            place += 3
        if smallest > 1:
            x = keras.layers.MaxPooling2D(data_format=parts.data_format, name=f"features_{place}")(x)
        smallest, place = smallest / 2, place + 1
    x = keras.layers.GlobalAveragePooling2D(parts.data_format)(x)
    return keras.Model(inputs, parts.head(x, "classifier", num_classes), name=f"vgg{depth}")


def ResNet20(
    num_classes: int = 10,
    input_shape: tuple[int | None, int | None, int] = (32, 32, 3),
    layers: str = "plain",
    **options: Any,
) -> keras.Model:
    """Build ResNet-20 for CIFAR (He et al. 2016, section 4.2), with option-A shortcuts; arguments as in `VGG`."""
    parts, _ = _parts(layers, options, input_shape)
    x = inputs = keras.Input(input_shape)
    x = parts.conv(x, "conv1", 16, use_bias=False, first=True)
    x = keras.layers.ReLU()(parts.norm(x, "bn1"))
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            name, strides = f"layer{stage + 1}_{block}", 2 if stage and not block else 1
            shortcut = x if strides == 1 else PadShortcut(width, parts.data_format)(x)
            y = parts.conv(x, f"{name}_conv1", width, strides, use_bias=False)
            y = keras.layers.ReLU()(parts.norm(y, f"{name}_bn1"))
            y = parts.norm(parts.conv(y, f"{name}_conv2", width, use_bias=False), f"{name}_bn2")
            x = keras.layers.ReLU()(keras.layers.Add()([y, shortcut]))
    x = keras.layers.GlobalAveragePooling2D(parts.data_format)(x)
    return keras.Model(inputs, parts.head(x, "fc", num_classes), name="resnet20")


def _parts(layers: str, options: dict[str, Any], input_shape: tuple[int | None, ...]) -> tuple[Plain, float]:
    """The parts of the network, and the shorter side of the image."""
    if "+" in layers:
        raise ValueError(f"Keras has no combinations of layers such as {layers!r}: choose one of {', '.join(LAYERS)}.")
    if layers not in LAYERS:
        raise ValueError(f"There are no layers {layers!r}: choose one of {', '.join(LAYERS)}.")
    if options and layers == "plain":
        raise ValueError(f"The layers 'plain' have no option {next(iter(options))!r}: choose layers='deconv'.")
    data_format = keras.config.image_data_format()
    if len(input_shape) != 3 or input_shape[2 if data_format == "channels_last" else 0] is None:
        raise ValueError(
            f"input_shape={input_shape} must have 3 axes, as of one image, and a known number of channels."
        )
    sides = input_shape[:2] if data_format == "channels_last" else input_shape[1:]
    return LAYERS[layers](data_format, **options), min(math.inf if n is None else n for n in sides)
