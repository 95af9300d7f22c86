"""Drawings as inline SVG: matplotlib draws, `draw` makes the result a good citizen of a page.

Colours are roles, not values: a figure is drawn with the stand-in colours below, and each becomes the page's own
(`currentColor` or a CSS variable), so that one drawing serves light, dark and print. Text stays text, in the page's
font. Style attributes become presentation attributes, because the page's security policy admits no inline style.
"""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
BLUE, ORANGE, GREEN, RIGHT, WRONG = "#050505", "#060606", "#070707", "#080808", "#090909"
_ROLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    RIGHT: "var(--cell-right)",
    WRONG: "var(--cell-wrong)",
}
PREFIX = "figure-id-"  # starts every id; the page replaces it by something unique on the page
WIDTH = 400  # drawing units; near the width of a phone, so that 13-unit text stays readable there
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pellucid",
    "text.parse_math": False,  # class names may hold dollar signs
    "font.size": 13,
    "axes.labelsize": 13,
    "xtick.labelsize": 13,
    "ytick.labelsize": 13,
    "legend.fontsize": 13,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}


def draw(
    paint: Callable[[Axes], Any], *, title: str, description: str, width: float = WIDTH, height: float = 270
) -> str:
    """Let `paint(axes)` draw, and return the drawing as an `<svg>` element.

    Args:
        paint: draws with the colour roles of this module only.
        title, description: what the figure is and what it shows, for screen readers.
        width, height: in drawing units (CSS pixels at natural size).
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    output = StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser, not matplotlib, has to have the glyphs of a class name.
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.subplots())
        figure.savefig(output, format="svg", transparent=True, metadata={"Date": None})
    return _inline(output.getvalue(), title, description)


def _inline(svg: str, title: str, description: str) -> str:
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = _presentable(element.attrib)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{PREFIX}title {PREFIX}description",
        "stroke-linejoin": "round",
    }
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        label = ElementTree.Element(tag, id=f"{PREFIX}{'title' if tag == 'title' else 'description'}")
        label.text = printable(text)
        root.insert(position, label)
    return ElementTree.tostring(root, encoding="unicode")


def _presentable(attributes: dict[str, str]) -> dict[str, str]:
    """Attributes of one element with `style` taken apart, colours turned into roles, and ids made replaceable."""
    flat = {key.removeprefix(_XLINK): value for key, value in attributes.items() if key != "style"}
    for declaration in attributes.get("style", "").split(";"):
        key, _, value = declaration.strip().partition(": ")
        if key == "font":  # matplotlib before 3.9: "700 12px 'DejaVu Sans', ..."
            flat["font-size"] = re.findall(r"[\d.]+px", value)[0]
            if weight := re.search(r"\b([1-9]00|bold)\b", value):
                flat["font-weight"] = weight[0]
        elif key and key != "font-family":
            flat[key] = value
    for key, value in flat.items():
        if value in _ROLES:
            flat[key] = _ROLES[value]
        elif key == "id" or (key == "href" and value.startswith("#")):
            flat[key] = value[: key == "href"] + PREFIX + value[key == "href" :]
        elif value.startswith("url(#"):
            flat[key] = f"url(#{PREFIX}{value[5:]}"
    return flat


def printable(text: str) -> str:
    """`text` without what XML and HTML cannot hold (control characters, lone surrogates), white space made plain."""
    if text.isprintable():
        return text
    kept = "\u00a0\u200c\u200d"  # no-break space, joiners
    return "".join(c if c.isprintable() or c in kept else " " if c.isspace() else "\ufffd" for c in text)


def short(name: str, limit: int = 14) -> str:
    """A class name of at most `limit` characters; its end stays, since names often differ only there."""
    name = printable(name).strip()
    end = limit // 3
    return name if len(name) <= limit else f"{name[: limit - 1 - end].rstrip()}…{name[-end:].lstrip()}"


# --- the drawings ---


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


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
    """Up to three named curves over `x`, each with an optional band, and labelled horizontal `levels` as controls.

    Args:
        series: `(name, values, [(low, high), ...] or None)`; told apart by colour, dash and marker.
        percent: values are shares of 1 and the axis runs from 0 to 100 %; otherwise it is logarithmic.
        mark: draw a vertical line at this x.
        ticks: names of the x positions.
    """

    def paint(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

        few = len(x) <= 12
        looks = zip((BLUE, ORANGE, GREEN), ("-", (0, (5, 2)), (0, (1, 1.6))), ("o", "s", "^"), strict=True)
        for (name, values, band), (colour, dash, marker) in zip(series, looks, strict=False):
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
            _percent_axis(axes.yaxis)
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


def intervals(
    names: Sequence[str],
    values: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    level: tuple[str, float],
    *,
    title: str,
    description: str,
) -> str:
    """One dot with its interval for each name, top to bottom, against a labelled vertical `level`; all shares of 1."""

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
        _percent_axis(axes.xaxis)
        axes.grid(axis="x", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return draw(paint, title=title, description=description, height=70 + 20 * len(names))


def reliability(
    confidence: Sequence[float],
    accuracy: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    weight: Sequence[float],
    *,
    title: str,
    description: str,
) -> str:
    """Accuracy against stated confidence, a dot a bin with its interval; its area grows with `weight` (shares of 1)."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.annotate(
            "as sure as right",
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
        for axis, label in ((axes.xaxis, "stated confidence"), (axes.yaxis, "right")):
            axis.set_label_text(label)
            _percent_axis(axis)
        axes.set_xlim(-0.02, 1.04)
        axes.set_ylim(-0.02, 1.04)
        axes.grid(linewidth=0.8)
        axes.set_axisbelow(True)

    return draw(paint, title=title, description=description, height=330)


def heat(names: Sequence[str], counts: np.ndarray, totals: np.ndarray, *, title: str, description: str) -> str:
    """Confusion matrix `counts` (K, K), rows true; cells shaded by share of `totals` (K,), right and wrong in two hues.

    Every non-zero cell carries its count. Wrong answers are shaded on their own scale, up to the largest of them.
    """
    from matplotlib.patches import Rectangle

    size = len(names)
    shares = counts / np.maximum(totals, 1)[:, None]
    top = max(float(np.where(np.eye(size, dtype=bool), 0, shares).max()), 1e-9)

    def paint(axes: Axes) -> None:
        for row, column in zip(*np.nonzero(counts), strict=True):
            right = row == column
            strength = shares[row, column] if right else 0.25 + 0.75 * shares[row, column] / top
            hue = RIGHT if right else WRONG
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
        axes.set_xlabel("answer")
        axes.set_ylabel("truth")
        axes.set_aspect("equal")

    side = WIDTH if size <= 12 else 130 + 24 * size
    return draw(paint, title=title, description=description, width=side, height=side * 0.95)
