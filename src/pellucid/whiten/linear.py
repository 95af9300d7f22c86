"""Linear layer on whitened features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from pellucid.whiten import fold as folds
from pellucid.whiten.base import Whitening
from pellucid.whiten.blocks import Blocks, divisor
from pellucid.whiten.moments import Pixels, Rows
from pellucid.whiten.options import HEAD, Blocking, Options, check_blocks, explicit
from pellucid.whiten.precision import in_range


class FastDeconvLinear(Whitening, nn.Linear):
    """`torch.nn.Linear` on whitened features (..., in): the classifier's head, as published.

    The arguments are those of `torch.nn.Linear`, then by keyword those of `FastDeconv2d` but `sampling_stride`. `block`
    is the maximum number of features whitened together, default 128; published pooling (`blocks="pooled"`) stacks the
    blocks as samples of one. Unless `method`, `refresh` or `grad` is given, the root takes five Newton steps at every
    training step, with the gradient through them; if one of them is given, the other two are as in `FastDeconv2d`.

    Raises:
        InputError: a value out of range, or values that exclude each other.
    """

    published_block = 512

    @explicit(**HEAD)
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        block: int = 128,
        blocks: Blocking = "separate",
        **options: Unpack[Options],
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        check_blocks(block, blocks=blocks)
        self.pooled = blocks == "pooled"
        size = divisor(in_features, block) if self.pooled else block
        self.blocks = Blocks.cut(in_features, 1, size, 1)
        if not HEAD.keys() & options.keys():
            options = {**HEAD, **options}
        self._remember(1 if self.pooled else self.blocks.matrices, self.blocks.features, options)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if not self.training or not x.numel():
            mean, root = self.whiten.at_eval()
        elif self.pooled:
            rows = x.to(self.whiten.root.dtype).reshape(-1, self.blocks.features).T.unsqueeze(0)
            mean, root = self.whiten.step(rows, Rows())
        else:
            mean, root = self.whiten.step(x.reshape(-1, self.in_features), Pixels(self.blocks))
        return in_range(F.linear, x, *self.folded(mean, root), self.whiten)

    def folded(self, mean: Tensor | None = None, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """$W' = W D$ and $b' = b - W' \\mu$ of the plain linear layer that this is.

        mean, root: $\\mu$ (G, F) and D (G, F, F); by default those of evaluation.
        """
        if mean is None or root is None:
            mean, root = self.whiten.at_eval()
        with torch.autocast(self.weight.device.type, enabled=False):
            weight, shift = self.blocks.times(self.weight.to(root.dtype), mean, root)
            return weight, -shift if self.bias is None else self.bias.to(root.dtype) - shift

    def folded_module(self) -> nn.Module:
        """The linear layer that this is in evaluation, for `pellucid.fold`."""
        return folds.linear(self)
