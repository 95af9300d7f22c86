"""The layer rules "csc" and "csc-all": networks whose first, or every, convolution is a sparse code (SDNet)."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.network.fold import Foldable
from pellucid.core.network.models.resnet import BasicBlock, Bottleneck
from pellucid.core.network.parametrized import beneath, on_top
from pellucid.core.network.plain import CONVOLUTIONS, is_plain
from pellucid.core.network.rules import Replacements, Rule
from pellucid.core.network.swap import twin
from pellucid.sparse.fista import Schedule
from pellucid.sparse.layers import CSC, CSC1d, CSC2d, CSC3d
from pellucid.sparse.norm import start
from pellucid.sparse.options import Differentiate
from pellucid.sparse.rectifiers import NoShortcut, take_out_rectifiers

_TWINS: dict[type[nn.Module], type[CSC]] = {nn.Conv1d: CSC1d, nn.Conv2d: CSC2d, nn.Conv3d: CSC3d}
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
    differentiate: Differentiate = _DEFAULTS["differentiate"],
    published: bool = _DEFAULTS["published"],
) -> Rule:
    """The rule that makes a network's first convolution a sparse coding layer (SDNet-18 of ResNet-18).

    The weights of the convolution become the dictionary, with atoms scaled to norm 1; of a layer that whitened its
    input too, as they are. Its bias is removed, and so is the ReLU after the layer or its batch norm: a code is
    non-linear already. The masks of a masked layer (`pellucid.subnet`) go to the dictionary.

    Args:
        lam: weight of the absolute values of the code.
        mu: weight of half the squares of the code.
        n_steps: number of steps towards the code; they take 2 n_steps - 1 convolutions.
        nonnegative: restrict codes to values of at least 0.
        n_dict: number of dictionaries, each of which is to reconstruct the image from the same code.
        square_noise: minimise the square of the residual, not its norm.
        schedule: published, long, greedy or barzilai-borwein steps.
        differentiate: unrolled through the steps, or implicit at convergence.
        published: use the published training arithmetic, with weights scaled in place and 50 steps of power iteration.
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
    differentiate: Differentiate = _DEFAULTS["differentiate"],
    published: bool = _DEFAULTS["published"],
) -> Rule:
    """The rule that makes every convolution but the 1x1 ones a sparse coding layer (SDNet-18-All of ResNet-18).

    A ReLU stays where it follows the sum of a residual block.

    Args:
        shortcuts: keep the residual connections; without them only for built-in residual networks.
        lam: weight of the absolute values of the code.
        mu: weight of half the squares of the code.
        n_steps: number of steps towards the code; they take 2 n_steps - 1 convolutions.
        nonnegative: restrict codes to values of at least 0.
        n_dict: number of dictionaries, each of which is to reconstruct the image from the same code.
        square_noise: minimise the square of the residual, not its norm.
        schedule: published, long, greedy or barzilai-borwein steps.
        differentiate: unrolled through the steps, or implicit at convergence.
        published: use the published training arithmetic, with weights scaled in place and 50 steps of power iteration.
    """
    options = {**locals()}
    return _Rule(options, everywhere=True, shortcuts=options.pop("shortcuts"))


class _Rule:
    """The rule that `csc` and `csc_all` make."""

    def __init__(self, options: dict[str, Any], *, everywhere: bool, shortcuts: bool) -> None:
        self.options, self.everywhere, self.shortcuts = options, everywhere, shortcuts

    def __call__(self, model: nn.Module) -> Replacements:
        """The new layers of `model`, by name; `left` says which stay and why."""
        found = Replacements()
        seen = False  # whether there was a convolution that counts as the first
        for name, module in model.named_modules():
            if not isinstance(module, CONVOLUTIONS):
                continue
            if (seen and not self.everywhere) or (self.everywhere and set(module.kernel_size) == {1}):
                continue
            seen = True
            why = self._hindrance(module)
            if why:
                found.left[name] = f"{type(module).__name__} {why}"
            else:
                found[name] = self._layer(module)
        if not self.shortcuts:
            found.update(_without_shortcuts(model))
        take_out_rectifiers(model, found)
        return found

    def _hindrance(self, module: CONVOLUTIONS) -> str:
        """Why a convolution stays as it is; empty if it need not."""
        if isinstance(module, CSC):
            return "is a sparse code already"
        bare = beneath(module)
        if not is_plain(bare) and not isinstance(bare, Foldable):  # what folds to a convolution has weights of one
            return "has its own arithmetic"
        if not isinstance(module, tuple(_TWINS)):
            return "has no sparse coding twin"
        if module.groups > 1:
            return "has groups"
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            return "has padding other than a fixed number of zeros"
        if bare is not module and (self.options["n_dict"] > 1 or self.options["published"]):
            return "has masks, which fit neither several dictionaries nor weights scaled in place"
        return ""

    def _layer(self, module: nn.Module) -> CSC:
        cls = next(cls for kind, cls in _TWINS.items() if isinstance(module, kind))
        layer = on_top(cast(CSC, twin(beneath(module), cls, **self.options)), module)
        if self.options["n_dict"] > 1:  # each dictionary starts from the same atoms
            copies = [1, self.options["n_dict"], *[1] * len(layer.kernel_size)]
            layer.weight = nn.Parameter(cast(Tensor, module.weight).detach().repeat(copies))
        with torch.no_grad():  # trained weights may have a larger norm than random ones
            places = (1, layer.out_channels, *[max(layer.kernel_size) + 1] * len(layer.kernel_size))
            norm, _ = layer.dictionary().norm(start(places, layer.norm), 8)
            layer.norm.copy_(torch.maximum(layer.norm, norm))
        return layer


def _without_shortcuts(model: nn.Module) -> dict[str, nn.Module]:
    blocks = [name for name, module in model.named_modules() if isinstance(module, BasicBlock | Bottleneck)]
    if not blocks:
        raise InputError("shortcuts=False only works for built-in residual networks: leave it out.")
    return {f"{name}.downsample": NoShortcut() for name in blocks}
