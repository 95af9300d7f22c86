"""Build the Keras layer or model that has the arguments of one of torch's; `convert` then sets its weights.

A layer of torch is recognised by the names of its classes and read by its attributes: torch itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from pellucid.keras.channel import ChannelDeconv
from pellucid.keras.convolution import FastDeconv1D, FastDeconv2D, FastDeconv3D
from pellucid.keras.models import VGG, ResNet20
from pellucid.keras.options import DEFAULTS
from pellucid.keras.padding import Padded
from pellucid.keras.sparse import CSC2D
from pellucid.keras.state import Whitening
from pellucid.keras.subnet import SubnetConv2D

_CONVS = {
    "CSC2d": CSC2D,
    "FastDeconv1d": FastDeconv1D,
    "FastDeconv2d": FastDeconv2D,
    "FastDeconv3d": FastDeconv3D,
    "Conv1d": keras.layers.Conv1D,
    "Conv2d": keras.layers.Conv2D,
    "Conv3d": keras.layers.Conv3D,
}
_PADS = (keras.layers.ZeroPadding1D, keras.layers.ZeroPadding2D, keras.layers.ZeroPadding3D)


def twin(source: Any) -> Any:
    """Build a Keras layer or model with the arguments of `source`.

    Raises:
        ValueError: there is none.
    """
    # What `pellucid.facts` reads; importing that here would import torch, which other backends can do without.
    description = getattr(getattr(source, "__dict__", {}).get("_pellucid_facts"), "description", None)
    if isinstance(description, Mapping):
        return _network(description)
    kinds = {kind.__name__ for kind in type(source).__mro__}
    name = next((name for name in _CONVS if name in kinds), None)
    if name is not None:
        return _convolution(source, _CONVS[name])
    if "ChannelDeconv" in kinds:
        layer = ChannelDeconv(**_options(source))
        layer.build((None, source.num_channels))
        return layer
    if "Linear" in kinds:
        dense = keras.layers.Dense(source.out_features, use_bias=source.bias is not None, name="linear")
        if "FastDeconvLinear" not in kinds:
            dense.build((None, source.in_features))
            return dense
        if source.pooled and source.blocks.count > 1:
            raise ValueError("A FastDeconvLinear that pools several blocks has no twin in Keras: use separate blocks.")
        whiten = ChannelDeconv(name="whiten", **{**_options(source), "blocks": "separate"})
        return keras.Sequential([keras.Input((source.in_features,)), whiten, dense])
    raise ValueError(f"{type(source).__name__} has no twin in Keras: give a target to load its state dict into.")


def _convolution(source: Any, kind: Any) -> Any:
    if source.padding_mode != "zeros":
        raise ValueError(
            f"A convolution with padding_mode={source.padding_mode!r} has no twin in Keras: use padding_mode='zeros'."
        )
    options: dict[str, Any] = {"use_bias": source.bias is not None}
    mask = getattr(getattr(source, "parametrizations", None), "weight", [None])[0]
    if kind is CSC2D:
        if source.published or source.schedule not in ("published", "long") or source.differentiate != "unrolled":
            raise ValueError(
                "This CSC2d has no twin in Keras: use schedule='published' or 'long', differentiate='unrolled' and not "
                "the published arithmetic."
            )
        names = ("lam", "mu", "n_steps", "nonnegative", "n_dict", "square_noise", "schedule")
        options = {name: getattr(source, name) for name in names}
    elif mask is not None:
        masked = getattr(mask, "options", None)
        plain = masked is not None and not (masked.binary or masked.anneal or masked.ranking != "layer")
        if kind is not keras.layers.Conv2D or not plain:
            raise ValueError(
                "This parametrized layer has no twin in Keras: give a Conv2d that pellucid.subnet has masked, without "
                "binary weights, annealing or global ranking."
            )
        kind, options = SubnetConv2D, {**options, "keep": mask.options.keep}
    elif issubclass(kind, Whitening):
        options |= _options(source)
    rank, own = len(source.kernel_size), issubclass(kind, Padded)
    padding = source.padding if isinstance(source.padding, str) or any(source.padding) else "valid"
    explicit = not own and not isinstance(padding, str)
    layer = kind(
        source.out_channels,
        source.kernel_size,
        strides=source.stride,
        padding="valid" if explicit else padding,
        dilation_rate=source.dilation,
        groups=source.groups,
        **options,
        **({"name": "linear"} if explicit else {}),
    )
    sizes: list[int | None] = [None] * rank
    last = layer.data_format == "channels_last"
    shape = (*sizes, source.in_channels) if last else (source.in_channels, *sizes)
    if not explicit:
        layer.build((None, *shape))
        return layer
    pad = _PADS[rank - 1](padding if rank > 1 else padding[0], data_format=layer.data_format)
    return keras.Sequential([keras.Input(shape), pad, layer])


def _options(source: Any) -> dict[str, Any]:
    """The whitening options of a torch layer."""
    whiten = source.whiten
    options = {name: getattr(whiten, "relative" if name == "relative_eps" else name) for name in DEFAULTS}
    pooled = source.pooled or getattr(source, "published", False)
    options |= {"block": source.blocks.size, "blocks": "pooled" if pooled else "separate"}
    return {**options, "sampling_stride": getattr(source, "sampling_stride", 1)}


def _network(description: Mapping[str, Any]) -> keras.Model:
    name, size = description["model"], description["image_size"]
    if description["form"] != "small" or not (name == "resnet20" or name in ("vgg11", "vgg13", "vgg16", "vgg19")):
        raise ValueError(
            f"There is no {name} in its {description['form']} form in Keras: give your own model as target."
        )
    channels = description["in_channels"]
    last = keras.config.image_data_format() == "channels_last"
    shape = (*size, channels) if last else (channels, *size)
    options = {name: value for name, value in description["options"].items() if name not in ("sync", "keep_norm")}
    arguments = (description["num_classes"], shape, description["layers"])
    if name == "resnet20":
        return ResNet20(*arguments, **options)
    return VGG(int(name[3:]), *arguments, **options)
