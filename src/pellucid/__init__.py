"""Convolutional networks you can see through.

The names below are the public ones; each is imported when it is first used. What is not listed is not promised.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "InputError": "core.errors",
    "facts": "core.facts",
    "declare": "core.facts",
    "ModelFacts": "core.facts",
    "Normalization": "core.facts",
    "build": "core.network.models",
    "load": "core.network.checkpoint",
    "save": "core.network.checkpoint",
    "load_data": "core.data.dataset",
    "train": "core.train.loop",
    "TrainSettings": "core.train.settings",
    "evaluate": "core.measure.evaluate",
    "corrupt_images": "core.measure.corrupt",
    "statistics": "core.network.statistics",
    "Statistics": "core.network.statistics",
    "Moments": "core.network.statistics",
    "swap": "core.network.swap",
    "twin": "core.network.swap",
    "tap": "core.network.tap",
    "wrap": "core.network.wrap",
    "convert": "core.network.convert",
    "fold": "core.network.fold",
    "export": "core.network.export.export",
    "FastDeconv1d": "whiten.layers",
    "FastDeconv2d": "whiten.layers",
    "FastDeconv3d": "whiten.layers",
    "FastDeconvTranspose2d": "whiten.layers",
    "FastDeconvLinear": "whiten.layers",
    "ChannelDeconv": "whiten.layers",
    "CSC1d": "sparse.layers",
    "CSC2d": "sparse.layers",
    "CSC3d": "sparse.layers",
    "visualize": "views.visualize",
    "subnet": "edgepopup.subnet",
    "masks": "edgepopup.layers",
    "pack": "edgepopup.store",
    "bake": "edgepopup.plain",
    "decompose": "classfilters.find",
    "ClassFilters": "classfilters.sets",
    "DecomposedHead": "classfilters.head",
    "remove_class": "classfilters.edit",
    "reweight": "classfilters.edit",
    "class_gates": "classfilters.gates",
    "invert": "inversion.invert",
    "Inversion": "inversion.optimize",
    "Recipe": "inversion.presets",
    "recipe": "inversion.presets",
    "reconstruct": "inversion.representation",
    "synthesize": "distillation.synthesize",
    "assess": "distillation.assess",
    "distill": "distillation.student",
    "Distilled": "distillation.student",
    "open": "audit.page",
}

# `open` is public too, but a star import must not hide Python's own.
__all__ = [*sorted(_HOME.keys() - {"open"}), "functional", "__version__"]

if TYPE_CHECKING:
    from pellucid import functional as functional
    from pellucid.audit.page import open as open
    from pellucid.classfilters.edit import remove_class as remove_class
    from pellucid.classfilters.edit import reweight as reweight
    from pellucid.classfilters.find import decompose as decompose
    from pellucid.classfilters.gates import class_gates as class_gates
    from pellucid.classfilters.head import DecomposedHead as DecomposedHead
    from pellucid.classfilters.sets import ClassFilters as ClassFilters
    from pellucid.core.data.dataset import load_data as load_data
    from pellucid.core.errors import InputError as InputError
    from pellucid.core.facts import ModelFacts as ModelFacts
    from pellucid.core.facts import Normalization as Normalization
    from pellucid.core.facts import declare as declare
    from pellucid.core.facts import facts as facts
    from pellucid.core.measure.corrupt import corrupt_images as corrupt_images
    from pellucid.core.measure.evaluate import evaluate as evaluate
    from pellucid.core.network.checkpoint import load as load
    from pellucid.core.network.checkpoint import save as save
    from pellucid.core.network.convert import convert as convert
    from pellucid.core.network.export.export import export as export
    from pellucid.core.network.fold import fold as fold
    from pellucid.core.network.models import build as build
    from pellucid.core.network.statistics import Moments as Moments
    from pellucid.core.network.statistics import Statistics as Statistics
    from pellucid.core.network.statistics import statistics as statistics
    from pellucid.core.network.swap import swap as swap
    from pellucid.core.network.swap import twin as twin
    from pellucid.core.network.tap import tap as tap
    from pellucid.core.network.wrap import wrap as wrap
    from pellucid.core.train.loop import train as train
    from pellucid.core.train.settings import TrainSettings as TrainSettings
    from pellucid.distillation.assess import assess as assess
    from pellucid.distillation.student import Distilled as Distilled
    from pellucid.distillation.student import distill as distill
    from pellucid.distillation.synthesize import synthesize as synthesize
    from pellucid.edgepopup.layers import masks as masks
    from pellucid.edgepopup.plain import bake as bake
    from pellucid.edgepopup.store import pack as pack
    from pellucid.edgepopup.subnet import subnet as subnet
    from pellucid.inversion.invert import invert as invert
    from pellucid.inversion.optimize import Inversion as Inversion
    from pellucid.inversion.presets import Recipe as Recipe
    from pellucid.inversion.presets import recipe as recipe
    from pellucid.inversion.representation import reconstruct as reconstruct
    from pellucid.sparse.layers import CSC1d as CSC1d
    from pellucid.sparse.layers import CSC2d as CSC2d
    from pellucid.sparse.layers import CSC3d as CSC3d
    from pellucid.views.visualize import visualize as visualize
    from pellucid.whiten.layers import ChannelDeconv as ChannelDeconv
    from pellucid.whiten.layers import FastDeconv1d as FastDeconv1d
    from pellucid.whiten.layers import FastDeconv2d as FastDeconv2d
    from pellucid.whiten.layers import FastDeconv3d as FastDeconv3d
    from pellucid.whiten.layers import FastDeconvLinear as FastDeconvLinear
    from pellucid.whiten.layers import FastDeconvTranspose2d as FastDeconvTranspose2d


def __getattr__(name: str) -> Any:
    if name == "functional":
        return importlib.import_module("pellucid.functional")
    if name not in _HOME:
        raise AttributeError(f"module 'pellucid' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pellucid.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "open"])
