r"""What a sparse-coding layer keeps of an image, and what its atoms stand for.

A code synthesises the layer's input, $\hat x = D^* z$. Where that input is not the image but stems from another
sparse-coding layer, synthesis continues through that layer's dictionary: what lies between the two (batch norm,
pooling, sums with shortcuts) is undone channel by channel, $\hat z_c = a_c \hat x_c + d_c$, with a and d from least
squares over the given images. This undoes batch norm exactly. Two numbers per channel are too few to memorise images;
if they did, the control, codes of other images through the same chain, would show it.

In a network without such layers, images are optimised until a layer's output is the same (`plain`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization, facts, unwrapped
from pellucid.core.modes import evaluating
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.network.tap import module_at
from pellucid.core.terminal import track
from pellucid.sparse.layers import CSC
from pellucid.views.plain import plain_views
from pellucid.views.sheets import save
from pellucid.views.view import ATOMS, View, lack, uses_of


@dataclass(frozen=True)
class Visualization:
    """What `visualize` returns.

    Attributes:
        images: (N, C, *size), normalised.
        layers: the `View` of each layer by name.
        normalization: of the images, if known.
    """

    images: Tensor
    layers: Mapping[str, View]
    normalization: Normalization | None = None

    def save(self, folder: str) -> list[str]:
        """Draw everything into PNG files in `folder` and return their names; see `views.sheets.save`."""
        return save(self.images, self.layers, self.normalization, folder)


@dataclass(frozen=True)
class _Seen:
    name: str
    layer: CSC
    input: Tensor
    code: Tensor


@torch.no_grad()
def visualize(
    model: nn.Module,
    images: Tensor,
    layer: str | None = None,
    *,
    normalization: Normalization | None = None,
    batch_size: int = 256,
) -> Visualization:
    """Reconstruct images layer by layer, with residuals, atoms, and where each atom is used most.

    The mode of every submodule and the random state are as before afterwards.

    Args:
        model: a network with sparse-coding layers, or one such layer; or any other network whose normalisation is
            known.
        images: (N, C, *size), normalised as the model expects, at least two; more give better examples of the atoms.
        layer: dotted name of one sparse-coding layer; default all. In a network without any: of any layer; default
            each direct child of the network.
        normalization: of the images; default the model's own.
        batch_size: images per forward pass.

    Raises:
        InputError: no layer of that name, fewer than two images, or, without sparse-coding layers, an unknown
            normalisation.
    """
    needs_layers(model, "Visualizing layers")
    if len(images) < 2:
        raise InputError("A single image cannot be compared with another: give two or more.")
    if batch_size < 1:
        raise InputError(f"A batch size of {batch_size} is out of range: give at least 1.")
    model = unwrapped(model)
    norm = normalization or facts(model).normalization
    if not any(isinstance(module, CSC) for module in model.modules()):
        with torch.enable_grad():
            views = plain_views(model, images, layer, norm, batch_size)
        return Visualization(images, views, norm)
    seen = _run(model, images, batch_size)
    if layer is not None:
        module_at(model, layer)
        if layer not in seen:
            raise InputError(f"{layer!r} is not a sparse-coding layer that ran: choose one of {', '.join(seen)}.")
    chosen = [layer] if layer is not None else list(seen)
    order = list(seen.values())
    views = {
        name: _view(order[: list(seen).index(name) + 1], images)
        for name in track(chosen, len(chosen), "reading sparse codes")
    }
    return Visualization(images, views, norm)


def _run(model: nn.Module, images: Tensor, batch_size: int) -> dict[str, _Seen]:
    """The sparse-coding layers in the order in which they ran, each with its last input and code."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, CSC)}
    inputs: dict[str, list[Tensor]] = {}
    codes: dict[str, list[Tensor]] = {}
    with evaluating(model):
        for part in images.split(batch_size):
            last: dict[str, tuple[Tensor, Tensor]] = {}
            with _recording(layers, last):
                model(part)
            for name, (x, code) in last.items():
                inputs.setdefault(name, []).append(x)
                codes.setdefault(name, []).append(code)
    return {name: _Seen(name, layers[name], torch.cat(inputs[name]), torch.cat(codes[name])) for name in inputs}


