"""The initial values of biases."""

from __future__ import annotations

import math
from typing import Any

import keras


@keras.saving.register_keras_serializable(package="pellucid")
class BiasHeUniform(keras.initializers.Initializer):
    r"""Draw biases uniformly in $\pm 1 / \sqrt{\text{fan in}}$, with the fan-in of the *kernel*, as torch does.

    The fan-in (inputs per unit: kernel area x channels per group) cannot be seen from the shape of the biases. The
    layers of `pellucid.keras` provide it themselves; for any other layer give `fan_in`.

    Raises ValueError if the fan-in is not known, or not at least 1.
    """

    def __init__(self, fan_in: int | None = None, seed: int | None = None) -> None:
        if fan_in is not None and fan_in < 1:
            raise ValueError(f"BiasHeUniform's fan_in={fan_in} must be at least 1.")
        self.fan_in, self.seed = fan_in, seed

    def of(self, kernel: tuple[int, ...]) -> BiasHeUniform:
        """The same initialiser for a kernel of this shape (..., inputs, outputs), unless a fan-in was given."""
        return self if self.fan_in else BiasHeUniform(math.prod(kernel[:-1]), self.seed)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        if self.fan_in is None:
            raise ValueError(
                "BiasHeUniform needs the fan-in of the kernel: give fan_in, or use it in a layer of pellucid."
            )
        bound = 1 / math.sqrt(self.fan_in)
        return keras.initializers.RandomUniform(-bound, bound, self.seed)(shape, dtype)

    def get_config(self) -> dict[str, Any]:
        return {"fan_in": self.fan_in, "seed": self.seed}
