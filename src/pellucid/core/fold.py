r"""Fold a network into plain convolutions: what a layer adds in training goes into the weights for evaluation.

A layer says what plain module it amounts to by a method `folded_module()`, or whoever owns its type registers a
function for it: this file names no layer. What torch's parametrizations make of weights becomes the weights. Batch
norm, $y = \gamma (z - \mu) / \sigma + \beta$, goes into the convolution or linear layer that makes z, where that layer
feeds nothing else.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from pellucid.core.errors import InputError, first_line
from pellucid.core.swap import Changes, is_plain, load_ideas, module_at, swap, without_norm

_CONVS = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
_NORMS = nn.modules.batchnorm._BatchNorm


@runtime_checkable
class Foldable(Protocol):
    """A layer that is a plain module in evaluation."""

    def folded_module(self) -> nn.Module: ...


_FOLDS: dict[type[nn.Module], Callable[[Any, int | None], nn.Module]] = {}


def register(kind: type[nn.Module], function: Callable[[Any, int | None], nn.Module]) -> None:
    """Make `function(layer, axes)` the plain module of every layer of type `kind` or a subclass of it.

    axes: how many the layer's input has, None where that is not known.
    """
    _FOLDS[kind] = function


def folded_module(layer: nn.Module, axes: int | None = None) -> nn.Module | None:
    """The plain module that `layer` is in evaluation, with weights of its own; None if it does not fold."""
    if isinstance(layer, Foldable):
        return layer.folded_module()
    for kind in type(layer).__mro__:
        if kind in _FOLDS:
            return _FOLDS[kind](layer, axes)
    if isinstance(layer, _CONVS | nn.Linear) and parametrize.is_parametrized(layer):
        return _without_parametrizations(layer)
    return None


def _without_parametrizations(layer: nn.Module) -> nn.Module:
    """A copy of `layer` with the values that its parametrizations make now as parameters of its own."""
    parametrizations = cast(nn.ModuleDict, layer.parametrizations)
    trained = any(parameter.requires_grad for parameter in parametrizations.parameters())
    stand_in = nn.Module()  # the values are not worth copying, and may refer to other layers
    plain = copy.deepcopy(layer, {id(part): stand_in for part in parametrizations.modules()})
    plain.__class__ = type(layer).__bases__[0]  # the class that torch's parametrized one is made from
    del plain._modules["parametrizations"]
    for number, hook in list(plain._forward_pre_hooks.items()):
        if getattr(hook, "__self__", None) is stand_in:
            del plain._forward_pre_hooks[number]
    for name in parametrizations:
        value = getattr(layer, name).detach().clone()
        plain.register_parameter(name, nn.Parameter(value, requires_grad=trained))
    return plain


def fold(model: nn.Module, example: Tensor | None = None, *, tolerance: float = 1e-5) -> nn.Module:
    """A copy of `model` in evaluation mode, of plain layers: layers that can fold, then batch norm.

    Layers keep their dotted names. Both networks are run on `example`, and their outputs compared.

    Args:
        model: any network; it stays as it is. It is folded as it evaluates, whatever mode it is in.
        example: a batch of its input, as it expects it; default four random images of the size that its description
            tells.
        tolerance: largest difference between outputs, relative to the largest output.

    Returns:
        The folded network, with `changes` (a table, whose `left` names the batch norm that stays and why) and
        `difference` (the measured one). Its `description`, if the model has one, says that it is folded, so that
        it can be saved and loaded.

    Raises:
        InputError: no example where one is needed, a layer that cannot fold, or outputs that differ by more.
    """
    load_ideas()
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    folded = copy.deepcopy(model).eval()
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
        except Exception as error:  # a model may call its layers in ways of its own
            raise InputError(
                f"The folded network does not run ({first_line(error)}): leave this model unfolded."
            ) from error
    difference = distance(expected, found)
    if not difference <= tolerance:
        raise InputError(
            f"The folded network's outputs differ by {difference:.2g} of the largest, more than "
            f"tolerance={tolerance:g}: leave this model unfolded, or allow more."
        )
    vars(folded).update(changes=changes, difference=difference)
    if isinstance(description := getattr(folded, "description", None), Mapping):
        vars(folded).update(description={**description, "folded": True})
    return folded


def fold_structure(model: nn.Module) -> None:
    """Give a freshly built `model` in place the layers that `fold` would, for weights to be loaded into.

    Raises InputError for a layer that folds only with an example at hand.
    """
    load_ideas()
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


def fuse_norms(model: nn.Module, only: set[str] | None = None) -> Changes:
    """Put batch norm, as it evaluates, into the layer that feeds it, in place; `only` these names, default all.

    A norm can go where its input is the output of a plain convolution or linear layer, both run once, and nothing
    else reads that output. Control flow that cannot be traced keeps all of them. The changes' `left` tells why.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _NORMS)}
    if only is not None:
        norms = {name: module for name, module in norms.items() if name in only}
    if not norms:
        return Changes()
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer().trace(model)
    except Exception as error:  # whatever tracing foreign code may raise
        return Changes(left=dict.fromkeys(norms, f"the network cannot be traced ({first_line(error)})"))
    finally:
        for module, mode in training:
            module.training = mode
    called: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            called.setdefault(id(module_at(model, str(node.target))), []).append(node)
    replacements: dict[str, nn.Module] = {}
    left = {}
    for name, norm in norms.items():
        fed = _feeder(model, norm, called)
        rest = without_norm(norm)
        if isinstance(fed, str) or rest is None:
            left[name] = str(fed)
        else:
            replacements |= {fed[0]: _fused(fed[1], norm), name: rest}
    changes = swap(model, lambda whole: replacements)
    changes.left.update(left)
    return changes


