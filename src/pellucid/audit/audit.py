"""What cards read: a model, its data, and one pass over the test images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.audit.thumbnails import thumbnail
from pellucid.core.data.batches import batches, steps_per_epoch, usual_batch
from pellucid.core.data.copies import copies
from pellucid.core.data.dataset import Dataset
from pellucid.core.device import choose_device, fitting
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization, facts
from pellucid.core.measure.corrupt import corrupt_images
from pellucid.core.measure.evaluate import Evaluation, Score, predict
from pellucid.core.measure.fits import check_fits, normalization
from pellucid.core.measure.share import wilson
from pellucid.core.modes import evaluating
from pellucid.core.terminal import track
from pellucid.core.train.run import Run

T = TypeVar("T")


@dataclass(eq=False)
class Audit:
    """What cards read. Row i of `labels` and `logits` belongs to image i of `dataset.test`.

    Attributes:
        model: on `device`; `pellucid.open` runs all cards with it in evaluation mode.
        dataset: the data; `dataset.test` holds the images that were evaluated.
        evaluation: the metrics of the test images.
        logits, labels: (N, K) float32 and (N,) int64, on the CPU.
        normalization: of the model's input.
        history: rows of the run's `metrics.jsonl`; empty without a run.
        settings: the run's settings; empty without a run.
        description: how the model is rebuilt; for a model without a description only the name of its class.
        seed: every random draw of a card is derived from it.
        batch_size: images per forward pass.
        level: of all confidence intervals.
    """

    model: nn.Module
    dataset: Dataset
    evaluation: Evaluation
    logits: Tensor
    labels: Tensor
    normalization: Normalization
    device: str = "cpu"
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 512
    level: ClassVar[float] = 0.95
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make()` returns, computed at the first call with this key and remembered for all cards."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return self.dataset.classes

    @cached_property
    def present(self) -> tuple[int, ...]:
        """Numbers of the classes with an image in any split; a network may have more classes than its data."""
        absent = set(self.dataset.absent)
        return tuple(index for index in range(len(self.classes)) if index not in absent)

    @cached_property
    def probabilities(self) -> Tensor:
        """(N, K)."""
        return self.logits.softmax(1)

    @cached_property
    def predictions(self) -> Tensor:
        """(N,) the class with the largest logit."""
        return self.logits.argmax(1)

    @cached_property
    def confusion(self) -> np.ndarray:
        """(K, K) int64: how many test images of class i are classified as j."""
        return np.array(self.evaluation.confusion, dtype=np.int64)

    @cached_property
    def confidence(self) -> Tensor:
        """(N,) the predicted probability of the predicted class."""
        return self.probabilities.amax(1)

    @property
    def examples(self) -> int:
        """Pictures per strip; fewer where many classes share the page."""
        return 6 if len(self.classes) <= 20 else 3 if len(self.classes) <= 100 else 1

    def interval(self, k: int, n: int) -> tuple[float, float]:
        """Wilson's interval for k of n at `level`."""
        return wilson(k, n, self.level)

    @property
    def large(self) -> bool:
        """Whether images are so large (beyond 64x64 pixels) that cards should use fewer of them."""
        return self.dataset.image_size[0] * self.dataset.image_size[1] > 64 * 64

    def sample(self, limit: int) -> Tensor:
        """Indices of at most `limit` test images, sampled by seed; a smaller limit gives the first of them."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.seed))
        return order[:limit]

    def images(self, indices: Tensor) -> Tensor:
        """Test images in [0, 1], float32 (B, C, H, W) on the CPU."""
        return self.dataset.test.fetch(indices).float() / 255

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) on the CPU for images in [0, 1]."""
        with torch.no_grad(), evaluating(self.model):
            return self.model(fitting(self.model, self.normalization.apply(images))).float().cpu()

    def _corrupt(self, images: Tensor, kind: str, severity: int, indices: Tensor) -> Tensor:
        return corrupt_images(images, kind, severity, seed=self.seed, indices=indices)

    def corrupted(self, kind: str, severity: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and confidences (B,) for corrupted test images; computed once, however many cards ask."""

        def predict_all() -> tuple[Tensor, Tensor]:
            chunks = [
                self.forward(self._corrupt(self.images(chunk), kind, severity, chunk))
                for chunk in indices.split(self.batch_size)
            ]
            confidence, predictions = torch.cat(chunks).softmax(1).max(1)
            return predictions, confidence

        return self.once(("corrupted", kind, severity, tuple(indices.tolist())), predict_all)

    def pictures(self, indices: Sequence[int], kind: str | None = None, severity: int = 0) -> list[np.ndarray]:
        """Test images as thumbnails, uint8 (H, W, C); corrupted if a kind is given."""
        if not indices:
            return []
        chosen = torch.tensor(indices)
        images = self.images(chosen)
        if kind is not None:
            images = self._corrupt(images, kind, severity, chosen)
        return [thumbnail(image) for image in images]


def make_audit(
    model: nn.Module,
    dataset: Dataset,
    *,
    run: Run | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
) -> Audit:
    """Run the test images through `model` once; it is moved to the device, and every submodule keeps its mode.

    Raises:
        InputError: the model does not fit the data, or returns NaN.
    """
    device = choose_device(device)
    batch_size = usual_batch(dataset.image_size) if batch_size is None else batch_size
    if batch_size < 1:
        raise InputError(f"A batch size of {batch_size} is out of range: give at least 1.")
    model = model.to(device)
    check_fits(model, dataset)
    norm = normalization(model, dataset)
    stream = batches(
        dataset.test,
        batch_size,
        mean=norm.mean,
        std=norm.std,
        device=device,
        workers=2 if dataset.test.streamed else 0,
    )
    apart = copies(dataset.test, dataset.train) if len(dataset.train) else None
    score, logits, labels = Score(dataset.classes, device, apart), [], []
    steps = steps_per_epoch(len(dataset.test), batch_size)
    for batch, found in track(predict(model, stream), steps, "reading the test images"):
        if found.softmax(1).isnan().any():
            raise InputError(
                f"The model's outputs on the test images of {dataset.name} are not numbers: "
                "its weights are damaged, or its training diverged."
            )
        score.add(found, batch.labels, batch.indices)
        logits.append(found.cpu())
        labels.append(batch.labels.cpu())
    return Audit(
        model=model,
        dataset=dataset,
        evaluation=score.result(),
        logits=torch.cat(logits),
        labels=torch.cat(labels),
        normalization=norm,
        device=device,
        history=run.metrics() if run else [],
        settings=asdict(run.settings) if run else {},
        description=dict(facts(model).description or {}) or {"model": type(model).__name__},
        seed=seed,
        batch_size=batch_size,
    )
