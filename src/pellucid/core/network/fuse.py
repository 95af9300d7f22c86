"""Fuse batch norm into the convolution or linear layer that feeds it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from pellucid.core.errors import first_line
from pellucid.core.modes import evaluating
from pellucid.core.network.plain import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED, is_plain, without_norm
from pellucid.core.network.swap import Changes, swap
from pellucid.core.network.tap import module_at


def fuse_norms(model: nn.Module, only: set[str] | None = None) -> Changes:
    """Fuse batch norm, as it is in evaluation, into the layer that feeds it, in place.

    A norm can be fused if its input is the output of a plain convolution or linear layer, both run once, and nothing
    else reads that output. A network whose control flow cannot be traced keeps all of them.

    Args:
        model: any network.
        only: names of the norms to fuse; default all.

    Returns:
        The changes; `left` gives, by name, the reason why a norm stays.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, BATCH_NORMS)}
    if only is not None:
        norms = {name: module for name, module in norms.items() if name in only}
    if not norms:
        return Changes()
    try:
        with evaluating(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer().trace(model)
    except Exception as error:  # whatever tracing foreign code may raise
        return Changes(left=dict.fromkeys(norms, f"the network cannot be traced ({first_line(error)})"))
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
    """The name of the layer that a norm can be fused into, and the layer; or the reason why there is none."""
    if without_norm(norm) is None or norm.running_mean is None or norm.running_var is None:
        return "it does more than normalise, or normalises with the batch's own moments"
    calls = called.get(id(norm), [])
    if len(calls) != 1:
        return f"it runs {len(calls)} times"
    source = calls[0].args[0] if calls[0].args else None
    if not isinstance(source, fx.Node) or source.op != "call_module":
        return "no convolution or linear layer feeds it"
    name = str(source.target)
    layer = module_at(model, name)
    if not isinstance(layer, CONVOLUTIONS | nn.Linear) or not is_plain(layer):
        return f"what feeds it, {name!r}, is not a plain convolution or linear layer"
    if len(called[id(layer)]) != 1 or len(source.users) != 1:
        return f"the output of {name!r} is read elsewhere too"
    if isinstance(layer, TRANSPOSED) and layer.groups > 1:
        return f"what feeds it, {name!r}, is a transposed convolution in groups"
    return name, layer


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """A copy of `layer` with `norm` in its weights."""
    values = (layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if isinstance(layer, nn.Linear):
        weight, bias = fuse_linear_bn_weights(*values)  # type: ignore[arg-type]
    else:
        weight, bias = fuse_conv_bn_weights(*values, transpose=isinstance(layer, TRANSPOSED))  # type: ignore[arg-type]
    return holding(layer, weight, bias)


def holding(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A copy of `layer`, a convolution or linear layer, with these values as parameters of its own."""
    kept = {name: getattr(layer, name) for name in ("weight", "bias")}
    trained = kept["weight"] is None or kept["weight"].requires_grad
    memo = {id(parameter): None for parameter in kept.values() if parameter is not None}  # not worth copying
    new = copy.deepcopy(layer, memo)
    for name, value in (("weight", weight), ("bias", bias)):
        dtype = weight.dtype if kept["weight"] is None else kept["weight"].dtype
        held = None if value is None else nn.Parameter(value.detach().to(dtype).clone(), requires_grad=trained)
        new.register_parameter(name, held)
    return new


class _Tracer(fx.Tracer):
    """Traces into everything but the layers of interest, whatever package their class comes from."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, CONVOLUTIONS | nn.Linear | BATCH_NORMS) or super().is_leaf_module(m, module_qualified_name)
