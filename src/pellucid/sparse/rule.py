"""The layer rules "csc" and "csc-all": networks whose first, or every, convolution is a sparse code (SDNet)."""

from __future__ import annotations

import inspect
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn

from pellucid.core.errors import InputError
from pellucid.core.network.models.resnet import BasicBlock, Bottleneck
from pellucid.core.network.plain import is_plain
from pellucid.core.network.rules import Replacements, Rule
from pellucid.core.network.swap import twin
from pellucid.core.network.tap import module_at
from pellucid.sparse.fista import Schedule
from pellucid.sparse.layers import CSC, CSC1d, CSC2d, CSC3d
from pellucid.sparse.solve import start

_TWINS: dict[type[nn.Module], type[CSC]] = {nn.Conv1d: CSC1d, nn.Conv2d: CSC2d, nn.Conv3d: CSC3d}
_NORMS = nn.modules.batchnorm._BatchNorm
_DEFAULTS = {name: option.default for name, option in inspect.signature(CSC.__init__).parameters.items()}


def csc(
    *,
    lam: float = _DEFAULTS["lam"],
    mu: float = _DEFAULTS["mu"],
    n_steps: int = _DEFAULTS["n_steps"],
    nonnegative: bool = _DEFAULTS["nonnegative"],
    n_dict: int = _DEFAULTS["n_dict"],
    square_noise: bool = _DEFAULTS["square_noise"],
    schedule: Schedule = _DEFAULTS["schedule"],
    differentiate: Literal["unrolled", "implicit"] = _DEFAULTS["differentiate"],
    published: bool = _DEFAULTS["published"],
) -> Rule:
    """The rule that makes a network's first convolution a sparse coding layer (SDNet-18 of ResNet-18).

    The convolution's weights become the dictionary, with atoms scaled to norm 1. A bias goes, and so does the ReLU
    that follows the layer or its batch norm: a code has the non-linearity in it.

    Args:
        lam: weight of the code's absolute values.
        mu: weight of half the code's squares.
        n_steps: steps towards the code, 2 n_steps - 1 convolutions.
        nonnegative: codes are at least 0.
        n_dict: dictionaries, each of which is to give the image by the same code.
        square_noise: minimise the residual's square, not its norm.
        schedule: published, long, greedy or barzilai-borwein steps.
        differentiate: unrolled through the steps, or implicit at convergence.
        published: the published training arithmetic, with weights scaled in place and 50 steps of power iteration.
    """
    return _Rule({**locals()}, everywhere=False, shortcuts=True)


def csc_all(
    *,
    shortcuts: bool = True,
    lam: float = _DEFAULTS["lam"],
    mu: float = _DEFAULTS["mu"],
    n_steps: int = _DEFAULTS["n_steps"],
    nonnegative: bool = _DEFAULTS["nonnegative"],
    n_dict: int = _DEFAULTS["n_dict"],
    square_noise: bool = _DEFAULTS["square_noise"],
    schedule: Schedule = _DEFAULTS["schedule"],
    differentiate: Literal["unrolled", "implicit"] = _DEFAULTS["differentiate"],
    published: bool = _DEFAULTS["published"],
) -> Rule:
    """The rule that makes every convolution but the 1x1 ones a sparse coding layer (SDNet-18-All of ResNet-18).

    A ReLU stays where it follows a residual block's sum.

    Args:
        shortcuts: keep the blocks' residual connections (built-in residual networks).
        lam: weight of the code's absolute values.
        mu: weight of half the code's squares.
        n_steps: steps towards the code, 2 n_steps - 1 convolutions.
        nonnegative: codes are at least 0.
        n_dict: dictionaries, each of which is to give the image by the same code.
        square_noise: minimise the residual's square, not its norm.
        schedule: published, long, greedy or barzilai-borwein steps.
        differentiate: unrolled through the steps, or implicit at convergence.
        published: the published training arithmetic, with weights scaled in place and 50 steps of power iteration.
    """
    options = {**locals()}
    return _Rule(options, everywhere=True, shortcuts=options.pop("shortcuts"))


