"""Numbers in words, the same on every card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.audit.figures import short
from pellucid.audit.vocabulary import Picture

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit


def percent(share: float, digits: int = 1) -> str:
    """`97.3 %`."""
    return f"{100 * share:.{digits}f}\u00a0%"


def between(bounds: Sequence[float], digits: int = 1) -> str:
    """`95.4–98.5 %`."""
    return f"{100 * bounds[0]:.{digits}f}–{100 * bounds[1]:.{digits}f}\u00a0%"


def sure(confidence: float) -> str:
    """A confidence without decimals, and never rounded up to certainty."""
    return ">\u00a099\u00a0%" if confidence >= 0.995 else percent(confidence, 0)


def said(audit: Audit, index: int, image: np.ndarray) -> Picture:
    """Test image `index` with what the model said about it."""
    truth, answer = (audit.classes[int(row[index])] for row in (audit.labels, audit.answers))
    confidence = sure(float(audit.confidence[index]))
    return Picture(
        image,
        caption=short(answer, 24),
        note=confidence,
        alt=f"Test image {index}: {truth}, answered {answer} with confidence {confidence}",
        tone="good" if truth == answer else "bad",
    )
