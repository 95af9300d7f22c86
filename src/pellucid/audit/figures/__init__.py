"""The figures of the page, each an `<svg>` element: `draw` for any drawing, and one function per recurring kind."""

from pellucid.audit.figures.confusion_matrix import heat
from pellucid.audit.figures.interval_chart import intervals
from pellucid.audit.figures.line_chart import lines
from pellucid.audit.figures.reliability_diagram import reliability
from pellucid.audit.figures.svg import BLUE, GREEN, INK, MUTED, ORANGE, PREFIX, RULE, draw

__all__ = [
    "BLUE",
    "GREEN",
    "INK",
    "MUTED",
    "ORANGE",
    "PREFIX",
    "RULE",
    "draw",
    "heat",
    "intervals",
    "lines",
    "reliability",
]
