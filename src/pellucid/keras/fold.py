"""Fold a model into plain Keras layers that compute the same in evaluation."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from pellucid.keras.channel import ChannelDeconv
from pellucid.keras.convolution import FastDeconv1D, FastDeconv2D, FastDeconv3D
from pellucid.keras.randomness import unchanged
from pellucid.keras.subnet import SubnetConv2D

_CONVS: dict[Any, Any] = {
    FastDeconv1D: keras.layers.Conv1D,
    FastDeconv2D: keras.layers.Conv2D,
    FastDeconv3D: keras.layers.Conv3D,
    SubnetConv2D: keras.layers.Conv2D,
}
_FOLDED: tuple[Any, ...] = (*_CONVS, ChannelDeconv)
_PADS = (keras.layers.ZeroPadding1D, keras.layers.ZeroPadding2D, keras.layers.ZeroPadding3D)
_ONES = {3: keras.layers.Conv1D, 4: keras.layers.Conv2D, 5: keras.layers.Conv3D}


def fold(model: keras.Model, example: Any = None) -> keras.Model:
    r"""Copy `model` with plain convolutions and dense layers instead of whitening and masks; outputs are compared.

    $W' = W D$ and $b' = b - W D \mu$; padding is part of a patch, so the border is exact too. Where `padding` is a
    number of zeros, a `ZeroPadding` layer is put before the convolution. `model` itself and Python's random state are
    unchanged.

    Args:
        model: a built Sequential or functional model. Layers that are not pellucid's are copied with their weights.
        example: inputs on which both models are compared; default four random ones, if the model knows their size.

    Raises:
        ValueError: the model is not built, cannot be copied layer by layer, or the outputs of the copy differ.
    """
    if not model.built:
        raise ValueError(f"The model {model.name!r} is not built yet: call it on an input, or give it a keras.Input.")
    pairs: list[tuple[Any, Any]] = []

    def copied(layer: Any) -> Any:
        pairs.append((layer, _plain(layer)))
        return pairs[-1][1]

    with unchanged():  # new layers draw weights, which are then replaced
        made = keras.models.clone_model(model, clone_function=copied, recursive=True)
    for layer, new in pairs:
        if isinstance(layer, _FOLDED):
            weight, bias = (ops.convert_to_numpy(value) for value in layer.folded())
            holder = new.layers[-1] if isinstance(new, keras.Sequential) else new
            if isinstance(layer, ChannelDeconv):
                weight = weight.T.reshape(holder.kernel.shape)
            holder.set_weights([weight, bias])
        else:
            new.set_weights(layer.get_weights())
    _compare(model, made, example)
    return made


def _plain(layer: Any) -> Any:
    """The plain Keras layer for the folded weights of `layer`; a copy of a layer that is not pellucid's."""
    config = layer.get_config()
    kind = next((kind for kind in _CONVS if isinstance(layer, kind)), None)
    common = {name: config[name] for name in ("name", "trainable", "dtype")}
    if isinstance(layer, ChannelDeconv):
        axes = len(layer.get_build_config()["input_shape"])
        if axes == 2 or layer.data_format == "channels_last":
            return keras.layers.Dense(layer.channels, **common)
        return _ONES[axes](layer.channels, 1, data_format=layer.data_format, **common)
    if kind is None:
        return type(layer).from_config(config)
    known = _CONVS[kind](1, 1).get_config()
    rest = {**{name: value for name, value in config.items() if name in known}, "use_bias": True}
    # Without initialisers of pellucid, the file opens where pellucid is not installed.
    rest |= {"kernel_initializer": "zeros", "bias_initializer": "zeros"}
    if layer.border is None:
        return _CONVS[kind].from_config(rest)
    border = layer.border[0] if len(layer.border) == 1 else layer.border
    pad = _PADS[len(layer.border) - 1](border, data_format=layer.data_format, dtype=config["dtype"])
    conv = _CONVS[kind].from_config({**rest, "padding": "valid", "name": f"{layer.name}_conv"})
    return keras.Sequential([pad, conv], name=layer.name)


def _compare(model: keras.Model, made: keras.Model, example: Any) -> None:
    if example is None:
        shape = model.input_shape
        if not isinstance(shape, tuple) or None in shape[1:]:
            return
        example = np.random.default_rng(0).standard_normal((4, *shape[1:]), "float32")
    expected, found = (ops.convert_to_numpy(net(example, training=False)).astype("float64") for net in (model, made))
    scale, gap = np.abs(expected).max(), np.abs(expected - found).max()
    # In half precision every layer rounds its output.
    tolerance = {"float32": 1e-4, "float64": 1e-4}.get(model.compute_dtype, 0.1)
    if not gap <= tolerance * max(scale, 1e-30):
        raise ValueError(
            f"The outputs of the folded model differ by {gap:.2g} and reach {scale:.2g}: leave this model unfolded."
        )
