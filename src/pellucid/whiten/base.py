"""What all whitening layers have in common: where their state is, and how it is made from their options."""

from __future__ import annotations

from typing import Any

from torch import nn

from pellucid.core.network.statistics import Moments
from pellucid.whiten.blocks import Blocks
from pellucid.whiten.options import DEFAULTS, PUBLISHED, Options
from pellucid.whiten.state import Whitener


class Whitening(nn.Module):
    """Base class of all whitening layers: `whiten` holds the statistics, `blocks` says which features share them."""

    whiten: Whitener
    blocks: Blocks
    pooled: bool = False  # whether one matrix serves all blocks
    published_block: int = 64

    def _remember(self, matrices: int, features: int, options: Options, **published: bool) -> None:
        unknown = sorted(set(options) - set(DEFAULTS))
        if unknown:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {unknown[0]!r}")
        self.whiten = Whitener(matrices, features, options, **published)
        for weight in self.parameters(recurse=False):
            self.whiten.to(device=weight.device, dtype=weight.dtype)  # float32 at least
            break

    def declared_moments(self) -> Moments:
        """Running mean (G, F) and covariance (G, F, F) of the input, by block (see `Blocks`).

        Features that pad the last block are 0. The features are "channels" where the layer sees single pixels,
        "patches" under a larger kernel, or "pooled": all blocks as samples of one, in the published order.
        """
        return self.whiten.moments("pooled" if self.pooled else "channels" if self.blocks.positions == 1 else "patches")

    @classmethod
    def as_published(cls, *args: Any, **options: Any) -> Any:
        """The same layer in the paper's published arithmetic; `options` override.

        One pooled matrix, five Newton steps under autograd at every training step, and running averages of mean and
        root that start from 0 and I."""
        return cls(*args, **{**PUBLISHED, "blocks": "pooled", "block": cls.published_block, **options})
