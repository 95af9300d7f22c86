r"""A convolution whose output is the sparse code of its input (SDNet: Dai et al., NeurIPS 2022, equation 3):

$$\mathrm{CSC}(x) = \arg\min_z\; \lambda \lVert z \rVert_1 + \tfrac{\mu}{2} \lVert z \rVert_2^2
  + \tfrac12 \lVert x - D^* z \rVert_2^2$$

where $D^*$ is a transposed convolution whose atoms have norm 1, computed by `n_steps` proximal gradient steps. The
arithmetic is that of `pellucid.CSC2d`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from pellucid.keras.padding import Padded, named

# Step sizes times L; proximal gradient descent converges below 2.
_STEP = {"published": 0.9, "long": 1.8}
_PLACES = 12  # maximum number of places along an axis that the norm is estimated on
_FALL = 0.95  # smallest ratio of the norm to the previous one: power iteration approaches it from below


@keras.saving.register_keras_serializable(package="pellucid")
class CSC2D(Padded, keras.layers.Conv2D):
    """Compute the sparse code of images in a dictionary of `filters` convolutional atoms.

    The first arguments are those of `keras.layers.Conv2D`, without bias and groups; `padding` may also be a number of
    zeros at both ends of every axis, or one number per axis. By keyword:

        lam: weight of |z|_1; default 0.1.
        mu: weight of |z|^2 / 2; default 0.
        n_steps: number of iterations, which take 2 n_steps - 1 convolutions; default 2. Run a trained network with the
            number that it was trained with.
        nonnegative: restrict codes to values of at least 0; default True.
        n_dict: number of dictionaries, each of which must reconstruct the image from the same code; default 1.
        square_noise: False minimises half the norm of the residual instead of half its square; default True.
        schedule: "published" (default) takes steps of 0.9 / L, with momentum from the third on; "long" takes steps of
            1.8 / L without momentum.

    `lam`, `mu` and `n_steps` are plain attributes; a model that was compiled before one is set keeps the old value.
    Non-trainable weights: norm (), L, the largest eigenvalue of D D*, and direction (1, filters, 12, 12); one step of
    power iteration per training step makes them follow the kernel. Evaluation changes nothing.

    Raises ValueError for values out of range.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        activation: Any = None,
        *,
        lam: float = 0.1,
        mu: float = 0.0,
        n_steps: int = 2,
        nonnegative: bool = True,
        n_dict: int = 1,
        square_noise: bool = True,
        schedule: str = "published",
        **kwargs: Any,
    ) -> None:
        for fixed, value in {"use_bias": False, "groups": 1}.items():
            if kwargs.pop(fixed, value) != value:
                raise ValueError(f"CSC2D always has {fixed}={value}: leave out {fixed}.")
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=named(padding),
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=False,
            **kwargs,
        )
        rules = [
            (n_steps >= 1, f"n_steps={n_steps} must be at least 1"),
            (n_dict >= 1, f"n_dict={n_dict} must be at least 1"),
            (lam >= 0 and math.isfinite(lam), f"lam={lam} must be at least 0"),
            (mu >= 0 and math.isfinite(mu), f"mu={mu} must be at least 0"),
            (schedule in _STEP, f"schedule={schedule!r} must be {' or '.join(_STEP)}"),
        ]
        for holds, sentence in rules:
            if not holds:
                raise ValueError(f"A sparse coding layer's {sentence}.")
        self.lam, self.mu, self.n_steps, self.nonnegative = lam, mu, n_steps, nonnegative
        self.n_dict, self.square_noise, self.schedule = n_dict, square_noise, schedule
        self._set_border(padding)

    def get_config(self) -> dict[str, Any]:
        names = ("lam", "mu", "n_steps", "nonnegative", "n_dict", "square_noise", "schedule")
        config = {**super().get_config(), **{name: getattr(self, name) for name in names}}
        return {name: value for name, value in config.items() if name not in ("use_bias", "groups")}

    def build(self, input_shape: Any) -> None:
        given, many = list(input_shape), list(input_shape)
        many[self._channel_axis] *= self.n_dict
        super().build(tuple(many))
        axis = self._channel_axis
        self.input_spec = keras.layers.InputSpec(min_ndim=4, axes={axis: given[axis]})
        # The edge of the Marchenko-Pastur law (1967) for random atoms, plus 10 %.
        ratio = self.filters / (many[axis] * math.prod(self.strides))
        start = keras.initializers.Constant(1.1 * (1 + math.sqrt(ratio)) ** 2)
        fixed = {"dtype": self.kind, "trainable": False}
        self.norm = self.add_weight(name="norm", shape=(), initializer=start, **fixed)
        self.direction = self.add_weight(
            name="direction",
            shape=(1, self.filters, _PLACES, _PLACES),
            initializer=keras.initializers.RandomNormal(seed=0),
            **fixed,
        )

    @property
    def atoms(self) -> Any:
        """The dictionary (*k, n_dict C, filters): the kernel with each atom scaled to norm 1, in at least float32."""
        kernel = ops.cast(self.kernel, self.kind)
        squares = ops.sum(ops.square(kernel), axis=(0, 1, 2), keepdims=True)
        return kernel / ops.sqrt(ops.maximum(squares, 1e-24))

    def call(self, inputs: Any, training: bool = False) -> Any:
        atoms = self.atoms
        x = ops.cast(inputs, self.kind)
        if self.n_dict > 1:
            x = ops.concatenate([x] * self.n_dict, self._channel_axis)
        x = self._padded(x)
        z = self._code(atoms, x, self._widths(inputs), ops.convert_to_tensor(self.norm))
        if training and self.trainable:
            self._follow(ops.stop_gradient(atoms), self._widths(inputs), ops.shape(z))
        z = ops.cast(z, self.compute_dtype)
        return z if self.activation is None else self.activation(z)

    def decode(self, code: Any) -> Any:
        """Reconstruct the image $D^* z$ of a code, averaged over dictionaries; of all sizes that fit, the smallest."""
        z = ops.cast(code, self.kind)
        size = [(ops.shape(z)[axis] - 1) * s + span for axis, s, span in self._geometry()]
        image = self._cropped(self._spread(self.atoms, z, size), self._widths_of(size))
        axis = self._channel_axis % 4
        parts = ops.split(image, self.n_dict, axis)
        return sum(parts[1:], parts[0]) / self.n_dict

    # --- the iteration, on padded images ---

    def _code(self, atoms: Any, x: Any, widths: Any, norm: Any) -> Any:
        t = _STEP[self.schedule] / norm
        shrink = 1 / (1 + self.mu * t)
        threshold = self.lam * t * shrink

        def prox(r: Any, y: Any = None) -> Any:
            u = self._analysed(atoms, r) * (t * shrink)
            u = u if y is None else u + y * shrink
            return ops.relu(u - threshold) if self.nonnegative else u - ops.clip(u, -threshold, threshold)

        size = [ops.shape(x)[axis] for axis in self._axes]
        z, before, tau = prox(x), None, (1 + math.sqrt(5)) / 2
        for _ in range(self.n_steps - 1):
            y = z
            if self.schedule == "published" and before is not None:
                following = (1 + math.sqrt(1 + 4 * tau * tau)) / 2
                y = z + (tau - 1) / following * (z - before)
                tau = following
            # There is nothing to reconstruct in the padding.
            r = x - self._bordered(self._spread(atoms, z, size), widths)
            if not self.square_noise:
                squares = ops.sum(ops.square(ops.stop_gradient(r)), axis=(1, 2, 3), keepdims=True)
                r = r / (2 * ops.sqrt(ops.maximum(squares, 1e-24)))
            before, z = z, prox(r, y)
        return z

    def _analysed(self, atoms: Any, x: Any) -> Any:
        """$D x$ for a padded image."""
        return ops.conv(
            x,
            atoms,
            strides=list(self.strides),
            padding="valid",
            dilation_rate=list(self.dilation_rate),
            data_format=self.data_format,
        )

    def _spread(self, atoms: Any, z: Any, size: Sequence[Any]) -> Any:
        """$D^* z$ as a padded image of this size."""
        image = ops.conv_transpose(
            z,
            atoms,
            strides=list(self.strides),
            padding="valid",
            dilation_rate=list(self.dilation_rate),
            data_format=self.data_format,
        )
        # With a stride, no code reaches the last pixels, up to stride - 1 of them.
        more, index = [(0, 0)] * 4, [slice(None)] * 4
        for axis, stride, n in zip(self._axes, self.strides, size, strict=True):
            more[axis], index[axis] = (0, stride - 1), slice(0, n)
        return (image if max(self.strides) == 1 else ops.pad(image, more))[tuple(index)]

    def _cropped(self, image: Any, widths: Any) -> Any:
        """A padded image without its padding."""
        size = ops.shape(image)
        index = [slice(before, n - after) for n, (before, after) in zip(size, widths, strict=True)]
        return image[tuple(index)]

    def _bordered(self, image: Any, widths: Any) -> Any:
        """A padded image with its padding set to zero."""
        return ops.pad(self._cropped(image, widths), widths)

    def _geometry(self) -> list[tuple[int, int, int]]:
        return list(zip(self._axes, self.strides, self._spans, strict=True))

    def _widths_of(self, size: Sequence[Any]) -> list[tuple[Any, Any]]:
        """The padding of an image of this padded size; "same" is treated as with stride 1."""
        widths: list[tuple[Any, Any]] = [(0, 0)] * 4
        for place, (axis, _, span) in enumerate(self._geometry()):
            total = span - 1 if self.padding == "same" and self.border is None else 0
            widths[axis] = (total // 2, total - total // 2) if self.border is None else (self.border[place],) * 2
        return widths

    # --- the step size ---

    def _follow(self, atoms: Any, widths: Any, places: Any) -> None:
        """Update `norm` for the next training step by one power iteration, on codes of at most 12 x 12 places."""
        last = self.data_format == "channels_last"
        taken = [places[axis] for axis in self._axes]
        taken = [min(n, _PLACES) if isinstance(n, int) else ops.minimum(n, _PLACES) for n in taken]
        old, held = ops.convert_to_tensor(self.norm), ops.convert_to_tensor(self.direction)
        v = held[:, :, : taken[0], : taken[1]]
        tiny = float(np.finfo("float32").tiny)
        v = v / ops.maximum(ops.sqrt(ops.sum(ops.square(v))), tiny)
        code = ops.moveaxis(v, 1, -1) if last else v
        size = [(n - 1) * s + span for n, (_, s, span) in zip(taken, self._geometry(), strict=True)]
        code = self._analysed(atoms, self._bordered(self._spread(atoms, code, size), widths))
        norm = ops.sqrt(ops.sum(ops.square(code)))
        code = ops.moveaxis(code, -1, 1) if last else code
        good = ops.logical_and(ops.isfinite(norm), norm > 0)
        self.norm.assign(ops.where(good, ops.maximum(norm, _FALL * old), old))
        made = ops.where(good, code / ops.maximum(norm, tiny), v)
        self.direction.assign(ops.slice_update(held, (0, 0, 0, 0), made))
