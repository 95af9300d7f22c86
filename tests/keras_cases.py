"""Layers of Keras beside their twins of torch: one table of cases, and how far the two are apart after real steps.

Import it after `pytest.importorskip("keras")`; the backend is that of KERAS_BACKEND, by default torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import torch
from keras import ops

import pellucid
import pellucid.keras as pk
from pellucid.sparse.layers import CSC2d

FULL = {"method": "newton", "refresh": 1, "grad": "full"}


@dataclass(frozen=True)
class Case:
    """`make` gives the layer of torch; `shape` is that of a batch, channels first."""

    name: str
    make: Callable[[], torch.nn.Module]
    shape: tuple[int, ...]


CASES = [
    Case("FastDeconv1D", lambda: pellucid.FastDeconv1d(5, 4, 3, padding=1, block=3), (6, 5, 11)),
    Case("FastDeconv2D", lambda: pellucid.FastDeconv2d(6, 8, 3, padding="same", block=4), (5, 6, 11, 9)),
    Case(
        "FastDeconv2D, strides, groups",
        lambda: pellucid.FastDeconv2d(6, 8, 3, 2, 1, groups=2, bias=False, block=2),
        (5, 6, 9, 8),
    ),
    Case("FastDeconv2D, dilation", lambda: pellucid.FastDeconv2d(4, 6, (3, 2), dilation=2, block=4), (5, 4, 9, 8)),
    Case(
        "FastDeconv2D, full gradient", lambda: pellucid.FastDeconv2d(4, 6, 3, padding=1, block=2, **FULL), (5, 4, 8, 7)
    ),
    Case(
        "FastDeconv2D, published", lambda: pellucid.FastDeconv2d.as_published(4, 6, 3, padding=1, block=2), (5, 4, 9, 7)
    ),
    Case("FastDeconv3D", lambda: pellucid.FastDeconv3d(3, 4, 2, padding=1, block=2), (4, 3, 5, 4, 4)),
    Case("ChannelDeconv", lambda: pellucid.ChannelDeconv(6, block=4), (5, 6, 9, 8)),
    Case(
        "ChannelDeconv, published",
        lambda: pellucid.ChannelDeconv.as_published(7, block=3),
        (5, 7, 9, 8),
    ),
    Case("CSC2D", lambda: CSC2d(3, 8, 3, padding=1, n_steps=3), (4, 3, 9, 8)),
    Case("CSC2D, strides", lambda: CSC2d(3, 8, 4, 2, 1, n_dict=2, schedule="long", mu=0.1), (4, 3, 10, 8)),
    Case("SubnetConv2D", lambda: pellucid.subnet(torch.nn.Conv2d(4, 6, 3, padding=1), 0.3, seed=0), (4, 4, 7, 6)),
]


def images(case: Case, seed: int) -> np.ndarray:
    """A batch, channels first, with a mean and correlated channels."""
    x = np.random.default_rng(seed).normal(size=case.shape)
    return (x + 0.5 * np.roll(x, 1, 1) + 0.3).astype("float32")


def last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


class Stepper:
    """Training steps of SGD on one built Keras layer, by whatever the backend differentiates with."""

    def __init__(self, layer: Any, rate: float = 0.05) -> None:
        self.layer, self.rate, self.backend = layer, rate, keras.backend.backend()
        if self.backend == "jax":
            import jax

            def loss(trained: Any, rest: Any, x: Any, towards: Any) -> Any:
                y, rest = layer.stateless_call(trained, rest, x, **({"training": True} if trains(layer) else {}))
                return ops.sum(ops.cast(y, "float32") * towards), (y, rest)

            self.differentiated = jax.jit(jax.grad(loss, (0, 2), has_aux=True))
        elif self.backend == "tensorflow":
            import tensorflow as tf

            @tf.function
            def graph(x: Any, towards: Any) -> Any:
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = layer(x, training=True) if trains(layer) else layer(x)
                    total = tf.reduce_sum(tf.cast(y, "float32") * towards)
                return y, tape.gradient(total, [x, *[v.value for v in layer.trainable_variables]])

            self.graph = graph

    def __call__(self, x: np.ndarray, towards: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Output, and the gradients of sum(output * towards) to x and to the trained weights, which take a step."""
        layer = self.layer
        if self.backend == "numpy":
            return np.asarray(layer(x, training=True) if trains(layer) else layer(x), "float32"), []
        if self.backend == "jax":
            trained = [v.value for v in layer.trainable_variables]
            rest = [v.value for v in layer.non_trainable_variables]
            (weights, inputs), (y, rest) = self.differentiated(trained, rest, x, towards)
            for variable, value in zip(layer.non_trainable_variables, rest, strict=True):
                variable.assign(value)
            found = [inputs, *weights]
        elif self.backend == "tensorflow":
            y, found = self.graph(ops.convert_to_tensor(x), ops.convert_to_tensor(towards))
        else:
            leaf = torch.tensor(x, requires_grad=True)
            layer.zero_grad()
            y = layer(leaf, training=True) if trains(layer) else layer(leaf)
            (y.float() * torch.tensor(towards)).sum().backward()
            found = [leaf.grad, *(v.value.grad for v in layer.trainable_variables)]
        found = [np.asarray(ops.convert_to_numpy(g), "float32") for g in found]
        for variable, gradient in zip(layer.trainable_variables, found[1:], strict=True):
            variable.assign(ops.convert_to_numpy(variable) - self.rate * gradient)
        return np.asarray(ops.convert_to_numpy(ops.cast(y, "float32"))), found


