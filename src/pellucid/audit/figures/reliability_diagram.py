"""The reliability diagram: accuracy against confidence (Guo et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.audit.figures.svg import BLUE, MUTED, draw, percent_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def reliability(
    confidence: Sequence[float],
    accuracy: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    weight: Sequence[float],
    *,
    title: str,
    description: str,
) -> str:
    """Draw accuracy against confidence: per bin a dot with its interval, its area growing with `weight`, in [0, 1]."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.annotate(
            "calibrated",
            (0.04, 0.04),
            (-2, 10),
            textcoords="offset points",
            rotation=45,
            rotation_mode="anchor",
            transform_rotates_text=True,
            color=MUTED,
            fontsize=12,
        )
        low, high = zip(*bounds, strict=True)
        axes.vlines(confidence, low, high, color=BLUE, linewidth=2, alpha=0.55)
        axes.scatter(confidence, accuracy, s=24 + 260 * np.array(weight), color=BLUE, alpha=0.85, linewidth=0)
        for axis, label in ((axes.xaxis, "confidence"), (axes.yaxis, "accuracy")):
            axis.set_label_text(label)
            percent_axis(axis)
        axes.set_xlim(-0.02, 1.04)
        axes.set_ylim(-0.02, 1.04)
        axes.grid(linewidth=0.8)
        axes.set_axisbelow(True)

    return draw(paint, title=title, description=description, height=330)
