"""Curves over a common axis, with bands and control levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.audit.figures.svg import BLUE, GREEN, MUTED, ORANGE, draw, percent_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def lines(
    x: Sequence[float],
    series: Sequence[tuple[str, Sequence[float], Sequence[tuple[float, float]] | None]],
    *,
    title: str,
    description: str,
    x_label: str,
    percent: bool = True,
    levels: Sequence[tuple[str, float]] = (),
    mark: float | None = None,
    ticks: Sequence[str] | None = None,
) -> str:
    """Draw up to three named curves over `x`, each with an optional band, and labelled horizontal `levels` as controls.

    Args:
        series: `(name, values, [(low, high), ...] or None)` each; distinguished by colour, dash and marker.
        percent: values are fractions and the axis runs from 0 to 100 %; otherwise the axis is logarithmic.
        mark: draw a vertical line at this x.
        ticks: names of the x positions.
    """

    def paint(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

        few = len(x) <= 12
        styles = zip((BLUE, ORANGE, GREEN), ("-", (0, (5, 2)), (0, (1, 1.6))), ("o", "s", "^"), strict=True)
        for (name, values, band), (colour, dash, marker) in zip(series, styles, strict=False):
            if band is not None:
                low, high = zip(*band, strict=True)
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, values, color=colour, linestyle=dash, marker=marker if few else "", markersize=5, label=name)
        for name, level in levels:
            axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(
                name,
                (1, level),
                (0, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color=MUTED,
                fontsize=12,
            )
        if mark is not None:
            axes.axvline(mark, color=MUTED, linewidth=1, zorder=0)
        if percent:
            axes.set_ylim(0, 1.02)
            percent_axis(axes.yaxis)
        else:
            axes.set_yscale("log")
            heights = np.array([values for _, values, _ in series])
            span = np.log10(heights.max() / max(heights.min(), 1e-9))
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if span > 2 else (1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        if ticks is None:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axes.set_xticks(x, ticks)
        axes.set_xlabel(x_label)
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderpad=0, handlelength=2.4)

    return draw(paint, title=title, description=description)
