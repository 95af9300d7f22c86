"""How well a network classifies, with the interval of every fraction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.core import vision
from pellucid.core.data.batches import LARGEST_BATCH, Batch, batches, usual_batch
from pellucid.core.data.copies import Copies
from pellucid.core.data.dataset import Dataset
from pellucid.core.device import device_of, double, fitting, has_double
from pellucid.core.errors import InputError
from pellucid.core.measure.classes import Classes
from pellucid.core.measure.fits import check_fits, check_logits, normalization
from pellucid.core.measure.pairs import named, open_data
from pellucid.core.measure.share import Share, wilson
from pellucid.core.modes import evaluating
from pellucid.core.terminal import percent


@dataclass(frozen=True)
class Evaluation:
    """What one pass over labelled images showed. Fractions are in [0, 1], intervals are Wilson's at 95 %.

    Attributes:
        n: images.
        correct: how many of them were classified correctly.
        top1: correct / n.
        top1_interval: of top1.
        top5: fraction of images whose label is among the five largest logits; None with five classes or fewer.
        loss: mean cross-entropy in nats.
        ece: expected calibration error with 15 equal bins (Guo et al. 2017, equation 3).
        confusion: confusion[i][j] counts the images of class i that were classified as j.
        classes: their names.
        per_class: for each of `classes`, its images and how many of them were classified correctly.
        copies: how many of the images are exact copies of training images; None where that was not asked.
        without_copies: the images that are not, and how many of them were classified correctly.
    """

    n: int
    correct: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float | None
    loss: float
    ece: float
    confusion: list[list[int]]
    classes: tuple[str, ...]
    per_class: list[Share]
    copies: int | None = None
    without_copies: Share | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values.

        "per_class" is a list of {"class", "n", "correct", "accuracy", "interval"}; "accuracy" is None for a class
        without images. "without_copies" is {"correct", "n", "accuracy", "interval"} or None.
        """
        table = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del table["classes"]
        table["per_class"] = [
            {
                "class": name,
                "n": share.n,
                "correct": share.correct,
                "accuracy": share.value,
                "interval": share.interval,
            }
            for name, share in zip(self.classes, self.per_class, strict=True)
        ]
        table["without_copies"] = None if self.without_copies is None else self.without_copies.to_json()
        return table


def about_copies(found: Mapping[str, Any], split: str = "test") -> str | None:
    """A sentence on the images that are copies of training images, of an `Evaluation` as JSON; None without any."""
    if not found.get("copies"):
        return None
    kind, left = {"val": "validation"}.get(split, split), found["without_copies"]
    start = f"{found['copies']} of {found['n']} {kind} images are exact copies of training images"
    if not left["n"]:
        return f"{start}: none is left to measure accuracy on."
    return f"{start}; on the {left['n']} others the accuracy is {percent(left['accuracy'], left['interval'])}."


