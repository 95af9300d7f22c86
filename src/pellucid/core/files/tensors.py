"""Named tensors and a JSON table in one safetensors file, never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor

from pellucid.core.errors import InputError, first_line, shown
from pellucid.core.files.atomic import write_atomic
from pellucid.core.files.conform import conform
from pellucid.core.files.structured import check_regular, parse_json

FORMAT = 1
MOST_TENSORS = 20_000  # in one file, tied ones included; the largest networks of timm have some 5000
_KEY = "pellucid"


def save_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], **info: Any) -> None:
    """Write named `tensors` and the JSON table `info` to the safetensors file `path`, atomically.

    Tied tensors are stored once, and come back under all their names.
    """
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    owner: dict[tuple[object, ...], str] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        identity = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and identity in owner:
            aliases[name] = owner[identity]
            continue
        owner[identity] = name
        value = tensor.detach().cpu().contiguous()
        # The format has no views: a tensor within larger or shared memory gets its own.
        if value.untyped_storage().nbytes() != value.nbytes or value.data_ptr() in memory:
            value = value.clone()
        memory.add(value.data_ptr())
        stored[name] = value
    try:
        table = json.dumps({**info, "format": FORMAT, "aliases": aliases})
        content = safetensors.save(stored, {_KEY: table})
    except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{os.fspath(path)!r} cannot be written: {error}.") from error
    write_atomic(path, content)


# --- reading ---


def read_tensors(path: str | os.PathLike[str], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file whose names begin with `prefix` (which is removed), and its JSON table.

    The tensors are mapped from the file, not yet read. The table is empty for a file that is not ours.

    Raises:
        InputError: the file is damaged.
    """
    name = shown(os.fspath(path), 300)
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            raw = (file.metadata() or {}).get(_KEY)
            names = list(file.keys())
            _check_number(name, len(names))
            tensors = {key: file.get_tensor(key) for key in names}
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise InputError(f"{name} is truncated or damaged: {first_line(error)}.") from error
    info = {} if raw is None else parse_json(raw, f"{name} is damaged")
    if raw is not None and info.get("format") != FORMAT:
        raise InputError(f"{name} was written by another version of pellucid, or is damaged.")
    aliases = conform(info.pop("aliases", {}), dict[str, str], f"{name} is damaged", "aliases")
    _check_number(name, len(tensors) + len(aliases))
    if not set(aliases.values()) <= set(tensors):
        raise InputError(f"{name} is damaged: it names tied tensors that it does not hold.")
    tensors |= {alias: tensors[name] for alias, name in aliases.items()}
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, info


def _check_number(name: str, count: int) -> None:
    if count > MOST_TENSORS:
        raise InputError(f"{name} names {count} tensors, and a file may name at most {MOST_TENSORS}.")
