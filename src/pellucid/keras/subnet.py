r"""Edge-popup: a convolution that chooses among random weights (Ramanujan et al. 2020, section 3).

Frozen weights w and trained scores s: it computes with $w \odot h(s)$, where h is 1 for the share `keep` of the entries
of largest |s|. Backward, h passes the gradient on as if it were |s| itself.
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
    r"""$\pm \sqrt{2 / \text{fan in}}$ with random signs: the weights that edge-popup works best with."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        draws = keras.initializers.RandomUniform(-1.0, 1.0, self.seed)(shape, dtype)
        return ops.where(draws < 0, -1.0, 1.0) * ops.cast(math.sqrt(2 / math.prod(shape[:-1])), draws.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


def topk_mask(scores: Any, keep: float) -> Any:
    """1.0 for the ceil(keep n) entries of `scores` (*k, I, O) of largest magnitude, at least one, else 0.0.

    The count is exact: of equal magnitudes the first in torch's order (O, I, *k) stay.
    """
    rank = len(scores.shape)
    magnitude = ops.abs(ops.transpose(scores, (rank - 1, rank - 2, *range(rank - 2))))
    n = math.prod(scores.shape)
    k = max(1, math.ceil(keep * n - 1e-6))  # 0.3 of 10 is 3, whatever the last bit of the product says
    flat = ops.reshape(magnitude, (-1,))
    least = ops.sort(flat)[n - k]
    above, tied = flat > least, ops.cast(flat == least, "int32")
    stays = ops.logical_and(tied > 0, ops.cumsum(tied) <= k - ops.sum(ops.cast(above, "int32")))
    mask = ops.reshape(ops.cast(ops.logical_or(above, stays), scores.dtype), magnitude.shape)
    return ops.transpose(mask, (*range(2, rank), 1, 0))


@keras.saving.register_keras_serializable(package="pellucid")
class SubnetConv2D(Padded, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with random weights that stay as they are, and scores that choose which of them count.

    Arguments are those of `keras.layers.Conv2D`, with numbers of zeros as `padding`, too, and without a bias unless it
    is asked for, then by keyword:

        keep: the fraction of the weights that stays, above 0, at most 1; ceil(keep n) of n exactly. Default 0.3.
        scores_regularizer: of the scores, which are what is trained.

    The kernel is drawn by `kernel_initializer`, `SignedConstant` by default, and is not trained.

    Raises ValueError for a keep out of range.
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
                f"keep={keep!r} is out of range: give the fraction of weights that stay, above 0, at most 1."
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
        # Adds exactly nothing forward; backward it is the gradient to the scores.
        straight = kernel * ops.abs(scores)
        masked = kernel * ops.stop_gradient(topk_mask(scores, self.keep)) + (straight - ops.stop_gradient(straight))
        y = self._convolve(inputs, ops.cast(masked, self.compute_dtype))
        if self.bias is not None:
            y = y + self._along_channels(ops.cast(self.bias, self.compute_dtype))
        return y if self.activation is None else self.activation(y)

    def folded(self) -> tuple[Any, Any]:
        """The kernel with zeros where nothing stays, and the bias, of the plain convolution that this layer is."""
        kernel = self.kernel * topk_mask(ops.convert_to_tensor(self.scores), self.keep)
        return kernel, ops.zeros((self.filters,)) if self.bias is None else ops.convert_to_tensor(self.bias)
