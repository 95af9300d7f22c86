r"""Edge-popup: a convolution that chooses among random weights (Ramanujan et al. 2020, section 3).

With frozen weights w and trained scores s it computes with $w \odot h(s)$, where h is 1 for the fraction `keep` of
entries with the largest |s| and 0 for the others. The backward pass treats h as |s| itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from pellucid.keras.padding import Padded, named


@keras.saving.register_keras_serializable(package="pellucid")
class SignedConstant(keras.initializers.Initializer):
    r"""Draw $\pm \sqrt{2 / \text{fan in}}$ with random signs: the weights that edge-popup works best with."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        draws = keras.initializers.RandomUniform(-1.0, 1.0, self.seed)(shape, dtype)
        return ops.where(draws < 0, -1.0, 1.0) * ops.cast(math.sqrt(2 / math.prod(shape[:-1])), draws.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


def topk_mask(scores: Any, keep: float) -> Any:
    """1.0 for the ceil(keep n) entries of `scores` (*k, I, O) with the largest magnitude, at least one; else 0.0.

    The number is exact: of equal magnitudes the first in torch's order (O, I, *k) are kept.
    """
    rank = len(scores.shape)
    magnitude = ops.abs(ops.transpose(scores, (rank - 1, rank - 2, *range(rank - 2))))
    n = math.prod(scores.shape)
    k = max(1, math.ceil(keep * n - 1e-6))  # against rounding: 0.3 * 10 must give 3, not 4
    flat = ops.reshape(magnitude, (-1,))
    least = ops.sort(flat)[n - k]
    above, tied = flat > least, ops.cast(flat == least, "int32")
    stays = ops.logical_and(tied > 0, ops.cumsum(tied) <= k - ops.sum(ops.cast(above, "int32")))
    mask = ops.reshape(ops.cast(ops.logical_or(above, stays), scores.dtype), magnitude.shape)
    return ops.transpose(mask, (*range(2, rank), 1, 0))


@keras.saving.register_keras_serializable(package="pellucid")
class SubnetConv2D(Padded, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with frozen random weights, and trained scores that choose which of them are used.

    The first arguments are those of `keras.layers.Conv2D`, except that there is no bias by default; `padding` may also
    be a number of zeros at both ends of every axis, or one number per axis. By keyword:

        keep: fraction of the weights that is kept, above 0, at most 1: exactly ceil(keep n) of n; default 0.3.
        scores_regularizer: regulariser of the scores, which are the only part that is trained.

    The kernel is drawn by `kernel_initializer`, by default `SignedConstant`.

    Raises ValueError for a `keep` out of range.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = False,
        kernel_initializer: Any = None,
        *,
        keep: float = 0.3,
        scores_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=named(padding),
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=SignedConstant() if kernel_initializer is None else kernel_initializer,
            **kwargs,
        )
        if isinstance(keep, bool) or not 0 < keep <= 1:
            raise ValueError(
                f"keep={keep!r} is out of range: give the fraction of weights to keep, above 0, at most 1."
            )
        self.keep, self.scores_regularizer = keep, keras.regularizers.get(scores_regularizer)
        self._set_border(padding)

    def get_config(self) -> dict[str, Any]:
        more = {"keep": self.keep, "scores_regularizer": keras.regularizers.serialize(self.scores_regularizer)}
        return {**super().get_config(), **more}

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.kernel.trainable = False
        self.scores = self.add_weight(
            name="scores",
            shape=self.kernel.shape,
            # As published: Kaiming uniform with a = sqrt(5).
            initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
            regularizer=self.scores_regularizer,
        )

    def call(self, inputs: Any) -> Any:
        kernel, scores = ops.convert_to_tensor(self.kernel), ops.convert_to_tensor(self.scores)
        # Adds exactly 0 in the forward pass, and gives the scores their gradient in the backward pass.
        straight = kernel * ops.abs(scores)
        masked = kernel * ops.stop_gradient(topk_mask(scores, self.keep)) + (straight - ops.stop_gradient(straight))
        y = self._convolve(inputs, ops.cast(masked, self.compute_dtype))
        if self.bias is not None:
            y = y + self._along_channels(ops.cast(self.bias, self.compute_dtype))
        return y if self.activation is None else self.activation(y)

    def folded(self) -> tuple[Any, Any]:
        """Kernel, with zeros for pruned weights, and bias of the equivalent plain convolution."""
        kernel = self.kernel * topk_mask(ops.convert_to_tensor(self.scores), self.keep)
        return kernel, ops.zeros((self.filters,)) if self.bias is None else ops.convert_to_tensor(self.bias)
