"""Carry weights and statistics between torch and Keras, without importing torch.

Objects of torch are recognised by what they offer: a layer or model by `state_dict()` and its attributes, a tensor by
`numpy()`. Kernels are (O, I, *k) there and (*k, I, O) here; everything else has the same shape on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from pellucid.keras.channel import ChannelDeconv
from pellucid.keras.randomness import unchanged
from pellucid.keras.state import Whitening
from pellucid.keras.subnet import SubnetConv2D
from pellucid.keras.twins import twin

_LEFT = ("num_batches_tracked", "_extra_state")  # entries of torch's state dicts that Keras has no variable for
_LINEAR = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_KERNELS = ("weight", "parametrizations.weight.original", "parametrizations.weight.0.scores")


def from_torch(source: Any, target: Any = None) -> Any:
    """Make a Keras layer or model with the weights and statistics of one in torch.

    Args:
        source: a layer of pellucid or torch (convolution, linear layer, `ChannelDeconv`); a network of
            `pellucid.build` that also exists here (VGG in its small form, ResNet-20); or, with `target`, the state dict
            (name to tensor or array) of any layer or network.
        target: a built Keras layer or model to load them into, whose layers have the names of torch's with `_` for
            dots. Default: a new one with the arguments of `source`.

    Returns the target. Python's random state, which new layers draw from, is unchanged.

    Raises:
        ValueError: there is no Keras twin of `source`, or names or shapes do not match.
    """
    state = source.state_dict() if hasattr(source, "state_dict") else source
    if not isinstance(state, Mapping):
        raise ValueError(f"from_torch takes a layer, a model or a state dict, not {type(source).__name__}.")
    if target is None:
        with unchanged():
            target = twin(source)
    names = {_key(name): name for name in state if not name.endswith(_LEFT)}
    for variable, entry, candidates in _variables(target):
        name = names.pop(next((key for key in map(_key, candidates) if key in names), ""), None)
        if name is None:
            raise ValueError(f"The source has no {candidates[0]!r}, which {target.name!r} needs: give its twin.")
        value = state[name].detach().cpu().numpy() if hasattr(state[name], "detach") else state[name]
        value = np.array(value)  # a copy: JAX would share memory with the tensor, which may change later
        if entry in _KERNELS and value.ndim > 1:
            value = value.transpose(*range(2, value.ndim), 1, 0)
        if value.shape != tuple(variable.shape):
            raise ValueError(
                f"{name!r} does not fit: its shape is {value.shape}, and {target.name!r} needs {variable.shape}."
            )
        variable.assign(value)
    if names:
        raise ValueError(f"{target.name!r} has no variable for {next(iter(names.values()))!r}: give the source's twin.")
    return target


def to_torch(source: Any, target: Any = None) -> Any:
    """Read a Keras layer or model as a state dict (name to array), with the names of its twin in torch.

    Args:
        source: a built Keras layer or model.
        target: the torch module to load the weights and statistics into; it is then returned.

    Raises:
        ValueError: `target` is not the twin of `source`.
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
                raise ValueError(f"The target has no {candidates[0]!r} of shape {value.shape}: give the source's twin.")
            value = into[name].new_tensor(value)
        made[name] = value
    if into is None:
        return made
    made |= {name: value for name, value in into.items() if name.endswith(_LEFT)}
    if missed := sorted(set(into) - set(made)):
        raise ValueError(f"The source has nothing for {missed[0]!r} of the target: give the source's twin.")
    target.load_state_dict(made)
    return target


def _key(name: str) -> str:
    return name.replace(".", "_")


def _variables(target: Any, inside: str = "") -> Iterator[tuple[Any, str, list[str]]]:
    """Each variable of a layer or model, its name within its layer in torch, and the full names that it may have."""
    if isinstance(target, keras.Model):
        for layer in target.layers:
            if layer.weights:
                yield from _variables(layer, f"{inside}{layer.name}.".replace("_", "."))
        return
    for entry, variable in _entries(target).items():
        names = [f"{inside}{entry}"]
        if inside and isinstance(target, ChannelDeconv):  # the whitening half of a FastDeconvLinear or a ChannelHead
            names = [f"{inside.removesuffix('whiten.')}{entry}", f"{inside}{entry}"]
        elif inside and isinstance(target, _LINEAR):
            names += [f"{inside}linear.{entry}", f"{inside.removesuffix('linear.')}{entry}"]
        yield variable, entry, names


def _entries(layer: keras.layers.Layer) -> dict[str, Any]:
    """The variables of a layer, by their names in torch."""
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
        raise ValueError(
            f"{type(layer).__name__} {layer.name!r} has no twin in torch: convert the other layers by themselves."
        )
    return found