def trains(layer: Any) -> bool:
    """Whether the layer does something else in training."""
    return not isinstance(layer, pk.SubnetConv2D)


def apart(case: Case, steps: int = 10, rate: float = 0.05) -> dict[str, float]:
    """The largest distance between the layer in Keras and in torch: of outputs and gradients in any of `steps` training
    steps, of all state after them, and of the output of evaluation; relative to the largest value where it is above 1.

    Where the backend cannot differentiate nothing is trained, and there is no gradient.
    """
    torch.manual_seed(0)
    theirs = case.make().train()
    ours = pk.from_torch(theirs)
    stepper = Stepper(ours, rate)
    worst = {"output": 0.0, "gradient": 0.0, "statistics": 0.0, "evaluation": 0.0}

    def note(what: str, found: np.ndarray, expected: np.ndarray) -> None:
        assert found.shape == expected.shape
        gap = np.abs(found.astype("float64") - expected).max() / max(1.0, np.abs(expected).max())
        worst[what] = max(worst[what], float(gap)) if np.isfinite(gap) else float("inf")

    for step in range(steps):
        leaf = torch.tensor(images(case, step), requires_grad=True)
        y = theirs(leaf)
        towards = np.random.default_rng(100 + step).normal(size=y.shape).astype("float32") / y.shape[0]
        theirs.zero_grad()
        (y * torch.tensor(towards)).sum().backward()
        made, found = stepper(last(images(case, step)), last(towards))
        note("output", made, last(y.detach().numpy()))
        if not found:
            continue
        note("gradient", found[0], last(leaf.grad.numpy()))
        expected = [p for p in theirs.parameters() if p.requires_grad]
        for gradient, parameter in zip(found[1:], expected, strict=True):
            value = parameter.grad.numpy()
            note("gradient", gradient, value.transpose(*range(2, value.ndim), 1, 0) if value.ndim > 1 else value)
        with torch.no_grad():
            for parameter in expected:
                parameter -= rate * parameter.grad
    state = {name: value for name, value in theirs.state_dict().items() if not name.endswith("_extra_state")}
    back = pk.to_torch(ours)
    assert back.keys() == state.keys()
    for name, value in state.items():
        note("statistics", back[name], value.numpy())
    x = images(case, 99)
    made = ops.convert_to_numpy(ops.cast(ours(last(x)), "float32"))
    note("evaluation", made, last(theirs.eval()(torch.tensor(x)).detach().numpy()))
    return worst
