"""One ranking of the scores of several layers together: `ranking="global"`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.edgepopup.mask import kept, largest

if TYPE_CHECKING:
    from pellucid.edgepopup.parametrization import Mask


class Ranking:
    """Rank the scores of all `members` together: one threshold for all of them.

    The first layer of a forward pass that asks for its mask has the masks of all layers made, and each is handed out
    once; when scores have changed in the meantime, all are made again. Compiled code computes them in every layer, and
    the compiler merges these computations into one.
    """

    def __init__(self) -> None:
        self.members: list[Mask] = []
        self._masks: dict[int, Tensor] = {}  # made and not yet handed out, by the layer's place in `members`
        self._made_from: object = None

    def mask(self, member: Mask) -> Tensor:
        """The mask of one layer: bool, of the shape of its scores."""
        place = next(place for place, other in enumerate(self.members) if other is member)
        scores: list[Tensor] = [other.scores for other in self.members]
        keep = member.keep()
        if torch.compiler.is_compiling() or any(s.is_inference() for s in scores):
            return self._all(scores, keep)[place]
        # The counter of a tensor's in-place changes is the only way to see a change without reading the scores.
        made_from = (keep, [(s.data_ptr(), s._version) for s in scores])
        if made_from != self._made_from or place not in self._masks:
            self._masks, self._made_from = dict(enumerate(self._all(scores, keep))), made_from
        return self._masks.pop(place)

    def _all(self, scores: list[Tensor], keep: float | Tensor) -> list[Tensor]:
        sizes = [s.numel() for s in scores]
        together = torch.cat([s.detach().abs().flatten() for s in scores])
        parts = largest(together, kept(keep, len(together))).split(sizes)
        return [part.view_as(s) for part, s in zip(parts, scores, strict=True)]
