"""Python's random state, from which Keras seeds every initializer that is not given a seed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Leave Python's random state as it was before the block, however often the block draws from it."""
    before = random.getstate()
    try:
        yield
    finally:
        random.setstate(before)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside the block; afterwards Python's random state is what it was before."""
    with unchanged():
        random.seed(seed)
        yield