@torch.no_grad()
def predict(model: nn.Module, stream: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches with their logits (B, K), float32 on the model's device, computed in evaluation mode."""
    with evaluating(model):
        for batch in stream:
            yield batch, model(fitting(model, batch.images)).float()


class Score:
    """Accumulates an `Evaluation` batch by batch, and over all processes if torch.distributed is running.

    Args:
        classes: names of the K classes.
        device: of logits and labels.
        copies: the images whose accuracy is also left out.
    """

    def __init__(
        self, classes: tuple[str, ...], device: torch.device | str = "cpu", copies: Copies | None = None
    ) -> None:
        vision.repair()
        from torchmetrics import MeanMetric, MetricCollection, SumMetric
        from torchmetrics.classification import (
            MulticlassAccuracy,
            MulticlassCalibrationError,
            MulticlassConfusionMatrix,
        )

        k = len(classes)
        self.classes = classes
        metrics: dict[str, Any] = {
            "confusion": MulticlassConfusionMatrix(k, validate_args=False),
            "ece": MulticlassCalibrationError(k, n_bins=15, validate_args=False),
        }
        if k > 5:
            metrics["top5"] = MulticlassAccuracy(k, top_k=5, average="micro", validate_args=False)
        self.metrics = MetricCollection(metrics, compute_groups=False).to(device)
        where = device if has_double(device) else "cpu"
        self.loss = MeanMetric(nan_strategy="disable").set_dtype(torch.float64).to(where)
        self.copies = copies
        self.copied = SumMetric(nan_strategy="disable").to(device)  # copies that were classified correctly

    def add(self, logits: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        """Add a batch: logits (B, K) in float32, labels (B,), and with copies the images' positions (B,)."""
        if self.copies is not None and indices is not None:
            apart = torch.isin(indices.cpu(), self.copies.indices)
            self.copied.update((logits.argmax(1) == labels)[apart.to(labels.device)].sum())
        losses = double(F.cross_entropy(logits, labels, reduction="none"))
        self.loss.update(losses, torch.ones_like(losses))
        self.metrics.update(logits.softmax(1), labels)

    def result(self) -> Evaluation:
        """The evaluation of all batches, the same in every process."""
        values = self.metrics.compute()
        confusion = values["confusion"].long().cpu()
        n, correct = int(confusion.sum()), int(confusion.diagonal().sum())
        copied = None if self.copies is None else self.copies.number
        rows, right = confusion.sum(1).tolist(), confusion.diagonal().tolist()
        return Evaluation(
            n=n,
            correct=correct,
            top1=correct / n,
            top1_interval=wilson(correct, n),
            top5=float(values["top5"]) if "top5" in values else None,
            loss=float(self.loss.compute()),
            ece=float(values["ece"]),
            confusion=confusion.tolist(),
            classes=self.classes,
            per_class=[Share(k, of) for k, of in zip(right, rows, strict=True)],
            copies=copied,
            without_copies=None if copied is None else Share(correct - int(self.copied.compute()), n - copied),
        )


def evaluate(
    model: nn.Module,
    data: Any,
    split: str = "test",
    *,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    channels_last: bool = False,
    copies: Copies | None = None,
    classes: Classes | None = None,
) -> Evaluation:
    """Measure how well `model` classifies labelled images, each seen once, without augmentation.

    Args:
        model: any network from images (B, C, H, W) to logits (B, K). Every submodule keeps its training mode.
        data: a data set's name as in `load_data`, a `Dataset`, (images already normalised, labels), or an iterable of
            such pairs (a DataLoader). Named data are read at the model's own image size, and normalised as the model's
            facts say, or else by their own statistics.
        split: part of a named data set or `Dataset`: "train", "val" or "test".
        batch_size: images per step, over all `world` processes; an iterable has its own. Default 512, or fewer for
            images beyond 45 x 45 pixels.
        device: where to compute; the model is moved there. Default: where the model is.
        workers: processes that decode images of a data set too large for memory.
        rank, world: number of this process, and of all; each evaluates its part of a data set, and all get the same
            result.
        channels_last: keep images of a data set channels-last in memory.
        copies: those images of the split of a data set that are copies of training images (see
            `core.data.copies.copies`); the accuracy without them is measured too.
        classes: names of the model's classes in the order of its outputs, or a file with one per line, where the model
            does not record them; a name may follow that of a folder, as in "n01440764 tench". The classes of a
            data set may be some of these, in any order; see `core.data.matching`.

    Raises:
        InputError: data that are none of these, no image, or images or classes that do not fit the model.
    """
    if device is not None:
        model.to(device)
    where = device_of(model)
    data = named(model, data, classes)
    if isinstance(data, Dataset):
        if not len(data.part(split)):
            raise InputError(f"{data.name} has no images to evaluate on in its split {split!r}: choose another one.")
        check_fits(model, data)
        norm = normalization(model, data)
        stream: Iterable[tuple[Tensor, Tensor, Tensor | None]] = (
            (batch.images, batch.labels, batch.indices)
            for batch in batches(
                data.part(split),
                usual_batch(data.image_size, world) if batch_size is None else batch_size,
                mean=norm.mean,
                std=norm.std,
                device=where,
                rank=rank,
                world=world,
                workers=workers,
                channels_last=channels_last,
            )
        )
        names: tuple[str, ...] | None = data.classes
    else:
        pairs = open_data(model, data, split, batch_size=LARGEST_BATCH if batch_size is None else batch_size)
        stream, names = ((images, labels, None) for images, labels in pairs), pairs.classes
    # A process may have no image of a small data set, and must still take part in adding up.
    score = Score(data.classes, where, copies) if isinstance(data, Dataset) else None
    with torch.no_grad(), evaluating(model):
        for images, labels, indices in stream:
            logits = model(fitting(model, images))
            check_logits(logits, len(labels), names)
            names = names or tuple(map(str, range(logits.shape[1])))
            score = score or Score(names, where)
            score.add(logits.float(), labels.to(where), indices)
    if score is None:
        raise InputError("There is no image to evaluate on: give at least one.")
    return score.result()
