"""What `walk.py` does to a network, and what must then be so: each operation is compared with a plain computation."""

from __future__ import annotations

import copy
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pellucid
from pellucid.core.facts import declare
from pellucid.core.network.agreement import distance

CLASSES, IMAGES = 10, 6
RULES = ("deconv", "csc", "subnet")
FITTED = "deconv with images"
_NORMS = nn.modules.batchnorm._BatchNorm


class Wrong(Exception):
    """An operation ended without a word, but its result is not what it should be."""


class Skipped(Exception):
    """An operation on the result of another one, which there is none of."""


@dataclass
class Subject:
    """A network on the walk, in evaluation mode, images for it, and what conversions made of it."""

    model: nn.Module
    images: Tensor
    others: Tensor
    folder: Path
    made: dict[str, nn.Module] = field(default_factory=dict)

    def of(self, what: str) -> nn.Module:
        """A copy of the network itself for "", or of what the conversion `what` made."""
        if what and what not in self.made:
            raise Skipped
        return copy.deepcopy(self.made[what] if what else self.model)


def subject(name: str, size: int, folder: Path) -> Subject:
    """The network `name` for images of `size` pixels, with statistics of images, all of them disturbed.

    In fresh batch norm the mean is 0 and scale is 1, and branches are often multiplied by 0 or nearly so: much could go
    wrong unseen.
    """
    torch.manual_seed(0)
    model = pellucid.build(name, CLASSES, 3, size)
    declare(model, normalization={"mean": [0.5] * 3, "std": [0.25] * 3})
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1 and "bias" not in key and float(parameter.detach().abs().max()) < 1e-3:
            nn.init.uniform_(parameter, 0.2, 0.4)
    images, others = torch.randn(IMAGES, 3, size, size), torch.randn(IMAGES, 3, size, size)
    with torch.no_grad():
        for batch in (2 * images + 1, images):
            model.train()(batch)
        for module in model.modules():
            if isinstance(module, _NORMS) and module.running_var is not None and module.running_mean is not None:
                spread = module.running_var.sqrt()
                module.running_mean.add_(0.2 * spread * torch.randn_like(spread))
                module.running_var.mul_(torch.empty_like(spread).uniform_(0.7, 1.4))
                if module.affine:
                    module.weight.mul_(torch.empty_like(spread).uniform_(0.8, 1.2))
                    module.bias.add_(0.1 * torch.randn_like(spread))
    return Subject(model.eval(), images, others, folder)


def _check(same: bool, text: str) -> None:
    if not same:
        raise Wrong(text)


def _close(a: nn.Module, b: nn.Module, images: Tensor, tolerance: float) -> None:
    with torch.no_grad():
        off = distance([a(images)], [b(images)])
    _check(off <= tolerance, f"outputs differ by {off:.2g} of the largest")


def statistics(it: Subject) -> None:
    """Recorded means are those of a hook that knows nothing but the axis of the channels."""
    model, seen, runs = it.of(""), {}, dict[str, int]()

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].double()
            seen[name] = (
                x.flatten(0, -2).mean(0) if isinstance(module, nn.Linear) else x.transpose(0, 1).flatten(1).mean(1)
            )
            runs[name] = runs.get(name, 0) + 1

        return hook

    table = pellucid.statistics(model, it.images)
    for name in table:
        model.get_submodule(name).register_forward_pre_hook(note(name))
    with torch.no_grad():
        model(it.images)
    for name, moments in table.items():
        if runs[name] == 1:
            _check(distance([seen[name]], [moments.mean]) < 1e-5, f"the mean at {name!r} is another")


def fold(what: str, it: Subject) -> None:
    """The folded network computes the same of images that `fold` did not see."""
    model = it.of(what).eval()
    _close(model, pellucid.fold(model, it.images), it.others, 1e-4)


def convert(to: str, it: Subject) -> None:
    """The network itself stays as it is, and the new one computes numbers."""
    before = copy.deepcopy(it.model.state_dict())
    options: dict[str, Any] = {"block": 16} if to == "deconv" else {}
    new = pellucid.convert(it.model, to, **options)
    _check(_equal(before, it.model.state_dict()), "the network itself has changed")
    with torch.no_grad():
        shape = new(it.images).shape
    _check(tuple(shape) == (IMAGES, CLASSES), f"outputs have the shape {list(shape)}")
    it.made[to] = new


