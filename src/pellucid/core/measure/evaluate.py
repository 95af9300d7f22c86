"""How good a classifier is, with the interval of every share.

Wilson's score interval for k successes of n (Wilson 1927), z the normal quantile of the level:

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),    p = k/n
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.core import vision
from pellucid.core.data.batches import Batch, batches
from pellucid.core.data.dataset import Dataset
from pellucid.core.errors import InputError, first_line
from pellucid.core.measure.share import wilson


@dataclass(frozen=True)
class Evaluation:
    """What one pass over labelled images showed. Shares are in [0, 1], intervals are Wilson's at 95 %.

    n: images; correct: of them right; top1 = correct / n; top5: share with the label among the five largest logits
    (None with five classes or fewer); loss: mean cross-entropy in nats; ece: expected calibration error, 15 equal
    bins (Guo et al. 2017, equation 3); confusion[i][j]: images of class i taken for j; per_class: for each class its
    n, correct, accuracy (None without images) and interval.
    """

    n: int
    correct: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float | None
    loss: float
    ece: float
    confusion: list[list[int]]
    per_class: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return dataclasses.asdict(self)


@torch.no_grad()
def predict(model: nn.Module, stream: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
    """Batches with their logits (B, K), float32 on the model's device; the model is in evaluation mode meanwhile."""
    training = model.training
    model.eval()
    try:
        for batch in stream:
            yield batch, model(batch.images).float()
    finally:
        model.train(training)


class Score:
    """Adds up an `Evaluation` batch by batch; over several processes if torch.distributed runs."""

    def __init__(self, classes: tuple[str, ...], device: torch.device | str = "cpu") -> None:
        vision.repair()
        from torchmetrics import MeanMetric, MetricCollection
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
        self.loss = MeanMetric(nan_strategy="disable").set_dtype(torch.float64).to(device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, K) in float32, labels (B,)."""
        losses = F.cross_entropy(logits, labels, reduction="none").double()
        self.loss.update(losses, torch.ones_like(losses))
        self.metrics.update(logits.softmax(1), labels)

    def result(self) -> Evaluation:
        """What all batches showed, on every process the same."""
        values = self.metrics.compute()
        confusion = values["confusion"].long().cpu()
        n, correct = int(confusion.sum()), int(confusion.diagonal().sum())
        per_class = []
        for name, row, right in zip(
            self.classes, confusion.sum(1).tolist(), confusion.diagonal().tolist(), strict=True
        ):
            accuracy = right / row if row else None
            entry = {"class": name, "n": row, "correct": right, "accuracy": accuracy, "interval": wilson(right, row)}
            per_class.append(entry)
        return Evaluation(
            n=n,
            correct=correct,
            top1=correct / n,
            top1_interval=wilson(correct, n),
            top5=float(values["top5"]) if "top5" in values else None,
            loss=float(self.loss.compute()),
            ece=float(values["ece"]),
            confusion=confusion.tolist(),
            per_class=per_class,
        )


def normalization(model: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """`{"mean": ..., "std": ...}` for the model's input: its checkpoint's own if it has one, else the data's."""
    own = getattr(model, "normalization", None)
    return own or {"mean": dataset.mean, "std": dataset.std}


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: str = "test",
    *,
    batch_size: int = 512,
    device: torch.device | str = "cpu",
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    channels_last: bool = False,
) -> Evaluation:
    """Evaluate `model` on a split of `dataset`: "train", "val" or "test", every image once, without augmentation.

    Args:
        model: any network images (B, C, H, W) -> logits (B, K), on `device`; input is normalised by the model's own
            `normalization` if it has one, else by the data's.
        batch_size: images in a step over all `world` processes.

    Raises:
        InputError: the model's logits are not one for each class, or it cannot take these images.
    """
    check_fits(model, dataset, device)
    norm = normalization(model, dataset)
    stream = batches(
        getattr(dataset, split),
        batch_size,
        mean=norm["mean"],
        std=norm["std"],
        device=device,
        rank=rank,
        world=world,
        workers=workers,
        channels_last=channels_last,
    )
    score = Score(dataset.classes, device)
    for batch, logits in predict(model, stream):
        score.add(logits, batch.labels)
    return score.result()


@torch.no_grad()
def check_fits(model: nn.Module, dataset: Dataset, device: torch.device | str = "cpu") -> None:
    """Refuse, in one sentence, a model that does not fit the data's channels, image size or classes."""
    known = getattr(model, "classes", None)
    if known and tuple(known) != dataset.classes:
        raise InputError(
            f"The model was trained on the classes {_few(known)}, but {dataset.name} has {_few(dataset.classes)}: "
            "evaluate it on data with the same classes."
        )
    shape = (1, dataset.channels, *dataset.image_size)
    training = model.training
    model.eval()
    try:
        logits = model(torch.zeros(shape, device=device))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"The model cannot take images of {shape[1]} channels and {shape[2]}x{shape[3]} pixels as in "
            f"{dataset.name} ({first_line(error)})."
        ) from None
    finally:
        model.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (1, len(dataset.classes)):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"The model answers {found} for one image, but {dataset.name} has {len(dataset.classes)} classes: "
            "it must give one logit a class."
        )


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
