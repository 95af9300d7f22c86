"""What an exported file says of itself: its images, classes and normalisation, as JSON under one key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization
from pellucid.core.files.structured import parse_json
from pellucid.core.ranges import Channels, Classes, Count

KEY = "pellucid"  # of ONNX metadata; a torch.export program has a file of this name, ending in .json
FORMAT = 1
_TABLE = {
    "format": int,
    "in_channels": Channels,
    "image_size": tuple[Count, Count],
    "num_classes": Classes,
    "classes": list[str] | None,
    "normalization": dict[str, list[float]] | None,
    "batch": Count | None,
    "folded": bool,
    "opset": Count | None,
}


@dataclass(frozen=True)
class About:
    """What an exported file says of itself.

    Attributes:
        in_channels, image_size: of its images (batch, in_channels, *image_size).
        num_classes: number of logits per image.
        classes: their names, if known.
        normalization: of its images, if known.
        batch: number of images that it takes at a time; None for any.
        folded: whether whitening, masks and batch norm were folded into convolutions.
        opset: version of ONNX's operators; None for a torch.export program.
    """

    in_channels: int
    image_size: tuple[int, int]
    num_classes: int
    classes: tuple[str, ...] | None = None
    normalization: Normalization | None = None
    batch: int | None = None
    folded: bool = False
    opset: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "in_channels": self.in_channels,
            "image_size": list(self.image_size),
            "num_classes": self.num_classes,
            "classes": None if self.classes is None else list(self.classes),
            "normalization": None if self.normalization is None else self.normalization.to_json(),
            "batch": self.batch,
            "folded": self.folded,
            "opset": self.opset,
        }

    def text(self) -> str:
        """What the file stores."""
        return json.dumps({"format": FORMAT, "command": "export", **self.to_json()})

    @classmethod
    def parse(cls, text: str | bytes, what: str) -> About:
        """Read what a file stores.

        Args:
            text: from any origin.
            what: begins the error message, such as "'x.onnx' is damaged".

        Raises:
            InputError: it is not of this form, or contradicts itself.
        """
        found = parse_json(text, what, _TABLE)
        if found["format"] != FORMAT:
            raise InputError(f"{what}: it was written by another version of pellucid; export the network again.")
        classes = found["classes"]
        if classes is not None and len(classes) != found["num_classes"]:
            raise InputError(f"{what}: it names {len(classes)} classes for {found['num_classes']} logits.")
        try:
            normalization = Normalization.of(found["normalization"])
        except InputError:
            raise InputError(f"{what}: its normalization is not a valid mean and std.") from None
        if normalization is not None and normalization.channels != found["in_channels"]:
            raise InputError(f"{what}: its normalization is not for {found['in_channels']} channels.")
        return cls(
            in_channels=found["in_channels"],
            image_size=(found["image_size"][0], found["image_size"][1]),
            num_classes=found["num_classes"],
            classes=None if classes is None else tuple(classes),
            normalization=normalization,
            batch=found["batch"],
            folded=found["folded"],
            opset=found["opset"],
        )
