"""Make a module with other inputs or outputs a classifier: images (B, C, H, W) -> logits (B, K)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pellucid.core.errors import InputError, shown
from pellucid.core.facts import declare, facts


class Wrapped(nn.Module):
    """What `wrap` returns; the module itself is its attribute `model`."""

    def __init__(self, model: nn.Module, logits: str | int | Callable[[Any], Tensor] | None, call: Any) -> None:
        super().__init__()
        self.model = model
        self._logits, self._call = logits, call

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images) if self._call is None else self._call(self.model, images)
        return _picked(output, self._logits)


def wrap(
    model: nn.Module,
    logits: str | int | Callable[[Any], Tensor] | None = None,
    *,
    call: Callable[[nn.Module, Tensor], Any] | None = None,
) -> Wrapped:
    """`model` as a function from images to logits, for modules that return or take something else.

    Its weights, mode and facts (`pellucid.facts`) are those of `model`, which is not copied.

    Args:
        model: a module whose output holds the logits.
        logits: where in its output they are: the key of a dict or the name of an attribute, the place in a tuple or
            list, or a function of the output. Default: the output itself, or its only tensor (B, K).
        call: how the module is called with a batch of images (B, C, H, W), for one that takes more than these; default
            `model(images)`.

    Raises:
        InputError: in use, an output without such logits; the message lists what it holds.

    Example:
        >>> import torch
        >>> class Detector(nn.Linear):
        ...     def forward(self, x):
        ...         return {"features": x, "scores": super().forward(x)}
        >>> wrap(Detector(4, 2), "scores")(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    wrapped = Wrapped(model, logits, call)
    known = facts(model)
    fields = {field.name: getattr(known, field.name) for field in dataclasses.fields(known)}
    # A description builds the module without what is around it.
    declare(wrapped, **{**fields, "description": None})
    return wrapped.train(model.training)


def _picked(output: Any, logits: str | int | Callable[[Any], Tensor] | None) -> Tensor:
    if callable(logits):
        return logits(output)
    try:
        if isinstance(logits, str):
            return output[logits] if isinstance(output, Mapping) else getattr(output, logits)
        if isinstance(logits, int):
            return list(output.values())[logits] if isinstance(output, Mapping) else output[logits]
    except (KeyError, IndexError, AttributeError, TypeError):
        raise InputError(
            f"The output has no {shown(logits)}: it holds {_content(output)}; name one with logits=."
        ) from None
    if isinstance(output, Tensor):
        return output
    found = [value for _, value in _entries(output) if isinstance(value, Tensor) and value.ndim == 2]
    if len(found) != 1:
        raise InputError(
            f"The logits are not the only table in the output, which holds {_content(output)}: name them with logits=."
        )
    return found[0]


def _entries(output: Any) -> list[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, Sequence):
        return list(enumerate(output))
    return list(vars(output).items()) if hasattr(output, "__dict__") else []


def _content(output: Any) -> str:
    """What an output holds, in words."""
    listed = [
        f"{shown(name, 40)} {list(value.shape)}"
        if isinstance(value, Tensor)
        else f"{shown(name, 40)} ({type(value).__name__})"
        for name, value in _entries(output)
    ]
    return ", ".join(listed[:8]) or f"nothing, as a {type(output).__name__}"
