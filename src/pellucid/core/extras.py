"""Libraries of the extras, which are installed only where they are asked for; torchvision and timm are in `vision`."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch

from pellucid.core.errors import InputError, first_line


def extra(name: str, of: str, what: str) -> ModuleType:
    """The module `name`, which the extra `of` installs.

    Args:
        name: of the module.
        of: the extra.
        what: what it is for, as the subject of a sentence: "Opening 'x.onnx'".

    Raises:
        InputError: it is missing, or cannot be imported.
    """
    version = torch.__version__.partition("+")[0]
    install = f'torch=={version} "pellucid[{of}]"'
    if importlib.util.find_spec(name) is None:
        raise InputError(
            f"{what} needs {name}, which is not installed: run pip install {install} (with torch in the same command, "
            "pip keeps the one you have)."
        )
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a half-installed library may raise
        raise InputError(
            f"{what} needs {name}, which is installed but cannot be imported ({first_line(error)}): run pip install "
            f"--force-reinstall {install}."
        ) from error