def _feeder(model: nn.Module, norm: nn.Module, called: Mapping[int, list[fx.Node]]) -> tuple[str, nn.Module] | str:
    """The layer that a norm can go into, with its name, or why there is none."""
    if without_norm(norm) is None or norm.running_mean is None or norm.running_var is None:
        return "it does more than normalise, or by the batch's own moments"
    calls = called.get(id(norm), [])
    if len(calls) != 1:
        return f"it runs {len(calls)} times"
    source = calls[0].args[0] if calls[0].args else None
    if not isinstance(source, fx.Node) or source.op != "call_module":
        return "no convolution or linear layer feeds it"
    name = str(source.target)
    layer = module_at(model, name)
    if not isinstance(layer, _CONVS | nn.Linear) or not is_plain(layer):
        return f"what feeds it, {name!r}, is not a plain convolution or linear layer"
    if len(called[id(layer)]) != 1 or len(source.users) != 1:
        return f"the output of {name!r} is read elsewhere too"
    if isinstance(layer, _TRANSPOSED) and layer.groups > 1:
        return f"what feeds it, {name!r}, is a transposed convolution in groups"
    return name, layer


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """The `layer` with `norm` in its weights, which are its own."""
    values = (layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if isinstance(layer, nn.Linear):
        weight, bias = fuse_linear_bn_weights(*values)  # type: ignore[arg-type]
    else:
        weight, bias = fuse_conv_bn_weights(*values, transpose=isinstance(layer, _TRANSPOSED))  # type: ignore[arg-type]
    return holding(layer, weight, bias)


def holding(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A copy of `layer`, a convolution or linear layer, with these values as parameters of its own."""
    kept = {name: layer._parameters[name] for name in ("weight", "bias")}
    trained = kept["weight"] is None or kept["weight"].requires_grad
    memo = {id(parameter): None for parameter in kept.values() if parameter is not None}  # not worth copying
    new = copy.deepcopy(layer, memo)
    for name, value in (("weight", weight), ("bias", bias)):
        dtype = weight.dtype if kept["weight"] is None else kept["weight"].dtype
        held = None if value is None else nn.Parameter(value.detach().to(dtype).clone(), requires_grad=trained)
        new._parameters[name] = held
    return new


class _Tracer(fx.Tracer):
    """Looks into everything but the layers of interest, whatever package their class is from."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _CONVS | nn.Linear | _NORMS) or super().is_leaf_module(m, module_qualified_name)


def merged(model: nn.Module, first: Changes, second: Changes) -> Changes:
    """Two swaps of `model`, one after the other, as one table."""
    table = {change.names: change for change in first}
    for change in second:
        before = table.get(change.names, change)
        table[change.names] = type(change)(
            change.names, before.old, change.new, before.parameters_before, change.parameters_after
        )
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    rows = sorted(table.values(), key=lambda change: order.get(change.names[0], len(order)))
    return Changes(rows, first.left | second.left)


# --- the check ---


def tensors(value: object) -> Iterator[Tensor]:
    """The tensors in a network's output: a tensor, or tables and sequences of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from tensors(value[key])
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)


def distance(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference between outputs relative to the largest expected one; infinite when not finite."""
    if not expected or [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return math.inf
    distances = [0.0]
    for a, b in zip(expected, found, strict=True):
        if a.numel():
            a, b = a.detach().double(), b.detach().double()
            gap, scale = float((a - b).abs().max()), float(a.abs().max())
            if not (math.isfinite(gap) and math.isfinite(scale)) or (gap and not scale):
                return math.inf
            distances.append(gap / scale if gap else 0.0)
    return max(distances)


def _outputs_and_axes(model: nn.Module, example: Tensor) -> tuple[list[Tensor], dict[str, int]]:
    """What `model` answers, and how many axes the input of each of its layers has."""
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
    """Four images of standard normal pixels, what normalised images are about; always the same ones."""
    description = getattr(model, "description", None)
    if not isinstance(description, Mapping):
        raise InputError("The model does not say what size its images have: give fold a batch of them, example=.")
    shape = (4, description["in_channels"], *description["image_size"])
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sample = next(model.parameters(), None)
    return images if sample is None else images.to(sample.device, sample.dtype)
