"""The ReLUs and batch norms around new sparse codes: what goes, and where running moments start."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from pellucid.core.modes import evaluating
from pellucid.core.network.plain import BATCH_NORMS, CONVOLUTIONS
from pellucid.core.network.rules import Replacements
from pellucid.core.network.tap import module_at
from pellucid.sparse.layers import CSC


class NoShortcut(nn.Module):
    """Nothing, in the place of a residual block's shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def take_out_rectifiers(model: nn.Module, found: Replacements) -> None:
    """Add to `found` an identity for every ReLU that rectifies only codes, or their batch norm.

    An untrained batch norm after a new code is replaced as well, by one whose running moments fit codes.
    """
    new = {name for name, module in found.items() if isinstance(module, CSC)}
    if not new:
        return
    codes = new | {name for name, module in model.named_modules() if isinstance(module, CSC)}
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever tracing foreign code may raise
        first = str(error).partition("\n")[0]
        found.left["ReLU"] = f"stays everywhere, since the network cannot be traced ({first})"
        return
    bare = {name for name, module in found.items() if isinstance(module, NoShortcut)}
    calls: dict[str, list[bool]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(module_at(model, str(node.target)), nn.ReLU):
            source = _source(model, node.args[0], bare)
            calls.setdefault(str(node.target), []).append(source in codes)
        if node.op == "call_module" and str(getattr(node.args[0] if node.args else None, "target", "")) in new:
            norm, code = module_at(model, str(node.target)), cast(CSC, found[str(cast(fx.Node, node.args[0]).target)])
            if isinstance(norm, BATCH_NORMS) and not code.norm.is_meta and not code.published and _is_fresh(norm):
                found[str(node.target)] = _begun(norm, code)
    for name, of_codes in calls.items():
        if all(of_codes):
            found[name] = nn.Identity()
        elif any(of_codes):
            found.left[name] = "ReLU rectifies more than codes"


def _is_fresh(norm: nn.Module) -> bool:
    """Whether a batch norm holds the moments that it begins with; a checkpoint may lack the counter of batches."""
    counted, mean, var = (getattr(norm, name) for name in ("num_batches_tracked", "running_mean", "running_var"))
    if mean is None or (counted is not None and counted != 0):
        return False
    return not mean.any() and bool((var == 1).all())


@torch.no_grad()
def _begun(norm: nn.Module, code: CSC) -> nn.Module:
    """A new batch norm like `norm`, whose running moments start from those of codes of white noise.

    The variance of a code is about a hundredth of 1, where they would start by default: until that has faded, a network
    in evaluation would predict the same for every input.
    """
    size = [3 * (dilation * (k - 1) + 1) for k, dilation in zip(code.kernel_size, code.dilation, strict=True)]
    noise = torch.randn(4, code.in_channels, *size, generator=torch.Generator().manual_seed(0)).to(code.norm)
    with evaluating(code):
        z = code(noise)
    # A copy, not a new one: a class derived from batch norm may have an activation, or anything else, of its own.
    begun = copy.deepcopy(norm, {id(parameter): parameter for parameter in norm.parameters()})
    cast(Tensor, begun.running_mean).fill_(z.mean())
    cast(Tensor, begun.running_var).fill_(z.var())
    return begun


def _source(model: nn.Module, node: Any, bare: set[str]) -> str:
    """The layer whose output `node` is, seen through batch norm and sums with nothing; empty if there is none."""
    while isinstance(node, fx.Node):
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "add":
            terms = [term for term in node.args if not (isinstance(term, fx.Node) and str(term.target) in bare)]
            node = terms[0] if len(terms) == 1 else None
        elif node.op == "call_module" and isinstance(module_at(model, str(node.target)), BATCH_NORMS | nn.Identity):
            node = node.args[0]
        else:
            return str(node.target) if node.op == "call_module" else ""
    return ""


class _Tracer(fx.Tracer):
    """Traces into everything but convolutions, norms and shortcuts, whatever package their class is from."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        named = module_qualified_name.rpartition(".")[2] == "downsample"
        kinds = (CONVOLUTIONS, nn.Linear, BATCH_NORMS)
        return named or isinstance(m, kinds) or super().is_leaf_module(m, module_qualified_name)
