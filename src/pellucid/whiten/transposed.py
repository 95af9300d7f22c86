"""Transposed convolution of whitened pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from pellucid.core.errors import InputError
from pellucid.whiten import fold as folds
from pellucid.whiten.base import Whitening
from pellucid.whiten.blocks import Blocks
from pellucid.whiten.moments import Pixels
from pellucid.whiten.options import Options, check_blocks, explicit
from pellucid.whiten.precision import in_range


class FastDeconvTranspose2d(Whitening, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` on whitened pixels: channels are whitened, in blocks, before they are spread out.

    The arguments are those of `torch.nn.ConvTranspose2d`, then by keyword `block` (default 64) and the others of
    `FastDeconv2d`, without `blocks`. The mean is subtracted from the input itself, since at the border of the output
    not all kernel positions add up.

    Raises:
        InputError: a value out of range, or values that exclude each other.
    """

    @explicit()
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        block: int = 64,
        sampling_stride: int = 3,
        **options: Unpack[Options],
    ) -> None:
        nn.ConvTranspose2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype,
        )  # fmt: skip
        check_blocks(block, sampling_stride)
        self.blocks = Blocks.cut(in_channels, groups, block, 1)
        self._remember(self.blocks.matrices, self.blocks.features, options)
        self.sampling_stride = sampling_stride

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Images (N, C, H, W), or one image (C, H, W), to (N, O, H', W').

        Raises:
            InputError: an `output_size` that the stride does not allow.
        """
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0), output_size).squeeze(0)
        if self.training and x.numel():
            mean, root = self.whiten.step(x, Pixels(self.blocks, self.sampling_stride))
        else:
            mean, root = self.whiten.at_eval()
        shift, weight = self.folded(mean, root)
        extra = self.output_padding if output_size is None else self._extra(x.shape[2:], output_size)

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.conv_transpose2d(
                x, weight, bias, self.stride, self.padding, extra, self.groups, self.dilation  # type: ignore[arg-type]
            )  # fmt: skip

        bias = None if self.bias is None else self.bias.to(weight.dtype)
        centred = x.to(shift.dtype) - shift[:, None, None]
        return in_range(product, centred, weight, bias, self.whiten, x.dtype)

    def _extra(self, size: Sequence[int], output_size: Sequence[int]) -> tuple[int, ...]:
        """The output padding that makes images of `output_size`, whose last two numbers are (H', W')."""
        padding = cast("tuple[int, ...]", self.padding)
        geometry = zip(size, self.kernel_size, self.stride, padding, self.dilation, strict=True)
        least = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in geometry]
        extra = tuple(wanted - n for wanted, n in zip(output_size[-2:], least, strict=True))
        if not all(0 <= more < s for more, s in zip(extra, self.stride, strict=True)):
            most = [n + s - 1 for n, s in zip(least, self.stride, strict=True)]
            raise InputError(f"output_size={[*output_size]} must be between {least} and {most} for this input.")
        return extra

    @classmethod
    def as_published(cls, *args: Any, **options: Any) -> Any:
        """Raise InputError: no transposed convolution has been published."""
        raise InputError("FastDeconvTranspose2d has no published form: construct it without as_published.")

    def folded(self, mean: Tensor | None = None, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The mean (C,) to subtract, and the weight $D^\\top W$ of the plain transposed convolution that follows.

        mean, root: (G, F) and (G, F, F); by default those of evaluation.
        """
        if mean is None or root is None:
            mean, root = self.whiten.at_eval()
        with torch.autocast(self.weight.device.type, enabled=False):
            rows = self.blocks.fold(self.weight.to(root.dtype).reshape(self.in_channels, 1, -1))
            weight = self.blocks.unfold(root.mT @ rows).reshape(self.weight.shape)
        return self.blocks.unfold(mean).flatten(), weight

    def folded_module(self) -> nn.Module:
        """A 1x1 convolution that subtracts the mean, then a transposed convolution, for `pellucid.fold`."""
        return folds.transposed(self)
