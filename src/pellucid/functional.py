"""The pure maths of the ideas, as functions of tensors."""

from __future__ import annotations

from pellucid.whiten.isqrt import isqrt

__all__ = ["isqrt"]
