"""One pass of blank images: which layers run, how many classes there are, and which statistics can be matched."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.device import check_values, fitting
from pellucid.core.errors import InputError, first_line
from pellucid.core.network.statistics import Statistics
from pellucid.core.network.statistics import statistics as read_statistics
from pellucid.inversion.space import Space


@torch.no_grad()
def probe(model: nn.Module, space: Space) -> tuple[dict[str, int], int]:
    """Pass two blank images through `model`.

    Returns:
        The number of input axes of every layer that runs, by dotted name in the order of the pass; and the number of
        classes.

    Raises:
        InputError: the network cannot take such images, or does not return logits (2, K).
    """
    check_values(model)
    ran: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():

            def note(module: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                if inputs and isinstance(inputs[0], Tensor):
                    ran[name] = inputs[0].dim()

            stack.callback(module.register_forward_pre_hook(note).remove)
        try:
            logits = model(fitting(model, torch.zeros(2, *space.shape)))
        except Exception as error:  # a module of the user's may fail in any way
            size = "x".join(map(str, space.shape))
            raise InputError(f"The network cannot take images of {size} ({first_line(error)}).") from None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"The network returns {what} for two images: it must return logits (2, K); wrap it with "
            "pellucid.wrap(model, logits=...)."
        )
    return ran, logits.shape[1]


def table_of(model: nn.Module, given: Statistics | None, ran: Mapping[str, int]) -> Statistics:
    """The statistics to match, in the order in which the layers run.

    Args:
        model: a network.
        given: statistics recorded with it; default those that it stores itself.
        ran: the layers that run, in order.

    Raises:
        InputError: a layer of `given` does not run, or there are no statistics.
    """
    if given is None:
        own = read_statistics(model)
        given = Statistics({name: entry for name, entry in own.items() if name in ran})
    idle = [name for name in given if name not in ran]
    if idle or not given:
        name = idle[0] if idle else "of the table"
        raise InputError(f"Layer {name!r} does not run in this network: record statistics with it, or leave it out.")
    return Statistics({name: given[name] for name in ran if name in given})
