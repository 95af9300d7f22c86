"""Write a network as a file that needs neither this package nor its code: ONNX, or a `torch.export` program.

The file is run before it is written, by the library that will run it, and compared with the network.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pellucid.core.device import check_values, fitting
from pellucid.core.errors import InputError, first_line, shown
from pellucid.core.facts import ModelFacts, facts, unwrapped
from pellucid.core.files.atomic import write_atomic
from pellucid.core.modes import evaluating, seeded
from pellucid.core.network.agreement import distance
from pellucid.core.network.blackbox.about import About
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.network.export.program import program_of
from pellucid.core.network.export.quiet import silenced
from pellucid.core.network.export.to_onnx import check_onnx, run_onnx, to_onnx
from pellucid.core.network.export.to_pt2 import run_pt2, to_pt2
from pellucid.core.network.fold import fold as folded_copy
from pellucid.core.network.swap import Changes

Format = Literal["onnx", "pt2"]
FEW = (1, 2, 3)  # images per batch that are tried besides the batches asked for


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how it was compared with the network.

    Attributes:
        path: of the file.
        to: "onnx" or "pt2".
        about: what the file says of itself: images, classes, normalisation, batch, opset.
        operators: how often the file uses each operator.
        changes: what was folded, as in the facts of `pellucid.fold`; None if nothing was to be.
        bytes: size of the file.
        n: number of images compared.
        batches: numbers of images per batch that were tried.
        difference: largest difference between outputs, relative to the largest output.
        same: number of images with the same class first, of `n`.
    """

    path: Path
    to: Format
    about: About
    operators: dict[str, int]
    changes: Changes | None
    bytes: int
    n: int
    batches: tuple[int, ...]
    difference: float
    same: int


