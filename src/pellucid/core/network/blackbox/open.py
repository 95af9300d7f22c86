"""Files that hold a finished computation, by what their first bytes say."""

from __future__ import annotations

import os
from pathlib import Path

from pellucid.core.errors import InputError, shown
from pellucid.core.files import sniff
from pellucid.core.network.blackbox.box import BlackBox

_PREFIX = "onnx:"


def black_box(named: str | os.PathLike[str], *asked: object) -> BlackBox | None:
    """The black box in the file `named`; None for a folder, or a file of weights.

    Args:
        named: a file, or onnx:FILE for an ONNX file by whatever name.
        asked: what the caller says of the weights in the file, such as their model; all None or empty where there are
            none.

    Raises:
        InputError: no such file, none of a known kind, a TorchScript program, or whatever its reader refuses.
    """
    name = os.fspath(named)
    forced = name.startswith(_PREFIX) and not os.path.lexists(name)
    path = Path(name.removeprefix(_PREFIX) if forced else name)
    if path.is_dir() and not forced:
        return None
    kind = "onnx" if forced and path.is_file() else sniff.kind(path)
    if kind in ("torch", "safetensors"):
        return None
    quoted = shown(str(path), 200)
    if kind == "torchscript":
        # Its code runs in an interpreter of torch's, but that has operators that read and write files
        # (torch.from_file makes a file of any name, and memory that is written is written to it): loading and running
        # such a program of a stranger is running code of a stranger.
        raise InputError(
            f"{quoted} is a TorchScript program, not a state dict: load it in Python with torch.jit.load, if you trust "
            "it, since it can write files, or name code of yours that does so (FILE.py:FACTORY); or export the network "
            "to ONNX or with torch.export."
        )
    if any(one is not None and one != {} for one in asked):
        what = "an ONNX file" if kind == "onnx" else "a torch.export program"
        raise InputError(
            f"{quoted} is {what}, which holds a whole computation and no weights for another network: name it alone, "
            "or give a checkpoint."
        )
    if kind == "onnx":
        from pellucid.core.network.blackbox.onnx import read_onnx

        return read_onnx(path)
    from pellucid.core.network.blackbox.pt2 import read_pt2

    return read_pt2(path)