@contextlib.contextmanager
def _recording(layers: Mapping[str, CSC], last: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """While the block runs, `last` gets each layer's last input and code, in the order in which the layers ran."""

    def hook(name: str) -> Any:
        def after(module: Any, inputs: tuple[Tensor, ...], code: Tensor) -> None:
            last[name] = (inputs[0].float(), code.float())

        return after

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _view(chain: list[_Seen], images: Tensor) -> View:
    """The view of the last layer of `chain`, which holds all layers that ran up to it."""
    last = chain[-1]
    code, layer = last.code, last.layer
    residual = layer.residual(last.input, code)
    uses = uses_of(code)
    path = _path(chain, images)
    reconstruction = error = control = atoms = None
    if path is not None:
        reconstruction, fits = _synthesised(path, code)
        error = lack(images, reconstruction)
        control = lack(images, _synthesised(path, code.roll(1, 0), fits)[0])
        atoms = _draw_atoms(path, fits, uses.order[:ATOMS])
    return View(
        reconstruction=reconstruction,
        error=error,
        control=control,
        residual=residual.square().sum(1).sqrt(),
        residual_share=float(residual.square().sum() / last.input.square().sum().clamp_min(1e-30)) / layer.n_dict,
        atoms=atoms,
        **vars(uses),
        field=max(images.shape[2:]) if path is None else 1 + sum(_reach(one, images) for one in path),
    )


def _reach(seen: _Seen, images: Tensor) -> int:
    """By how many pixels a layer widens the receptive field."""
    jump = max(n / m for n, m in zip(images.shape[2:], seen.input.shape[2:], strict=True))
    return round(jump * max(d * (k - 1) for k, d in zip(seen.layer.kernel_size, seen.layer.dilation, strict=True)))


def _path(chain: list[_Seen], images: Tensor) -> list[_Seen] | None:
    """The layers whose dictionaries lead from the last one down to the images, in that order; None if none do.

    A layer is followed by the last one before it with as many output channels as it has input channels.
    """
    path = [chain[-1]]
    rest = chain[:-1]
    while path[-1].input.shape != images.shape or not torch.equal(path[-1].input, images.to(path[-1].input)):
        while rest and rest[-1].layer.out_channels != path[-1].layer.in_channels:
            rest = rest[:-1]
        if not rest:
            return None
        path.append(rest[-1])
        rest = rest[:-1]
    return path


Fit = tuple[Tensor, Tensor]


def _synthesised(path: list[_Seen], code: Tensor, fits: list[Fit] | None = None) -> tuple[Tensor, list[Fit]]:
    """Images from codes of the first layer of `path`, and the (a, d) per channel between layers, given or fitted."""
    found: list[Fit] = []
    for place, (here, below) in enumerate(itertools.pairwise(path)):
        x = _resized(here.layer.decode(code, tuple(here.input.shape[2:])), below.code)
        a, d = _regression(x, below.code) if fits is None else fits[place]
        found.append((a, d))
        code = a * x + d
        if below.layer.nonnegative:
            code = code.relu()
    return path[-1].layer.decode(code, tuple(path[-1].input.shape[2:])), found


def _draw_atoms(path: list[_Seen], fits: list[Fit], atoms: Tensor) -> Tensor:
    """What one entry of the code adds to the images, per atom: (A, C, *kernel) for the first layer; for later ones
    images (A, C, *size), with the entry in the middle."""
    if len(path) == 1:
        layer = path[0].layer
        return layer.atoms[atoms].unflatten(1, (layer.n_dict, layer.in_channels)).mean(1)
    drawn = []
    for part in atoms.split(8):
        code = torch.zeros(len(part), *path[0].code.shape[1:], device=path[0].code.device)
        middle = tuple(n // 2 for n in code.shape[2:])
        index = (torch.arange(len(part)), part.to(code.device), *middle)
        code[index] = 1.0
        for (here, below), (a, _) in zip(itertools.pairwise(path), fits, strict=True):
            code = a * _resized(here.layer.decode(code, tuple(here.input.shape[2:])), below.code)
        drawn.append(path[-1].layer.decode(code, tuple(path[-1].input.shape[2:])))
    return torch.cat(drawn)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return x if x.shape[2:] == like.shape[2:] else F.interpolate(x, size=like.shape[2:], mode="nearest")


def _regression(x: Tensor, y: Tensor) -> Fit:
    """a, d (1, C, 1, ...) of the least squares fit y = a x + d per channel, over images and positions."""
    axes = (0, *range(2, x.dim()))
    mean_x, mean_y = x.mean(axes, keepdim=True), y.mean(axes, keepdim=True)
    spread = (x - mean_x).square().mean(axes, keepdim=True)
    a = ((x - mean_x) * (y - mean_y)).mean(axes, keepdim=True) / spread.clamp_min(1e-12)
    return a, mean_y - a * mean_x
