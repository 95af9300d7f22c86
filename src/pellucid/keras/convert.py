"""Weights and statistics carried between torch and Keras, without importing torch.

What comes from torch is known by what it offers: a layer or model by `state_dict()` and its attributes, a tensor by
`numpy()`. Kernels are (O, I, *k) there and (*k, I, O) here; everything else has the same shape on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from pellucid.keras.channel import ChannelDeconv
from pellucid.keras.convolution import FastDeconv1D, FastDeconv2D, FastDeconv3D
from pellucid.keras.models import VGG, ResNet20
from pellucid.keras.padding import Padded
from pellucid.keras.sparse import CSC2D
from pellucid.keras.state import DEFAULTS, Whitening
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
_LEFT = ("num_batches_tracked", "_extra_state")  # what torch's layers count, and Keras's do not
_LINEAR = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_KERNELS = ("weight", "parametrizations.weight.original", "parametrizations.weight.0.scores")
_PADS = (keras.layers.ZeroPadding1D, keras.layers.ZeroPadding2D, keras.layers.ZeroPadding3D)


def from_torch(source: Any, target: Any = None) -> Any:
    """A Keras layer or model with the weights and statistics of one of torch's.

    Args:
        source: a layer of pellucid or torch (convolution, linear layer, `ChannelDeconv`); a network of
            `pellucid.build` that is here as well (VGG in its small form, ResNet-20); or, with `target`, the state dict
            (name to tensor or array) of any layer or network.
        target: the built Keras layer or model that takes them; its layers are named as torch's, with `_` for dots.
            Default one that is made like the source.

    Returns the target.

    Raises:
        ValueError: the source has no twin here, or names or shapes do not fit.
    """
    state = source.state_dict() if hasattr(source, "state_dict") else source
    if not isinstance(state, Mapping):
        raise ValueError(f"from_torch takes a layer, a model or a state dict, not {type(source).__name__}.")
    target = _twin(source) if target is None else target
    names = {_key(name): name for name in state if not name.endswith(_LEFT)}
    for variable, entry, candidates in _variables(target):
        name = names.pop(next((key for key in map(_key, candidates) if key in names), ""), None)
        if name is None:
            raise ValueError(f"The source has no {candidates[0]!r}: it is not the twin of {target.name!r}.")
        value = state[name].detach().cpu().numpy() if hasattr(state[name], "detach") else state[name]
        value = np.array(value)  # a copy: JAX would share memory with the tensor, which goes on changing
        if entry in _KERNELS and value.ndim > 1:
            value = value.transpose(*range(2, value.ndim), 1, 0)
        if value.shape != tuple(variable.shape):
            raise ValueError(f"{name!r} does not fit: it is {value.shape} here, and {variable.shape} is wanted.")
        variable.assign(value)
    if names:
        raise ValueError(f"No layer of {target.name!r} takes {next(iter(names.values()))!r}: it is not a twin.")
    return target


def to_torch(source: Any, target: Any = None) -> Any:
    """The way back: the state dict (name to array) of a Keras layer or model, under the names of its twin in torch.

    With `target`, a module of torch's, its weights and statistics are set, and it is returned.

    Raises:
        ValueError: the target is not the source's twin.
    """
    made: dict[str, Any] = {}
    into = None if target is None else target.state_dict()
    names = {} if into is None else {_key(name): name for name in into}
    for variable, entry, candidates in _variables(source):
        value = np.array(keras.ops.convert_to_numpy(variable))
        if entry in _KERNELS and value.ndim > 1:
            value = np.ascontiguousarray(value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2)))
        name = candidates[0]
        if into is not None:
            name = names.get(next((key for key in map(_key, candidates) if key in names), ""), "")
            if not name or tuple(into[name].shape) != value.shape:
                raise ValueError(f"The target has no {candidates[0]!r} of {value.shape}: it is not the source's twin.")
            value = into[name].new_tensor(value)
        made[name] = value
    if into is None:
        return made
    made |= {name: value for name, value in into.items() if name.endswith(_LEFT)}
    if missed := sorted(set(into) - set(made)):
        raise ValueError(f"The source has nothing for {missed[0]!r}: it is not the target's twin.")
    target.load_state_dict(made)
    return target


def _key(name: str) -> str:
    return name.replace(".", "_")


def _variables(target: Any, inside: str = "") -> Iterator[tuple[Any, str, list[str]]]:
    """Each variable of a layer or model, what torch calls it within its layer, and the names it may have in all."""
    if isinstance(target, keras.Model):
        for layer in target.layers:
            if layer.weights:
                yield from _variables(layer, f"{inside}{layer.name}.".replace("_", "."))
        return
    for entry, variable in _entries(target).items():
        names = [f"{inside}{entry}"]
        if inside and isinstance(target, ChannelDeconv):  # the whitening half of a FastDeconvLinear, of a ChannelHead
            names = [f"{inside.removesuffix('whiten.')}{entry}", f"{inside}{entry}"]
        elif inside and isinstance(target, _LINEAR):
            names += [f"{inside}linear.{entry}", f"{inside.removesuffix('linear.')}{entry}"]
        yield variable, entry, names


def _entries(layer: keras.layers.Layer) -> dict[str, Any]:
    """The variables of a layer under the names that torch gives them."""
    if isinstance(layer, keras.layers.BatchNormalization):
        names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    else:
        names = {"weight": "kernel", "bias": "bias", "norm": "norm", "direction": "direction"}
    if isinstance(layer, SubnetConv2D):
        names = {"parametrizations.weight.original": "kernel", "parametrizations.weight.0.scores": "scores"}
    if isinstance(layer, Whitening):
        names |= {f"whiten.{name}": name for name in ("running_mean", "running_cov", "root", "steps", "updates")}
        names |= {"rest_mean": "rest_mean", "rest_var": "rest_var"}
    found = {entry: getattr(layer, name) for entry, name in names.items() if getattr(layer, name, None) is not None}
    if len(found) != len(layer.weights):
        raise ValueError(f"{type(layer).__name__} {layer.name!r} has no twin in torch.")
    return found


# --- twins ---


def _twin(source: Any) -> Any:
    """A built Keras layer or model with the arguments of `source`."""
    # What `pellucid.facts` reads; importing it here would import torch, which a backend may do without.
    description = getattr(vars(source).get("_pellucid_facts"), "description", None)
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
            raise ValueError("A FastDeconvLinear that pools several blocks has no twin in Keras.")
        whiten = ChannelDeconv(name="whiten", **{**_options(source), "blocks": "separate"})
        return keras.Sequential([keras.Input((source.in_features,)), whiten, dense])
    raise ValueError(f"There is no twin of {type(source).__name__} in Keras: give a target to take its state dict.")


def _convolution(source: Any, kind: Any) -> Any:
    if source.padding_mode != "zeros":
        raise ValueError(f"Keras pads by zeros, so a convolution of padding_mode={source.padding_mode!r} has no twin.")
    options: dict[str, Any] = {"use_bias": source.bias is not None}
    mask = getattr(getattr(source, "parametrizations", None), "weight", [None])[0]
    if kind is CSC2D:
        if source.published or source.schedule not in ("published", "long") or source.differentiate != "unrolled":
            raise ValueError("CSC2D has the schedules published and long, unrolled, and not the published arithmetic.")
        names = ("lam", "mu", "n_steps", "nonnegative", "n_dict", "square_noise", "schedule")
        options = {name: getattr(source, name) for name in names}
    elif mask is not None:
        told = getattr(mask, "options", None)
        if kind is not keras.layers.Conv2D or told is None or told.binary or told.anneal or told.ranking != "layer":
            raise ValueError("SubnetConv2D has neither binary weights nor annealing nor a ranking over all layers.")
        kind, options = SubnetConv2D, {**options, "keep": told.keep}
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
    """The whitening options of a layer of torch's."""
    whiten = source.whiten
    options = {name: getattr(whiten, "relative" if name == "relative_eps" else name) for name in DEFAULTS}
    pooled = source.pooled or getattr(source, "published", False)
    options |= {"block": source.blocks.size, "blocks": "pooled" if pooled else "separate"}
    return {**options, "sampling_stride": getattr(source, "sampling_stride", 1)}


def _network(description: Mapping[str, Any]) -> keras.Model:
    name, size = description["model"], description["image_size"]
    if description["form"] != "small" or not (name == "resnet20" or name in ("vgg11", "vgg13", "vgg16", "vgg19")):
        raise ValueError(f"There is no {name} in its {description['form']} form in Keras: give a target of your own.")
    channels = description["in_channels"]
    last = keras.config.image_data_format() == "channels_last"
    shape = (*size, channels) if last else (channels, *size)
    options = {name: value for name, value in description["options"].items() if name not in ("sync", "keep_norm")}
    arguments = (description["num_classes"], shape, description["layers"])
    if name == "resnet20":
        return ResNet20(*arguments, **options)
    return VGG(int(name[3:]), *arguments, **options)
