r"""What a sparse coding layer keeps of an image, and what its atoms stand for.

A code synthesises the layer's input, $\hat x = D^* z$. Where that is not the image but what a network makes of
another sparse coding layer, the way down goes on through that layer's dictionary: what stands between them (batch
norm, pooling, sums with shortcuts) is undone channel by channel, $\hat z_c = a_c \hat x_c + d_c$, with a and d the
least squares over the images at hand. Batch norm alone is undone exactly so. Two numbers a channel are too few to
remember images; the control, codes of other images in the same chain, would show it.

In a network without such layers, images are searched for on which a layer's output is the same (`plain`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization, facts
from pellucid.core.network.tap import module_at
from pellucid.core.terminal import track
from pellucid.sparse.layers import CSC
from pellucid.views.plain import plain_views
from pellucid.views.view import ATOMS, View, lack, uses_of


@dataclass(frozen=True)
class Visualization:
    """`visualize`'s answer: the images (N, C, *size), as the network got them, and a `View` of each layer by name."""

    images: Tensor
    layers: Mapping[str, View]
    normalization: Normalization | None = None

    def save(self, folder: str) -> list[str]:
        """Draw everything into PNG files in `folder`; their names. For images with two axes."""
        from pellucid.views.sheets import save

        return save(self, folder)


@dataclass(frozen=True)
class _Seen:
    name: str
    layer: CSC
    input: Tensor
    code: Tensor


@torch.no_grad()
def visualize(model: nn.Module, images: Tensor, layer: str | None = None) -> Visualization:
    """Reconstructions of images layer by layer, residuals, atoms, and where each atom is used most.

    Args:
        model: a network with sparse coding layers, or one such layer; or any other, whose normalisation is known.
        images: (N, C, *size), normalised as the model expects, at least two; the more, the better the places shown.
        layer: dotted name of one sparse coding layer; default all. Of a network without any: of any layer, default
            each part at the top.

    Raises:
        InputError: no layer of that name, or fewer than two images.
    """
    if len(images) < 2:
        raise InputError("One image has no other to be compared with: give two or more.")
    if not any(isinstance(module, CSC) for module in model.modules()):
        with torch.enable_grad():
            views = plain_views(model, images, layer)
        return Visualization(images, views, facts(model).normalization)
    seen = _run(model, images)
    if layer is not None:
        module_at(model, layer)
        if layer not in seen:
            raise InputError(f"{layer!r} is no sparse coding layer that ran: choose one of {', '.join(seen)}.")
    chosen = [layer] if layer is not None else list(seen)
    order = list(seen.values())
    views = {
        name: _view(order[: list(seen).index(name) + 1], images)
        for name in track(chosen, len(chosen), "reading sparse codes")
    }
    return Visualization(images, views, facts(model).normalization)