def convert_with_images(it: Subject) -> None:
    """The whitened network computes the same, also of images that it was not fitted to."""
    before = copy.deepcopy(it.model.state_dict())
    new = pellucid.convert(it.model, "deconv", images=it.images, block=16)
    _check(_equal(before, it.model.state_dict()), "the network itself has changed")
    _close(it.model, new, it.others, 1e-3)
    it.made[FITTED] = new


def train(what: str, it: Subject) -> None:
    """A step of SGD has a finite loss and finite gradients, and changes parameters."""
    model = it.of(what).train()
    before = copy.deepcopy(model.state_dict())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01)
    loss = F.cross_entropy(model(it.images), torch.arange(IMAGES) % CLASSES)
    loss.backward()
    _check(bool(loss.isfinite()), f"the loss is {float(loss)}")
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    _check(all(bool(gradient.isfinite().all()) for gradient in gradients), "a gradient is not finite")
    optimizer.step()
    _check(bool(gradients) and not _equal(before, model.state_dict()), "nothing was trained")


def decompose(it: Subject) -> None:
    """The decomposed network computes what its last layer does without the other weights."""
    model = it.of("")
    images = torch.cat([it.images, it.others])
    filters = pellucid.decompose(model, (images, torch.arange(len(images)) % CLASSES), k=3)
    masked = it.of("")
    weight: Any = masked.get_submodule(filters.layer).weight
    kept = torch.zeros_like(weight)
    for row, chosen in enumerate(filters.indices):
        kept[row, list(chosen)] = 1
    with torch.no_grad():
        weight.mul_(kept)
    _close(masked, filters.apply(model), it.others, 1e-4)


def invert(it: Subject) -> None:
    """Two steps end in images, and leave the network as it was."""
    model = it.of("")
    norms = any(isinstance(module, _NORMS) and module.running_mean is not None for module in model.modules())
    table = None if norms else pellucid.statistics(model, it.images)
    before = copy.deepcopy(model.state_dict())
    found = pellucid.invert(model, torch.arange(2), steps=2, statistics=table, quiet=True)
    _check(found.images.shape == it.images[:2].shape, f"images have the shape {list(found.images.shape)}")
    _check(bool(found.images.isfinite().all()), "an image is not finite")
    _check(_equal(before, model.state_dict()), "the network itself has changed")


def export(it: Subject) -> None:
    """What onnxruntime computes from the file is what the network does."""
    if not hasattr(pellucid, "export") or importlib.util.find_spec("onnxruntime") is None:
        raise Skipped
    import onnxruntime

    file = it.folder / "n.onnx"
    pellucid.export(it.of(""), file, images=it.images)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: it.others.numpy()})[0]
    with torch.no_grad():
        off = distance([it.model(it.others)], [torch.from_numpy(found)])
    _check(off <= 1e-4, f"outputs differ by {off:.2g} of the largest")


def save_and_load(what: str, it: Subject) -> None:
    """What is loaded computes the same bits."""
    model, file = it.of(what).eval(), it.folder / "n.safetensors"
    pellucid.save(model, file)
    with torch.no_grad():
        expected, found = model(it.others), pellucid.load(file)(it.others)
    _check(torch.equal(expected, found), f"outputs differ by {distance([expected], [found]):.2g} of the largest")


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _table() -> dict[str, Callable[[Subject], None]]:
    table: dict[str, Callable[[Subject], None]] = {
        "statistics": statistics,
        "fold": partial(fold, ""),
        "decompose": decompose,
        "invert": invert,
        "save and load": partial(save_and_load, ""),
        "export": export,
    }
    for rule in RULES:
        table[f"convert to {rule}"] = partial(convert, rule)
    table[f"convert to {FITTED}"] = convert_with_images
    for what, (title, operation) in itertools.product(
        (*RULES, FITTED), (("train", train), ("fold", fold), ("save and load", save_and_load))
    ):
        table[f"{title}, {what}"] = partial(operation, what)
    return table


OPERATIONS = _table()
