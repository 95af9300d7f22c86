r"""Fold a network into plain convolutions: whatever a layer adds in training goes into the weights for evaluation.

A layer's method `folded_module()` returns the plain module that it amounts to, so this file names no layer. Weights
under torch's parametrizations are replaced by their values. Batch norm, $y = \gamma (z - \mu) / \sigma + \beta$, goes
into the convolution or linear layer that computes z, if that layer feeds nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pellucid.core.errors import InputError, first_line
from pellucid.core.facts import declare, facts, unwrapped
from pellucid.core.network.agreement import distance, tensors
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.network.duplicate import duplicate
from pellucid.core.network.fuse import fuse_norms
from pellucid.core.network.parametrized import without
from pellucid.core.network.plain import CONVOLUTIONS
from pellucid.core.network.swap import Changes, merged, swap


@runtime_checkable
class Foldable(Protocol):
    """A layer that amounts to a plain module in evaluation."""

    def folded_module(self) -> nn.Module:
        """That module, with weights of its own."""
        ...


@runtime_checkable
class FoldableByAxes(Protocol):
    """A layer that amounts to a plain module in evaluation, which depends on the number of axes of its input."""

    def folded_for(self, axes: int | None) -> nn.Module:
        """That module, with weights of its own; `axes` is None if the number is not known."""
        ...


def folded_module(layer: nn.Module, axes: int | None = None) -> nn.Module | None:
    """The plain module that `layer` amounts to in evaluation, with weights of its own; None if it does not fold."""
    if isinstance(layer, Foldable):
        return layer.folded_module()
    if isinstance(layer, FoldableByAxes):
        return layer.folded_for(axes)
    if isinstance(layer, CONVOLUTIONS | nn.Linear) and parametrize.is_parametrized(layer):
        return _without_parametrizations(layer)
    return None


def _without_parametrizations(layer: nn.Module) -> nn.Module:
    """A copy of `layer` whose parameters are the values that its parametrizations compute now."""
    parametrizations = cast(nn.ModuleDict, layer.parametrizations)
    trained = any(parameter.requires_grad for parameter in parametrizations.parameters())
    values = {name: getattr(layer, name).detach().clone() for name in parametrizations}
    return without(layer, {name: nn.Parameter(value, requires_grad=trained) for name, value in values.items()})


def fold(model: nn.Module, example: Tensor | None = None, *, tolerance: float = 1e-5) -> nn.Module:
    """Copy `model` into plain layers: first fold the layers that can be, then batch norm.

    Layers keep their dotted names. Both networks are run on `example`, and their outputs are compared.

    Args:
        model: any network; it is not changed. Whatever mode it is in, what it computes in evaluation mode is folded.
        example: a batch of inputs as the model expects them; default four random images of the size that its
            description states.
        tolerance: largest difference between outputs, relative to the largest output.

    Returns:
        The folded network, in evaluation mode. Its facts (`pellucid.facts`) say what changed: `changes` is a list with
        one `Change` per layer, `changes.left` gives, by name, the reason why other batch norm stays, and `difference`
        is the difference found. `description`, if the model has one, says that it is folded, so that it can be saved
        and loaded.

    Raises:
        InputError: no example where one is needed, a layer that cannot be folded, or outputs that differ by more than
            `tolerance`.
    """
    needs_layers(model, "Folding")
    model = unwrapped(model)
    folded = duplicate(model).eval()
    if example is None:
        example = _random_images(folded)
    with torch.no_grad():
        expected, axes = _outputs_and_axes(folded, example)
        if (whole := folded_module(folded, axes.get(""))) is not None:
            folded, changes = whole.eval(), Changes()
        else:
            changes = _fold_in_place(folded, axes)
        try:
            found = list(tensors(folded(example)))
        except Exception as error:  # a model may use its layers in ways that a plain module does not support
            raise InputError(
                f"The folded network does not run ({first_line(error)}): leave this model unfolded."
            ) from error
    difference = distance(expected, found)
    if not difference <= tolerance:
        raise InputError(
            f"The folded network's outputs differ by {difference:.2g} of the largest, more than "
            f"tolerance={tolerance:g}: leave this model unfolded, or allow more."
        )
    description = facts(folded).description
    if description is not None:
        description = {**description, "folded": True}
    return declare(folded, changes=changes, difference=difference, description=description)


def fold_structure(model: nn.Module) -> None:
    """Replace the layers of a freshly built `model` in place as `fold` would, so that weights can be loaded.

    Raises:
        InputError: a layer that can only be folded with an example.
    """
    with torch.no_grad():
        _fold_in_place(model, {})


def _fold_in_place(model: nn.Module, axes: Mapping[str, int]) -> Changes:
    """Fold layers, then batch norm."""
    layers = swap(model, lambda whole: dict(_plain_modules(whole, axes)))
    norms = fuse_norms(model)
    return merged(model, layers, norms)


def _plain_modules(model: nn.Module, axes: Mapping[str, int]) -> Iterator[tuple[str, nn.Module]]:
    done = "\0"
    for name, module in model.named_modules():
        if name and not name.startswith(done) and (plain := folded_module(module, axes.get(name))) is not None:
            yield name, plain
            done = f"{name}."


def _outputs_and_axes(model: nn.Module, example: Tensor) -> tuple[list[Tensor], dict[str, int]]:
    """The outputs of `model`, and the number of axes of each layer's input."""
    axes: dict[str, int] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                axes[name] = inputs[0].dim()

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    try:
        return [tensor.clone() for tensor in tensors(model(example))], axes
    except RuntimeError as error:
        raise InputError(f"The model cannot take the example {tuple(example.shape)}: {first_line(error)}.") from error
    finally:
        for handle in handles:
            handle.remove()


def _random_images(model: nn.Module) -> Tensor:
    """Four images of standard normal pixels, as normalised images roughly are; always the same ones."""
    description = facts(model).description
    if description is None:
        raise InputError("The model does not record the size of its images: give fold a batch of them as example.")
    shape = (4, description["in_channels"], *description["image_size"])
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sample = next(model.parameters(), None)
    return images if sample is None else images.to(sample.device, sample.dtype)