def _run(model: nn.Module, images: Tensor) -> dict[str, _Seen]:
    """The sparse coding layers in the order in which they ran, each with what it last saw and made."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, CSC)}
    seen: dict[str, _Seen] = {}
    modes = [(module, module.training) for module in model.modules()]
    handles = []
    for name, layer in layers.items():

        def hook(module: Any, inputs: tuple[Tensor, ...], code: Tensor, name: str = name) -> None:
            seen[name] = _Seen(name, module, inputs[0].float(), code.float())

        handles.append(layer.register_forward_hook(hook))
    try:
        model.eval()
        model(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return seen


def _view(chain: list[_Seen], images: Tensor) -> View:
    """The view of the last layer of `chain`, all layers that ran as far as it."""
    last = chain[-1]
    code, layer = last.code, last.layer
    residual = layer.residual(last.input, code)
    uses = uses_of(code)
    way = _way(chain, images)
    reconstruction = error = control = atoms = None
    if way is not None:
        reconstruction, fits = _down(way, code)
        error = lack(images, reconstruction)
        control = lack(images, _down(way, code.roll(1, 0), fits)[0])
        atoms = _draw_atoms(way, fits, uses.order[:ATOMS])
    return View(
        reconstruction=reconstruction,
        error=error,
        control=control,
        residual=residual.square().sum(1).sqrt(),
        residual_share=float(residual.square().sum() / last.input.square().sum().clamp_min(1e-30)) / layer.n_dict,
        atoms=atoms,
        **vars(uses),
        field=max(images.shape[2:]) if way is None else 1 + sum(_reach(one, images) for one in way),
    )


def _reach(seen: _Seen, images: Tensor) -> int:
    """By how many pixels a layer widens what is seen."""
    jump = max(n / m for n, m in zip(images.shape[2:], seen.input.shape[2:], strict=True))
    return round(jump * max(d * (k - 1) for k, d in zip(seen.layer.kernel_size, seen.layer.dilation, strict=True)))


def _way(chain: list[_Seen], images: Tensor) -> list[_Seen] | None:
    """The layers whose dictionaries lead from the last one down to the images, in that order; None if none do.

    From a layer it goes on to the last one before it that makes as many channels as it takes.
    """
    way = [chain[-1]]
    rest = chain[:-1]
    while way[-1].input.shape != images.shape or not torch.equal(way[-1].input, images.to(way[-1].input)):
        while rest and rest[-1].layer.out_channels != way[-1].layer.in_channels:
            rest = rest[:-1]
        if not rest:
            return None
        way.append(rest[-1])
        rest = rest[:-1]
    return way


Fit = tuple[Tensor, Tensor]


def _down(way: list[_Seen], code: Tensor, fits: list[Fit] | None = None) -> tuple[Tensor, list[Fit]]:
    """Images from codes of the first layer on the way, and the channels' (a, d) between layers, given or found."""
    found: list[Fit] = []
    for place, (here, below) in enumerate(itertools.pairwise(way)):
        x = _resized(here.layer.decode(code, tuple(here.input.shape[2:])), below.code)
        a, d = _regression(x, below.code) if fits is None else fits[place]
        found.append((a, d))
        code = a * x + d
        if below.layer.nonnegative:
            code = code.relu()
    return way[-1].layer.decode(code, tuple(way[-1].input.shape[2:])), found


def _draw_atoms(way: list[_Seen], fits: list[Fit], atoms: Tensor) -> Tensor:
    """What one entry of the code adds to the images, for each of the `atoms`: (A, C, *kernel) of the first layer, or
    images (A, C, *size) with the entry in the middle further up."""
    if len(way) == 1:
        layer = way[0].layer
        return layer.atoms[atoms].unflatten(1, (layer.n_dict, layer.in_channels)).mean(1)
    drawn = []
    for part in atoms.split(8):
        code = torch.zeros(len(part), *way[0].code.shape[1:], device=way[0].code.device)
        middle = tuple(n // 2 for n in code.shape[2:])
        index = (torch.arange(len(part)), part.to(code.device), *middle)
        code[index] = 1.0
        for (here, below), (a, _) in zip(itertools.pairwise(way), fits, strict=True):
            code = a * _resized(here.layer.decode(code, tuple(here.input.shape[2:])), below.code)
        drawn.append(way[-1].layer.decode(code, tuple(way[-1].input.shape[2:])))
    return torch.cat(drawn)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return x if x.shape[2:] == like.shape[2:] else F.interpolate(x, size=like.shape[2:], mode="nearest")


def _regression(x: Tensor, y: Tensor) -> Fit:
    """a, d (1, C, 1, ...) of the least squares y = a x + d in each channel over images and places."""
    axes = (0, *range(2, x.dim()))
    mean_x, mean_y = x.mean(axes, keepdim=True), y.mean(axes, keepdim=True)
    spread = (x - mean_x).square().mean(axes, keepdim=True)
    a = ((x - mean_x) * (y - mean_y)).mean(axes, keepdim=True) / spread.clamp_min(1e-12)
    return a, mean_y - a * mean_x
