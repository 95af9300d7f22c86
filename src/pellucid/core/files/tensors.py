"""Named tensors and a JSON table in one safetensors file, never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor

from pellucid.core.errors import InputError, first_line
from pellucid.core.files.atomic import write_atomic

FORMAT = 1
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
    try:
        with safe_open(path, framework="pt") as file:
            raw = (file.metadata() or {}).get(_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        info = json.loads(raw) if raw is not None else {}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise InputError(f"{os.fspath(path)!r} is truncated or damaged: {first_line(error)}.") from error
    if not isinstance(info, dict) or (raw is not None and info.get("format") != FORMAT):
        raise InputError(f"{os.fspath(path)!r} was written by another version of pellucid, or is damaged.")
    aliases = info.pop("aliases", {})
    if not isinstance(aliases, dict) or any(str(name) not in tensors for name in aliases.values()):
        raise InputError(f"{os.fspath(path)!r} is damaged: it names tied tensors that it does not hold.")
    tensors |= {alias: tensors[name] for alias, name in aliases.items()}
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, info
