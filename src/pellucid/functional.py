"""The mathematics of the ideas as pure functions of tensors."""

from __future__ import annotations

from pellucid.edgepopup.mask import topk_mask
from pellucid.sparse.functional import fista
from pellucid.whiten.isqrt import isqrt

__all__ = ["fista", "isqrt", "topk_mask"]
