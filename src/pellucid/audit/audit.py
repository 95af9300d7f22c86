"""What cards read: a model, its data, and one pass over the test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.audit.album import picture
from pellucid.core.data.batches import batches, steps_per_epoch
from pellucid.core.data.dataset import Dataset
from pellucid.core.device import choose_device
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization, facts
from pellucid.core.measure.corrupt import corrupt_images
from pellucid.core.measure.evaluate import Evaluation, Score, predict
from pellucid.core.measure.fits import check_fits, normalization
from pellucid.core.measure.share import wilson
from pellucid.core.terminal import track
from pellucid.core.train.run import Run


@dataclass(eq=False)
class Audit:
    """What cards read. Row i of `labels` and `logits` is test image i.

    Attributes:
        model: in evaluation mode on `device`.
        dataset: the data; `dataset.test` is what was evaluated.
        evaluation: the numbers of the test images.
        logits, labels: (N, K) float32 and (N,) int64, on the CPU.
        history: rows of the run's `metrics.jsonl`; empty without a run.
        settings: the run's settings; empty without a run.
        description: how the model is rebuilt, or only its class name.
        normalization: `{"mean", "std"}` of the model's input.
        seed: every random draw of a card comes from it.
        batch_size: images in a step.
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
    _corrupted: dict[tuple[str, int, tuple[int, ...]], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.classes

    @cached_property
    def probabilities(self) -> Tensor:
        """(N, K)."""
        return self.logits.softmax(1)

    @cached_property
    def answers(self) -> Tensor:
        """(N,) the class with the largest logit."""
        return self.logits.argmax(1)

    @cached_property
    def confidence(self) -> Tensor:
        """(N,) the probability that the model gives its answer."""
        return self.probabilities.amax(1)

    @property
    def examples(self) -> int:
        """Pictures in a strip: fewer where many classes share the page."""
        return 6 if len(self.classes) <= 20 else 3 if len(self.classes) <= 100 else 1

    def interval(self, k: int, n: int) -> tuple[float, float]:
        """Wilson's interval for k of n at `level`."""
        return wilson(k, n, self.level)

    @property
    def large(self) -> bool:
        """Are the images so large that cards should look at fewer of them?"""
        return self.dataset.image_size[0] * self.dataset.image_size[1] > 64 * 64

    def sample(self, limit: int) -> Tensor:
        """Indices of at most `limit` test images, drawn by seed; a smaller limit gives the first of the same draw."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.seed))
        return order[:limit]

    def images(self, indices: Tensor) -> Tensor:
        """Test images in [0, 1], float32 (B, C, H, W) on the CPU."""
        return self.dataset.test.fetch(indices).float() / 255

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) on the CPU for images in [0, 1]."""
        with torch.no_grad():
            scaled = self.normalization.apply(images)
            return self.model(scaled.to(self.device)).float().cpu()

    def _corrupt(self, images: Tensor, kind: str, severity: int, indices: Tensor) -> Tensor:
        # At the strengths of ImageNet-C whatever the size: the milder ones hardly move a small network's accuracy.
        return corrupt_images(images, kind, severity, strengths="imagenet", seed=self.seed, indices=indices)

    def corrupted(self, kind: str, severity: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Answers and confidences (B,) for corrupted test images; computed once, however many cards ask."""
        key = (kind, severity, tuple(indices.tolist()))
        if key not in self._corrupted:
            chunks = [
                self.forward(self._corrupt(self.images(chunk), kind, severity, chunk))
                for chunk in indices.split(self.batch_size)
            ]
            confidence, answers = torch.cat(chunks).softmax(1).max(1)
            self._corrupted[key] = answers, confidence
        return self._corrupted[key]

    def pictures(self, indices: Sequence[int], kind: str | None = None, severity: int = 0) -> list[np.ndarray]:
        """Test images for the page, uint8 (H, W, C), shrunk to at most 96 pixels; corrupted if a kind is given."""
        if not indices:
            return []
        chosen = torch.tensor(indices)
        images = self.images(chosen)
        if kind is not None:
            images = self._corrupt(images, kind, severity, chosen)
        return [picture(image) for image in images]


def make_audit(
    model: nn.Module,
    dataset: Dataset,
    *,
    run: Run | None = None,
    device: str = "auto",
    batch_size: int = 512,
    seed: int = 0,
) -> Audit:
    """One pass over the test images; the model is left in evaluation mode on the device.

    Raises:
        InputError: the model does not fit the data, or answers with what is not a number.
    """
    device = choose_device(device)
    model = model.to(device).eval()
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
    score, logits, labels = Score(dataset.classes, device), [], []
    steps = steps_per_epoch(len(dataset.test), batch_size)
    for batch, answered in track(predict(model, stream), steps, "reading the test images"):
        if answered.softmax(1).isnan().any():
            raise InputError(
                f"The model's answers to the test images of {dataset.name} are not numbers: "
                "its weights are damaged, or its training diverged."
            )
        score.add(answered, batch.labels)
        logits.append(answered.cpu())
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
