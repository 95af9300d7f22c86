"""Convolutional networks you can see through.

The names below are the public ones; each is imported when it is first used. What is not listed is not promised.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "InputError": "core.errors",
    "build": "core.models",
    "load": "core.checkpoint",
    "save": "core.checkpoint",
    "load_data": "core.data",
    "train": "core.train",
    "TrainSettings": "core.settings",
    "evaluate": "core.metrics",
    "corrupt": "core.corrupt",
    "statistics": "core.statistics",
    "Statistics": "core.statistics",
    "Moments": "core.statistics",
    "swap": "core.swap",
    "twin": "core.swap",
    "tap": "core.swap",
    "open": "audit.page",
}
_ALIAS = {"load_data": "load"}  # public name -> name at home, where they differ

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from pellucid.audit.page import open as open
    from pellucid.core.checkpoint import load as load
    from pellucid.core.checkpoint import save as save
    from pellucid.core.corrupt import corrupt as corrupt
    from pellucid.core.data import load as load_data  # noqa: F401
    from pellucid.core.errors import InputError as InputError
    from pellucid.core.metrics import evaluate as evaluate
    from pellucid.core.models import build as build
    from pellucid.core.settings import TrainSettings as TrainSettings
    from pellucid.core.statistics import Moments as Moments
    from pellucid.core.statistics import Statistics as Statistics
    from pellucid.core.statistics import statistics as statistics
    from pellucid.core.swap import swap as swap
    from pellucid.core.swap import tap as tap
    from pellucid.core.swap import twin as twin
    from pellucid.core.train import train as train


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pellucid' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pellucid.{_HOME[name]}"), _ALIAS.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