class NoShortcut(nn.Module):
    """Nothing in the place of a residual block's shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


class _Rule:
    """What `csc` and `csc_all` make."""

    def __init__(self, options: dict[str, Any], *, everywhere: bool, shortcuts: bool) -> None:
        self.options, self.everywhere, self.shortcuts = options, everywhere, shortcuts

    def __call__(self, model: nn.Module) -> Replacements:
        """The new layers of `model`, by name; `left` tells which stay and why."""
        found = Replacements()
        seen = False  # a convolution that may not be passed over
        for name, module in model.named_modules():
            if not isinstance(module, nn.modules.conv._ConvNd) or isinstance(module, CSC):
                continue
            if (seen and not self.everywhere) or (self.everywhere and set(module.kernel_size) == {1}):
                continue
            seen = True
            why = _hindrance(module)
            if why:
                found.left[name] = f"{type(module).__name__} {why}"
            else:
                found[name] = self._layer(module)
        if not self.shortcuts:
            found.update(_without_shortcuts(model))
        _take_out_rectifiers(model, found)
        return found

    def _layer(self, module: nn.Module) -> CSC:
        cls = next(cls for kind, cls in _TWINS.items() if isinstance(module, kind))
        layer = cast(CSC, twin(module, cls, **self.options))
        if self.options["n_dict"] > 1:  # each dictionary starts from the same atoms
            copies = [1, self.options["n_dict"], *[1] * len(layer.kernel_size)]
            layer.weight = nn.Parameter(cast(Tensor, module.weight).detach().repeat(copies))
        with torch.no_grad():  # trained weights may have a larger norm than random ones
            places = (1, layer.out_channels, *[max(layer.kernel_size) + 1] * len(layer.kernel_size))
            norm, _ = layer.dictionary().norm(start(places, layer.norm), 8)
            layer.norm.copy_(torch.maximum(layer.norm, norm))
        return layer


def _hindrance(module: nn.modules.conv._ConvNd) -> str:
    """Why a convolution stays as it is; empty if nothing hinders."""
    if not is_plain(module):
        return "computes in a way of its own"
    if not isinstance(module, tuple(_TWINS)):
        return "has no sparse coding twin"
    if module.groups > 1:
        return "works in groups"
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return "pads with something else than a fixed number of zeros"
    return ""


def _without_shortcuts(model: nn.Module) -> dict[str, nn.Module]:
    blocks = [name for name, module in model.named_modules() if isinstance(module, BasicBlock | Bottleneck)]
    if not blocks:
        raise InputError("shortcuts=False is for built-in residual networks: leave it out.")
    return {f"{name}.downsample": NoShortcut() for name in blocks}


def _take_out_rectifiers(model: nn.Module, found: Replacements) -> None:
    """Add to `found` identities for every ReLU that rectifies nothing but a code, or a code's batch norm."""
    new = {name for name, module in found.items() if isinstance(module, CSC)}
    if not new:
        return
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever tracing foreign code may raise
        first = str(error).partition("\n")[0]
        found.left["ReLU"] = f"stays wherever it is, since the network cannot be traced ({first})"
        return
    bare = {name for name, module in found.items() if isinstance(module, NoShortcut)}
    calls: dict[str, list[bool]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(module_at(model, str(node.target)), nn.ReLU):
            source = _source(model, node.args[0], bare)
            calls.setdefault(str(node.target), []).append(source in new)
        if node.op == "call_module" and str(getattr(node.args[0] if node.args else None, "target", "")) in new:
            norm, code = module_at(model, str(node.target)), cast(CSC, found[str(cast(fx.Node, node.args[0]).target)])
            fresh = isinstance(norm, _NORMS) and not code.norm.is_meta and norm.num_batches_tracked == 0
            if fresh and not code.published:
                found[str(node.target)] = _begun(norm, code)
    for name, of_codes in calls.items():
        if all(of_codes):
            found[name] = nn.Identity()
        elif any(of_codes):
            found.left[name] = "ReLU rectifies more than codes"


@torch.no_grad()
def _begun(norm: nn.Module, code: CSC) -> nn.Module:
    """A new batch norm like `norm`, whose running moments begin with those of codes of white noise.

    The variance of a code is about a hundredth of 1, where they would begin: for as long as that takes to fade, a
    network in evaluation would answer the same to everything.
    """
    size = [3 * (dilation * (k - 1) + 1) for k, dilation in zip(code.kernel_size, code.dilation, strict=True)]
    noise = torch.randn(4, code.in_channels, *size, generator=torch.Generator().manual_seed(0)).to(code.norm)
    z = code.eval()(noise)
    begun = twin(norm, type(norm))
    cast(Tensor, begun.running_mean).fill_(z.mean())
    cast(Tensor, begun.running_var).fill_(z.var())
    return begun


def _source(model: nn.Module, node: Any, bare: set[str]) -> str:
    """The layer that makes what `node` stands for, but for batch norm and sums with nothing; empty for none."""
    while isinstance(node, fx.Node):
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "add":
            terms = [term for term in node.args if not (isinstance(term, fx.Node) and str(term.target) in bare)]
            node = terms[0] if len(terms) == 1 else None
        elif node.op == "call_module" and isinstance(module_at(model, str(node.target)), _NORMS | nn.Identity):
            node = node.args[0]
        else:
            return str(node.target) if node.op == "call_module" else ""
    return ""


class _Tracer(fx.Tracer):
    """Looks into everything but convolutions, norms, and shortcuts, whatever package their class is from."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        named = module_qualified_name.rpartition(".")[2] == "downsample"
        kinds = (nn.modules.conv._ConvNd, nn.Linear, _NORMS)
        return named or isinstance(m, kinds) or super().is_leaf_module(m, module_qualified_name)
