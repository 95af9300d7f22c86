"""Labelled images as a stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

# --- data ---


@dataclass
class Pairs:
    """Images and labels as a stream of (images (B, ...), labels (B,)), and what is known of the classes.

    Iterating again passes over the images again, unless they came as a generator.
    """

    open: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    classes: tuple[str, ...] | None
    title: str

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.open()
