"""The network during a search: in evaluation mode, its weights constant and computed once; afterwards as before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from pellucid.core.modes import evaluating
from pellucid.core.network.fold import folded_module


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients of weights; parametrised weights are computed once.

    Afterwards every submodule's mode and every parameter's `requires_grad` are what they were.
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with contextlib.ExitStack() as stack:

        def restore() -> None:
            for parameter, gradient in wanted:
                parameter.requires_grad_(gradient)

        stack.callback(restore)
        stack.enter_context(evaluating(model))
        model.requires_grad_(False)
        stack.enter_context(parametrize.cached())
        yield


@contextlib.contextmanager
def folded(model: nn.Module, ran: Mapping[str, int]) -> Iterator[None]:
    """Let layers that declare statistics (whitening) compute as the plain layers that they are in evaluation.

    Args:
        model: a frozen network.
        ran: the number of input axes of every layer that runs, by dotted name.
    """
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name in ran and hasattr(module, "declared_moments"):
                plain = folded_module(module, ran[name])
                if plain is not None:
                    stack.enter_context(computing(module, plain.eval().requires_grad_(False).forward))
        yield


@contextlib.contextmanager
def computing(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let `module` compute with `forward` while the block runs."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before
