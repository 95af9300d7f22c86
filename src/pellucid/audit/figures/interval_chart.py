"""One dot with its interval per row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.audit.figures.svg import BLUE, MUTED, draw, percent_axis
from pellucid.audit.words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def intervals(
    names: Sequence[str],
    values: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    level: tuple[str, float],
    *,
    title: str,
    description: str,
) -> str:
    """Draw one dot with its interval per name, top to bottom, against a labelled vertical `level`, all in [0, 1]."""

    def paint(axes: Axes) -> None:
        rows = np.arange(len(names))[::-1]
        low, high = (np.array(side) for side in zip(*bounds, strict=True))
        axes.hlines(rows, low, high, color=BLUE, linewidth=2, alpha=0.55)
        axes.plot(values, rows, "o", color=BLUE, markersize=6)
        axes.axvline(level[1], color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
        axes.annotate(
            level[0],
            (level[1], 1),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if level[1] > 0.5 else "left",
            va="bottom",
            color=MUTED,
            fontsize=12,
        )
        axes.set_yticks(rows, [short(name) for name in names])
        axes.set_ylim(-0.7, len(names) - 0.3)
        left = min(0.9, float(np.floor(low.min() * 10) / 10))
        axes.set_xlim(left, 1.005)
        percent_axis(axes.xaxis)
        axes.grid(axis="x", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return draw(paint, title=title, description=description, height=70 + 20 * len(names))
