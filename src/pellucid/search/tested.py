"""Which of the numbers that commands write are measured on test images: a search never ranks by these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from pellucid.core.errors import InputError


def refuse_tested(file: str, keys: Sequence[str]) -> None:
    """Check that the score FILE:KEYS is not measured on test images, as far as its name tells.

    Raises:
        InputError: it is; the message names the score to rank by instead, where the command writes one.
    """
    name, first = PurePath(file).name, keys[0]
    instead = None
    if name == "distill.json" and {"accuracy", "interval"} & set(keys):
        instead = f"{file}:{first}.validation"
    elif name == "result.json" and first == "test":
        instead = f"{file}:best.val_accuracy"
    elif name == "result.json" and first == "accuracy":
        instead = "a number that is not measured on test images"
    elif name == "audit.json" and first != "learning":
        instead = f"{file}:learning.best_val_accuracy"
    if instead is not None:
        raise InputError(
            f"The score {file}:{'.'.join(keys)} is measured on test images, and what is tuned on them cannot be tested "
            f"on them any more: rank by {instead}."
        )
