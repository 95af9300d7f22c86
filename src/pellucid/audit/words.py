"""Numbers and names in words, the same on every card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.audit.vocabulary import Picture

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit


def percent(fraction: float, digits: int = 1) -> str:
    """`97.3 %`."""
    return f"{100 * fraction:.{digits}f}\u00a0%"


def percent_range(bounds: Sequence[float], digits: int = 1) -> str:
    """`95.4–98.5 %`."""
    return f"{100 * bounds[0]:.{digits}f}–{100 * bounds[1]:.{digits}f}\u00a0%"


def confidence_text(confidence: float) -> str:
    """A confidence without decimals, and never rounded up to certainty."""
    return ">\u00a099\u00a0%" if confidence >= 0.995 else percent(confidence, 0)


def printable(text: str) -> str:
    """`text` without what XML and HTML cannot hold (control characters, lone surrogates); white space as spaces."""
    if text.isprintable():
        return text
    kept = "\u00a0\u200c\u200d"  # no-break space, joiners
    return "".join(c if c.isprintable() or c in kept else " " if c.isspace() else "\ufffd" for c in text)


def short(name: str, limit: int = 14) -> str:
    """A class name cut to `limit` characters; its end is kept, since names often differ only there."""
    name = printable(name).strip()
    end = limit // 3
    return name if len(name) <= limit else f"{name[: limit - 1 - end].rstrip()}…{name[-end:].lstrip()}"


def prediction_of(audit: Audit, index: int, image: np.ndarray) -> Picture:
    """Test image `index`, captioned with the predicted class and its confidence."""
    truth, predicted = (audit.classes[int(row[index])] for row in (audit.labels, audit.predictions))
    confidence = confidence_text(float(audit.confidence[index]))
    return Picture(
        image,
        caption=short(predicted, 24),
        note=confidence,
        alt=f"Test image {index}: {truth}, classified as {predicted} with confidence {confidence}",
        tone="good" if truth == predicted else "bad",
    )
