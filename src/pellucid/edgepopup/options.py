"""The options of edge-popup, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pellucid.core.errors import InputError
from pellucid.edgepopup.draw import INITS, Init
from pellucid.edgepopup.mask import check_keep


@dataclass(frozen=True)
class Options:
    """How a network is masked; `pellucid.subnet` explains each option.

    Raises InputError for values out of range, or that exclude each other.
    """

    keep: float = 0.3
    ranking: Literal["layer", "global"] = "layer"
    init: Init = "signed_constant"
    scale_fan: bool = False
    affine: bool = False
    binary: bool = False
    anneal: int = 0
    redraw: int = 0
    redraw_share: float = 0.1

    def __post_init__(self) -> None:
        check_keep(self.keep)
        rules = [
            (self.ranking in ("layer", "global"), f"ranking={self.ranking!r} is unknown: choose layer or global"),
            (self.init in INITS, f"init={self.init!r} is unknown: choose one of {', '.join(INITS)}"),
            (self.anneal >= 0, f"anneal={self.anneal} is out of range: give a number of training steps, 0 for none"),
            (self.redraw >= 0, f"redraw={self.redraw} is out of range: give a number of training steps, 0 for never"),
            (
                0 < self.redraw_share <= 1,
                f"redraw_share={self.redraw_share} is out of range: give a fraction above 0, at most 1",
            ),
            (
                not self.redraw or self.init != "given",
                f"redraw={self.redraw} replaces drawn weights, and init='given' draws none: choose another init",
            ),
            (
                not self.scale_fan or self.init != "given",
                "scale_fan=True scales drawn weights, and init='given' draws none: choose another init",
            ),
        ]
        for holds, sentence in rules:
            if not holds:
                raise InputError(f"{sentence}.")
