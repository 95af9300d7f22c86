"""A subnetwork on disk: a seed and one bit per weight; tensors that are not masked are stored unchanged.

The file is an ordinary checkpoint (`core.network.checkpoint`) whose table has `"encoding": "subnet"` and, for each
masked layer under "masks", what its weights are drawn from and a hash of the kept ones. For a layer `name` the file
holds `name.mask`, the bits of the mask, eight per byte; after redraws also `name.rounds`, the round that each kept
weight is from, in as few bits as the last round needs.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.facts import facts, unwrapped
from pellucid.core.files.tensors import save_tensors
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.seeds import seed_of
from pellucid.edgepopup import draw
from pellucid.edgepopup.layers import masks
from pellucid.edgepopup.parametrization import Mask

_MASK, _ROUNDS = "mask", "rounds"
_PARTS = ("original", "0.scores", "0._extra_state", "0.rounds")  # tensors of a masked weight that the bits replace


def pack(model: nn.Module, path: str | os.PathLike[str], **info: Any) -> None:
    """Write the subnetwork `model` to `path` as a seed and one bit per weight; `pellucid.load` reads it.

    The scores are not stored: they come back as 1 for kept weights and 0 for the others, which gives the same network.
    The file is written whole or not at all.

    Args:
        model: a network that `pellucid.subnet` has masked.
        path: the file to write.
        info: anything else to store with it that JSON can hold.

    Raises:
        InputError: a network without masks, or weights that cannot be drawn again from their seed.
    """
    needs_layers(model, "Packing")
    model = unwrapped(model)
    tensors = cast(dict[str, Tensor], model.state_dict())
    table: dict[str, Any] = {}
    for name, layer, mask in masks(model):
        chosen = mask.mask().cpu()
        weight = cast(Any, layer).parametrizations.weight.original.detach()
        if not torch.equal(_drawn(mask).to(weight.dtype).cpu()[chosen], weight.cpu()[chosen]):
            raise InputError(
                f"The weights of layer {name!r} are not the ones that its seed gives: use pellucid.save instead."
            )
        for part in _PARTS:
            tensors.pop(_key(name, part), None)
        tensors[f"{name}.{_MASK}"] = _packed(chosen)
        entry: dict[str, Any] = {
            "init": mask.options.init,
            "std": mask.std,
            "seed": mask.seed,
            "shape": list(weight.shape),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "sha256": _hash(weight, chosen),
        }
        if mask.rounds is not None:
            of = mask.rounds.cpu()[chosen]
            bits = int(of.max()).bit_length() if len(of) else 0
            entry["bits"] = bits
            if bits:
                tensors[f"{name}.{_ROUNDS}"] = _packed(of[:, None] >> torch.arange(bits) & 1)
        table[name] = entry
    if not table:
        raise InputError(
            "This network has no masks, so it holds no subnetwork: mask it with pellucid.subnet, or use pellucid.save."
        )
    save_tensors(tensors, path, **{**facts(model).to_json(), **info}, encoding="subnet", masks=table)


def decode(tensors: dict[str, Tensor], info: Mapping[str, Any]) -> dict[str, Tensor]:
    """Restore the state dict of a packed network: draw the weights again and compare them with their hash."""
    state = dict(tensors)
    try:
        for name, entry in info["masks"].items():
            state |= _layer(name, entry, state)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise InputError("is damaged: its table of masks does not match its tensors.") from error
    return state


def _layer(name: str, entry: Mapping[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the bits of one layer stand for; the bits are removed from `state`."""
    shape, seed, dtype = [int(n) for n in entry["shape"]], int(entry["seed"]), getattr(torch, entry["dtype"])
    chosen = _unpacked(state.pop(f"{name}.{_MASK}"), math.prod(shape)).view(shape)
    rounds = torch.zeros(shape, dtype=torch.int64) if "bits" in entry else None
    if rounds is not None and entry["bits"]:
        bits = int(entry["bits"])
        if not 0 < bits < 63:
            raise ValueError("not a number of bits")
        count = int(chosen.sum())
        drawn = _unpacked(state.pop(f"{name}.{_ROUNDS}"), count * bits).view(count, bits)
        rounds[chosen] = (drawn.long() << torch.arange(bits)).sum(1)
    of = 0 if rounds is None else rounds
    weight = draw.weights(entry["init"], entry["std"], seed_of("weights", seed), shape, of).to(dtype)
    if _hash(weight, chosen) != entry["sha256"]:
        raise InputError(
            f"cannot be restored: the weights drawn here for layer {name!r} differ from the ones that were saved."
        )
    values = [weight, chosen.to(dtype), torch.tensor(seed), rounds]
    return {_key(name, part): value for part, value in zip(_PARTS, values, strict=True) if value is not None}


def _key(name: str, part: str) -> str:
    return f"{name}.parametrizations.weight.{part}".removeprefix(".")


def _drawn(mask: Mask) -> Tensor:
    if mask.options.init == "given":
        raise InputError("Weights of init='given' cannot be drawn again from a seed: use pellucid.save instead.")
    # On the CPU, where `decode` draws them too: other devices may round differently.
    return mask.drawn(0 if mask.rounds is None else mask.rounds.cpu(), "cpu")


def _packed(bits: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(bits.numpy().astype(bool)))


def _unpacked(packed: Tensor, n: int) -> Tensor:
    """Unpack n bits to bool; ValueError unless that many were packed."""
    if packed.dtype != torch.uint8 or packed.shape != (-(-n // 8),):
        raise ValueError("not that many bits")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=n).astype(bool))


def _hash(weight: Tensor, chosen: Tensor) -> str:
    """The hash of the kept weights as float64, so that it does not depend on their type."""
    kept = weight.detach().cpu()[chosen.cpu()].double()
    return hashlib.sha256(kept.numpy().astype("<f8").tobytes()).hexdigest()
