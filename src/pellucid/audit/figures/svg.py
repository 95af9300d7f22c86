"""matplotlib drawings as inline SVG that follows the style of the page.

Colours are roles, not values: a figure is drawn in the placeholder colours below, and `draw` replaces each by a colour
of the page (`currentColor` or a CSS variable), so that one drawing serves light mode, dark mode and print. Text stays
text, in the page's font. Style attributes become presentation attributes, because the page's security policy forbids
inline styles.
"""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING, Any

from pellucid.audit.words import printable

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
PREFIX = "figure-id-"  # of every id; the page replaces it by a prefix that is unique on the page
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
    """Call `paint(axes)` and return what it drew as an `<svg>` element.

    Args:
        paint: draws, in the colour roles of this module only.
        title, description: what the figure is and what it shows, for screen readers.
        width, height: in drawing units (CSS pixels at natural size).
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    output = StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser needs the glyphs of a class name, matplotlib does not.
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
    """Attributes of one element, with `style` split up, colours replaced by roles, and ids prefixed."""
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


def percent_axis(axis: Any) -> None:
    """Label the ticks of an axis of fractions in percent."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
