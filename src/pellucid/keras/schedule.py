"""A learning rate for every step, from a table."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="pellucid")
class RateTable(keras.optimizers.schedules.LearningRateSchedule):
    """Look up the learning rate of each step in `rates`; after the end of the table the last one is used."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = [float(rate) for rate in rates]

    def __call__(self, step: Any) -> Any:
        last = len(self.rates) - 1
        return ops.take(ops.convert_to_tensor(self.rates, "float32"), ops.minimum(ops.cast(step, "int32"), last))

    def get_config(self) -> dict[str, Any]:
        return {"rates": self.rates}
