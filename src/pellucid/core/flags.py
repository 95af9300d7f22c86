"""Flags that several commands share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.core.source import Source


@dataclass(frozen=True)
class SourceSettings:
    """What a command looks at, beside the checkpoint's name: the data, and what the checkpoint does not say of itself.

    Args:
        data: digits, cifar10[:PATH], cifar100[:PATH], folder:PATH or npz:PATH; default the run's own data.
        model: architecture of a foreign checkpoint, as in train.
        image_size: side in pixels that images are resized to; default what the model was trained on.
        mean: mean of each input channel (pixels in 0 to 1), where the checkpoint does not know it.
        std: standard deviation of each input channel, where the checkpoint does not know it.
    """

    data: str | None = None
    model: str | None = None
    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    def open(self, checkpoint: str, *, device: str = "cpu", seed: int = 0) -> Source:
        """Load `checkpoint` and its data: `core.source.open_source` with these settings.

        Raises:
            InputError: as there.
        """
        from pellucid.core.source import open_source

        return open_source(checkpoint, **dataclasses.asdict(self), device=device, seed=seed)

    def flags(self) -> list[str]:
        """The words of a command line that set the same."""
        words = []
        for name, value in dataclasses.asdict(self).items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
        return words
