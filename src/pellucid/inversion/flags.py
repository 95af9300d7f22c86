"""Flags that commands which search for images share. Nothing heavy is imported."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from pellucid.core.ranges import Count, NotNegative, Positive

Preset = Literal["gaussian", "generator", "deepinversion", "adaptive", "sre2l", "cda", "dream", "hidden", "prior-only"]


@dataclass(frozen=True)
class RecipeSettings:
    """Which recipe the images are searched for by, and what is changed in it.

    Args:
        preset: recipe; gaussian, the default, needs no tuning for a network, the others follow their papers.
        steps: number of steps of the search; default the recipe's.
        lr: learning rate of Adam; default the recipe's.
        weight: weight of the statistics; default the recipe's, and 0 leaves them out.
        covariance: match covariances where the statistics have them, not variances alone.
        input: weight of the normalised input's own mean and variance, next to 1 for each layer; default the recipe's.
        tv: weight of the total variation; default the recipe's.
        statistics: file of the statistics to match, written by pellucid.statistics(model, images).save(FILE); default
            those that the model holds.
    """

    preset: Preset = "gaussian"
    steps: Count | None = None
    lr: Positive | None = None
    weight: NotNegative | None = None
    covariance: bool = True
    input: NotNegative | None = None
    tv: NotNegative | None = None
    statistics: str | None = None

    def changes(self) -> dict[str, Any]:
        """What is changed in the recipe, as arguments of `presets.changed`."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in ("preset", "statistics")}
