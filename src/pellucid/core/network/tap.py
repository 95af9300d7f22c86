"""Find a layer by its dotted name, and see what flows through it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from pellucid.core.errors import InputError


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The layer of `model` at the dotted `name`.

    Raises:
        InputError: there is none; the message lists the nearest names.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = [known for known, _ in model.named_modules() if known]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        listed = ", ".join(near) or "none: it has no layers"
        raise InputError(f"The model has no layer {name!r}; the nearest names are {listed}.") from None


@dataclass
class Tapped:
    """The last `input` (first positional argument) and `output` of a layer, and how often it ran."""

    input: Any = None
    output: Any = None
    calls: int = 0


@contextlib.contextmanager
def tap(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tapped]]:
    """While the block runs, keep the input and output of the layers `names` (dotted) in every forward pass.

    The tensors are the live ones: gradients flow through them. Of a layer that runs several times, the last run is
    kept; `calls` counts the runs.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with tap(net, ["0"]) as taps:
        ...     _ = net(torch.ones(1, 2))
        >>> tuple(taps["0"].output.shape)
        (1, 3)

    Raises:
        InputError: an unknown name; the message lists the nearest ones.
    """
    taps: dict[str, Tapped] = {}

    def keep(record: Tapped) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            record.input = inputs[0] if inputs else None
            record.output = output
            record.calls += 1

        return hook

    with contextlib.ExitStack() as stack:
        for name in names:
            taps[name] = Tapped()
            handle = module_at(model, name).register_forward_hook(keep(taps[name]))
            stack.callback(handle.remove)
        yield taps
