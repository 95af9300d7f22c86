"""The confusion matrix as a shaded table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.audit.figures.svg import RIGHT, WIDTH, WRONG, draw
from pellucid.audit.words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def heat(names: Sequence[str], counts: np.ndarray, totals: np.ndarray, *, title: str, description: str) -> str:
    """Draw the confusion matrix `counts` (K, K), a row per true class.

    Every non-zero cell shows its count and is shaded by the fraction of its row's `totals` (K,): correct predictions in
    one hue, errors in another and on their own scale, up to the largest of them.
    """
    from matplotlib.patches import Rectangle

    size = len(names)
    fractions = counts / np.maximum(totals, 1)[:, None]
    top = max(float(np.where(np.eye(size, dtype=bool), 0, fractions).max()), 1e-9)

    def paint(axes: Axes) -> None:
        for row, column in zip(*np.nonzero(counts), strict=True):
            correct = row == column
            strength = fractions[row, column] if correct else 0.25 + 0.75 * fractions[row, column] / top
            hue = RIGHT if correct else WRONG
            cell = Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, color=hue, alpha=float(strength), linewidth=0)
            axes.add_patch(cell)
            axes.annotate(
                f"{counts[row, column]:d}",
                (column + 0.5, row + 0.5),
                ha="center",
                va="center",
                fontsize=12 if size <= 12 else 10,
            )
        axes.set_xlim(0, size)
        axes.set_ylim(size, 0)
        labels = [short(name) for name in names]
        slant = max(map(len, labels)) > 2
        axes.set_xticks(np.arange(size) + 0.5, labels, rotation=90 if slant else 0)
        axes.set_yticks(np.arange(size) + 0.5, labels)
        axes.set_xticks(np.arange(size + 1), minor=True)
        axes.set_yticks(np.arange(size + 1), minor=True)
        axes.grid(which="minor", linewidth=0.6)
        axes.tick_params(which="both", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.set_aspect("equal")

    side = WIDTH if size <= 12 else 130 + 24 * size
    return draw(paint, title=title, description=description, width=side, height=side * 0.95)
