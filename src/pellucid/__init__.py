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
    "convert": "core.convert",
    "fold": "core.fold",
    "FastDeconv1d": "whiten.layers",
    "FastDeconv2d": "whiten.layers",
    "FastDeconv3d": "whiten.layers",
    "FastDeconvTranspose2d": "whiten.layers",
    "FastDeconvLinear": "whiten.layers",
    "ChannelDeconv": "whiten.layers",
    "CSC1d": "sparse.layers",
    "CSC2d": "sparse.layers",
    "CSC3d": "sparse.layers",
    "visualize": "sparse.visualize",
    "ClassFilters": "decompose.select",
    "DecomposedHead": "decompose.head",
    "remove_class": "decompose.edit",
    "reweight": "decompose.edit",
    "class_gates": "decompose.gates",
    "Inversion": "invert.optimize",
    "synthesize": "distill.synthesize",
    "assess": "distill.assess",
    "Distilled": "distill.student",
    "open": "audit.page",
}
_ALIAS = {"load_data": "load"}  # public name -> name at home, where they differ
_MODULES = ("functional", "decompose", "distill", "invert", "subnet")  # folders called like the function they are for

__all__ = [*_HOME, *_MODULES, "__version__"]

if TYPE_CHECKING:
    from pellucid import functional as functional
    from pellucid.audit.page import open as open
    from pellucid.core.checkpoint import load as load
    from pellucid.core.checkpoint import save as save
    from pellucid.core.convert import convert as convert
    from pellucid.core.corrupt import corrupt as corrupt
    from pellucid.core.data import load as load_data  # noqa: F401
    from pellucid.core.errors import InputError as InputError
    from pellucid.core.fold import fold as fold
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
    from pellucid.decompose.edit import remove_class as remove_class
    from pellucid.decompose.edit import reweight as reweight
    from pellucid.decompose.gates import class_gates as class_gates
    from pellucid.decompose.head import DecomposedHead as DecomposedHead
    from pellucid.decompose.select import ClassFilters as ClassFilters
    from pellucid.decompose.select import decompose as decompose
    from pellucid.distill.assess import assess as assess
    from pellucid.distill.student import Distilled as Distilled
    from pellucid.distill.student import distill as distill
    from pellucid.distill.synthesize import synthesize as synthesize
    from pellucid.invert.optimize import Inversion as Inversion
    from pellucid.invert.optimize import invert as invert
    from pellucid.sparse.layers import CSC1d as CSC1d
    from pellucid.sparse.layers import CSC2d as CSC2d
    from pellucid.sparse.layers import CSC3d as CSC3d
    from pellucid.sparse.visualize import visualize as visualize
    from pellucid.subnet.layers import subnet as subnet
    from pellucid.whiten.layers import ChannelDeconv as ChannelDeconv
    from pellucid.whiten.layers import FastDeconv1d as FastDeconv1d
    from pellucid.whiten.layers import FastDeconv2d as FastDeconv2d
    from pellucid.whiten.layers import FastDeconv3d as FastDeconv3d
    from pellucid.whiten.layers import FastDeconvLinear as FastDeconvLinear
    from pellucid.whiten.layers import FastDeconvTranspose2d as FastDeconvTranspose2d


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"pellucid.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'pellucid' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pellucid.{_HOME[name]}"), _ALIAS.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
