"""Decide which network a foreign checkpoint is of, and say so; where several meanings fit, let the user choose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pellucid.core.errors import InputError, shown
from pellucid.core.files.align import align, complaint
from pellucid.core.network import described, models
from pellucid.core.network.recognize import Meaning, meanings, nearest
from pellucid.core.references import is_code

_LISTED = 6


def recognized(file: Path, state: Mapping[str, Tensor], remarks: list[str]) -> str:
    """The name of the one known network that `state` fits; what was found is added to `remarks`.

    Raises:
        InputError: none fits, or several that compute different things; the message lists them.
    """
    found = meanings(state) or [Meaning((name,), "") for name in fitting_names(state)]
    where = shown(str(file), 300)
    if len(found) > 1:
        listed = "; ".join(map(str, found[:_LISTED])) + ("; ..." if len(found) > _LISTED else "")
        raise InputError(
            f"{where} fits {len(found)} networks that compute different things: {listed}. Choose one with --model."
        )
    if found:
        name, *same = found[0].names
        also = f" ({same[0]} is the same)" if same else ""
        remarks.append(f"Recognised as {name}{also} by the names and shapes of its tensors.")
        return name
    raise InputError(_nothing(file, state))


def other_meanings(model: str, state: Mapping[str, Tensor]) -> list[str]:
    """A sentence where the tensors of the network `model` fit others too, which compute something else; or nothing."""
    if is_code(model):
        return []
    found = meanings(state)
    others = [meaning for meaning in found if model not in meaning.names]
    if len(others) == len(found) or not others:
        return []
    listed = "; ".join(map(str, others[:_LISTED]))
    return [f"Its tensors also fit {listed}: name that with --model if it is what the file is of."]


def remedy(state: Mapping[str, Tensor]) -> str:
    """What to do about a network that `state` does not fit: name one that it does fit, or load what fits."""
    fits = [meaning.names[0] for meaning in meanings(state)] or fitting_names(state)
    if fits:
        return f"{' or '.join(f'--model {name}' for name in fits[:3])} fits"
    return "name the model that it holds, or load what fits with --strict false"


def fitting_names(state: Mapping[str, Tensor]) -> list[str]:
    """The built-in architectures that have exactly the tensors in `state`."""
    fits = []
    for name in models.names():
        try:
            description = described.describe(state, name)
            with torch.device("meta"):
                expected = models.rebuild(description).state_dict()
        except InputError:
            continue
        if not any(align(state, expected)[1].values()):
            fits.append(name)
    return fits


def _nothing(file: Path, state: Mapping[str, Tensor]) -> str:
    """What to say of tensors that no known network has: the nearest one, and what does not fit."""
    todo = "name its architecture with --model, or your own code as --model FILE.py:FACTORY"
    for name in nearest(state, 1):
        try:
            expected = described.outline(name).state_dict()
        except InputError:  # its library is not installed
            continue
        report = align(state, expected)[1]
        return complaint(file, f"{name}, the nearest known network", report, todo)
    return f"{shown(str(file), 300)} holds no network that is known here: {todo}."