def export(
    model: nn.Module,
    out: str | os.PathLike[str],
    to: Format | None = None,
    *,
    images: Tensor | None = None,
    fold: bool = True,
    opset: int = 18,
    fixed_batch: int | None = None,
    batch_size: int = 64,
    tolerance: float = 1e-4,
) -> Exported:
    """Write `model` to the file `out` as ONNX or as a `torch.export` program.

    First whitening, masks and batch norm are folded into plain convolutions. The file's own outputs, computed by
    onnxruntime or from `torch.export.load`, are compared with those of `model`, in batches of 1, 2, 3 and `batch_size`
    images; if they differ, nothing is written. The file also holds the classes, normalisation and image size.

    Args:
        model: a classifier, images (B, C, H, W) -> logits (B, K); it is not changed, and is exported as it computes in
            evaluation mode.
        out: the file; an old one is replaced whole or not at all.
        to: "onnx" or "pt2"; default what the name of `out` ends in.
        images: (N, C, H, W), normalised as the model expects, to compare with. Default: 16 images of random pixels from
            0 to 1, normalised likewise if the normalisation is known, of the size that the model's description states.
        fold: fold first.
        opset: version of ONNX's operators.
        fixed_batch: number of images that the file takes at a time; default any.
        batch_size: images per batch in the comparison.
        tolerance: largest difference between outputs, relative to the largest output.

    Raises:
        InputError: a library is missing, the model cannot be folded or exported, or the file computes something else.

    Example:
        >>> export(model, "model.onnx").difference < 1e-4  # doctest: +SKIP
        True
    """
    path, form = Path(out), format_of(out, to)
    if form == "onnx":
        check_onnx()
    needs_layers(model, "Exporting")
    check_values(model)
    model = unwrapped(model)
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        raise InputError("A TorchScript module cannot be exported: export the module that it was made from.")
    if images is None:
        images = random_images(model)
    if images.dim() != 4 or not len(images):
        raise InputError(f"Images of shape {list(images.shape)} cannot be compared: give (N, C, H, W), at least one.")
    images = fitting(model, images)
    if images.dtype == torch.bfloat16:
        raise InputError("Networks in bfloat16 cannot be exported: export model.float().")
    chunks = _chunks(images, batch_size, fixed_batch)
    expected = [_logits(model, chunk) for chunk in chunks]
    plain, changes = _plain(model, images[:batch_size], fold)
    known = facts(model)
    about = About(
        in_channels=images.shape[1],
        image_size=(images.shape[2], images.shape[3]),
        num_classes=expected[0].shape[1],
        classes=_checked_classes(known, expected[0].shape[1]),
        normalization=known.normalization,
        batch=fixed_batch,
        folded=bool(changes),
        opset=opset if form == "onnx" else None,
    )
    program = program_of(plain, images[:2].cpu(), fixed_batch)
    content, operators = (to_onnx if form == "onnx" else to_pt2)(program, about)
    found = _read_back(run_onnx if form == "onnx" else run_pt2, content, chunks)
    difference = distance(expected, found)
    if not difference <= tolerance:
        raise InputError(
            f"The exported network's outputs differ by {difference:.2g} of the largest, more than tolerance="
            f"{tolerance:g}, so nothing was written: allow more, or export it unfolded (--no-fold, or fold=False)."
        )
    write_atomic(path, content)
    whole = len(images) if fixed_batch is None else sum(map(len, chunks))
    pairs = list(zip(expected, found, strict=True))[: -(-len(images) // batch_size) if fixed_batch is None else None]
    return Exported(
        path=path,
        to=form,
        about=about,
        operators=dict(operators.most_common()),
        changes=changes,
        bytes=len(content),
        n=whole,
        batches=tuple(sorted({len(chunk) for chunk in chunks})),
        difference=difference,
        same=sum(int((a.argmax(1) == b.argmax(1)).sum()) for a, b in pairs),
    )


def random_images(model: nn.Module, count: int = 16, size: tuple[int, int] | None = None) -> Tensor:
    """Always the same images (count, C, *size) of random pixels from 0 to 1, as `model` would see them.

    If the normalisation is not known, they have the mean 0 and the variance 1 that normalised images have.

    Raises:
        InputError: the model's description does not state the size of its images.
    """
    known = facts(model)
    size = size or known.image_size
    if size is None or known.in_channels is None:
        raise InputError("The model does not record the size of its images: give export a batch of them as images.")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((count, known.in_channels, *size), generator=generator)
    if known.normalization is not None:
        return known.normalization.apply(pixels)
    return (pixels - 0.5) * 12**0.5


def format_of(out: str | os.PathLike[str], to: str | None = None) -> Format:
    """`to`, or else the format that the name of `out` ends in.

    Raises:
        InputError: neither.
    """
    chosen = to or Path(out).suffix.removeprefix(".").lower()
    if chosen not in get_args(Format):
        raise InputError(
            f"{shown(os.fspath(out), 200)} does not say in which format to write: end it in .onnx or .pt2, or choose "
            "one with --to."
        )
    return "onnx" if chosen == "onnx" else "pt2"


def _chunks(images: Tensor, batch_size: int, fixed: int | None) -> list[Tensor]:
    """The batches to compare on: all images, then a few in small batches; or, for a fixed batch, full ones only."""
    if fixed is None:
        return [*images.split(batch_size), *(images[:few] for few in FEW if few < min(len(images), batch_size))]
    times = -(-fixed // len(images))
    return [part for part in images.repeat(times, 1, 1, 1).split(fixed) if len(part) == fixed]


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model), seeded():
        try:
            found = model(images)
        except Exception as error:  # a module of the user's may fail in any way
            raise InputError(f"The model cannot take images {list(images.shape)}: {first_line(error)}.") from error
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(images):
        form = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InputError(
            f"The model returns {form} for {len(images)} images: it must return logits (images, classes); wrap it with "
            "pellucid.wrap(model, logits=...)."
        )
    if not bool(found.isfinite().all()):
        raise InputError(
            "The model returns NaN or infinity for these images: its weights are damaged, or the images are not "
            "normalised as it expects."
        )
    return found.cpu()


def _plain(model: nn.Module, example: Tensor, fold: bool) -> tuple[nn.Module, Changes | None]:
    """A copy on the CPU, in evaluation mode, and what was folded in it."""
    plain = copy.deepcopy(model).cpu().eval()
    if not fold:
        return plain, None
    try:
        plain = folded_copy(plain, example.cpu())
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}; --no-fold, or fold=False, exports it so.") from error
    return plain, facts(plain).changes


def _checked_classes(known: ModelFacts, count: int) -> tuple[str, ...] | None:
    if known.classes is not None and len(known.classes) != count:
        raise InputError(f"The model returns {count} logits per image, but {len(known.classes)} classes are declared.")
    return known.classes


def _read_back(
    opened: Callable[[bytes], Callable[[Tensor], Tensor]], content: bytes, chunks: list[Tensor]
) -> list[Tensor]:
    """What the file itself computes."""
    try:
        with silenced(), torch.no_grad():
            run: Any = opened(content)
            return [run(chunk.cpu()) for chunk in chunks]
    except InputError:
        raise
    except Exception as error:  # the runtimes raise errors of many kinds
        raise InputError(
            f"The exported network does not run ({first_line(error)}), so nothing was written: try --fixed-batch 1, or "
            "another --opset."
        ) from error
