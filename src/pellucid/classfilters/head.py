"""A last layer in which each class reads only its own few filters.

    logit_c(a) = sum over j in I_c of V_cj a_j + b_c

(Badola et al. 2021). The sets I are kept with the weights V. It is computed as a dense layer whose other weights are
zero: the published gather form is several times slower on batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.core.errors import InputError


class DecomposedHead(nn.Module):
    """Linear layer (N, C) -> (N, K) that reads at most k inputs for each output.

    Args:
        in_features: inputs (C).
        out_features: outputs (K).
        k: maximum number of inputs per output; 1 to C.
        bias: learn an additive bias.
        spatial: take the place of a 1x1 convolution: maps (N, C, H, W) to (N, K, H, W).
        indices: one list of at most k different inputs per output; default none, so that every output is its bias until
            indices are loaded.

    Attributes:
        indices: buffer (K, k) int64, kept in the state dict, so that weights never lose their meaning. Unused entries
            are C.
        weight: parameter (K, k); unused entries are zero and get no gradient.
        bias: parameter (K,), or None.

    Raises:
        InputError: sizes out of range, or `indices` that do not fit them.
    """

    indices: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        k: int,
        bias: bool = True,
        *,
        spatial: bool = False,
        indices: Sequence[Sequence[int]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1 or not 1 <= k <= in_features:
            raise InputError(
                f"A decomposed head of {in_features} inputs and {out_features} outputs cannot have k={k}: "
                f"it must be 1 to {in_features}."
            )
        self.in_features, self.out_features, self.k, self.spatial = in_features, out_features, k, spatial
        padded = torch.full((out_features, k), in_features, dtype=torch.int64)
        if indices is not None:
            if len(indices) != out_features:
                raise InputError(f"There are {len(indices)} sets of inputs for {out_features} outputs: give one each.")
            for row, chosen in zip(padded, indices, strict=True):
                if len(chosen) > k:
                    raise InputError(f"A set of {len(chosen)} inputs does not fit k={k}.")
                row[: len(chosen)] = torch.tensor(list(chosen), dtype=torch.int64)
            if fault := _fault(padded, in_features):
                raise InputError(fault)
        self.register_buffer("indices", padded.to(device))
        self.weight = nn.Parameter(torch.zeros(out_features, k, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        )

    @property
    def counts(self) -> Tensor:
        """(K,) int64: number of inputs that each output reads."""
        return (self.indices < self.in_features).sum(1)

    def dense(self) -> Tensor:
        """(K, C): the weights with zeros for all other inputs; gradients flow through it."""
        # Unused entries are scattered into an extra column, which is cut off.
        wide = self.weight.new_zeros(self.out_features, self.in_features + 1)
        return wide.scatter(1, self.indices, self.weight)[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        if self.spatial:
            return F.conv2d(x, self.dense()[:, :, None, None], self.bias)
        return F.linear(x, self.dense(), self.bias)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear | nn.Conv2d:
        """The same as a plain torch layer, linear or a 1x1 convolution, most of whose weights are zero."""
        made: nn.Linear | nn.Conv2d
        arguments: dict[str, Any] = {"bias": self.bias is not None, "device": "meta"}
        if self.spatial:
            made = nn.Conv2d(self.in_features, self.out_features, 1, **arguments)
        else:
            made = nn.Linear(self.in_features, self.out_features, **arguments)
        weight = self.dense().detach().clone()
        made.weight = nn.Parameter(weight[:, :, None, None] if self.spatial else weight)
        if self.bias is not None:
            made.bias = nn.Parameter(self.bias.detach().clone())
        return made.train(self.training)

    def folded_module(self) -> nn.Module:
        """What `pellucid.fold` replaces it by: `to_linear`."""
        return self.to_linear()

    @torch.no_grad()
    def subset(self, outputs: Sequence[int]) -> DecomposedHead:
        """A head with some of the outputs only, in this order.

        Raises:
            InputError: no output, the same one twice, or one that does not exist.
        """
        rows = list(outputs)
        if not rows or len(set(rows)) != len(rows) or any(not 0 <= row < self.out_features for row in rows):
            raise InputError(f"Outputs {rows} must be different numbers from 0 to {self.out_features - 1}.")
        made = DecomposedHead(
            self.in_features,
            len(rows),
            self.k,
            self.bias is not None,
            spatial=self.spatial,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        made.indices.copy_(self.indices[rows])
        made.weight.copy_(self.weight[rows])
        if self.bias is not None and made.bias is not None:
            made.bias.copy_(self.bias[rows])
        return made.train(self.training)

    def extra_repr(self) -> str:
        """Sizes, as torch prints them."""
        spatial = ", spatial=True" if self.spatial else ""
        return f"{self.in_features}, {self.out_features}, k={self.k}, bias={self.bias is not None}{spatial}"

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        key = f"{prefix}indices"
        found = state.get(key)
        # Indices from a file are checked before they are used as addresses; rest[-1] collects error messages.
        if isinstance(found, Tensor) and found.shape == self.indices.shape and not found.is_meta:
            fault = "must be whole numbers (int64)" if found.dtype != torch.int64 else _fault(found, self.in_features)
            if fault:
                rest[-1].append(f"{key}: {fault}")
                return
        super()._load_from_state_dict(state, prefix, *rest)


def _fault(indices: Tensor, width: int) -> str | None:
    """What is wrong with padded index sets, if anything."""
    inside = indices < width
    if bool(((indices < 0) | (indices > width)).any()):
        return f"Indices of inputs must be from 0 to {width - 1}."
    if bool((inside[:, 1:] & ~inside[:, :-1]).any()):
        return "Sets of inputs have gaps."
    ordered = indices.sort(1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] < width)).any()):
        return "An input appears twice in a set."
    return None


def head_of(model: nn.Module) -> DecomposedHead:
    """The decomposed head in `model`.

    Raises:
        InputError: there is none.
    """
    for module in model.modules():
        if isinstance(module, DecomposedHead):
            return module
    raise InputError(f"This {type(model).__name__} has no decomposed head: install one with ClassFilters.apply.")
