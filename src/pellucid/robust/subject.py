"""A network and the ways in which it may meet disturbed images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pellucid.core.data.dataset import Dataset
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization
from pellucid.core.measure.attack import fgsm, pgd
from pellucid.core.measure.corrupt.resample import gaussian
from pellucid.core.measure.fits import normalization
from pellucid.core.measure.share import wilson
from pellucid.core.network.reestimate import reestimated
from pellucid.core.network.statistics import BATCH_NORMS
from pellucid.core.terminal import track
from pellucid.sparse.adapt import lam_at, residual, sparse_layer

Policy = Literal["none", "fitted", "adaptive", "oracle"]
Lam = float | Callable[[Tensor], Tensor] | None

BLUR = 0.6  # pixels: what the light blur of the control blurs by
CALIBRATION = 256  # clean images that lambda is calibrated on
RAISED = 4.0  # times the trained lambda, where an attack meets a raised one and the policy names none


# --- one network ---


@dataclass
class Subject:
    """A network with what is done to it, and to its images, before it answers.

    model: in evaluation mode on `device`; norm: of its input; batch: images that are answered
    together, over which batch norm is estimated again.
    """

    model: nn.Module
    norm: Normalization
    device: str = "cpu"
    batch: int = 250
    sparse: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        try:
            self.sparse = sparse_layer(self.model)
        except InputError:
            self.sparse = None

    @property
    def has_batch_norm(self) -> bool:
        return any(isinstance(m, BATCH_NORMS) and m.running_mean is not None for m in self.model.modules())

    def chunks(self, images: Tensor) -> Iterator[Tensor]:
        """Equal parts of at most `batch` images."""
        yield from images.tensor_split(max(1, math.ceil(len(images) / self.batch)))

    def scaled(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the network wants them, on its device."""
        return self.norm.apply(images).to(self.device)

    @torch.no_grad()
    def logits(self, images: Tensor, *, lam: Lam = None, reestimate: bool = False, blur: float = 0.0) -> Tensor:
        """(B, K) on the CPU for images (B, C, H, W) in [0, 1].

        lam: of the first sparse layer: a number, a function of the images to one for each, or None for its own.
        reestimate: normalise each batch by its own statistics.
        blur: standard deviation in pixels of a Gaussian filter before all else.
        """
        found = []
        for chunk in self.chunks(images):
            chunk = gaussian(chunk, blur) if blur else chunk
            chosen = lam(chunk).to(self.device) if callable(lam) else lam
            x = self.scaled(chunk)
            with lam_at(self.sparse, chosen):
                if reestimate:
                    with reestimated(self.model, x):
                        found.append(self.model(x))
                else:
                    found.append(self.model(x))
        return torch.cat(found).float().cpu()

    def right(self, images: Tensor, labels: Tensor, **how: Any) -> Tensor:
        """(B,) whether each answer is right; `how` as in `logits`."""
        return self.logits(images, **how).argmax(1) == labels

    def residual(self, images: Tensor) -> float:
        """Mean over the images of the sparse layer's residual at its own lambda."""
        return float(torch.cat([residual(self.sparse, self.scaled(chunk)) for chunk in self.chunks(images)]).mean())

    def attacked(
        self, images: Tensor, labels: Tensor, indices: Tensor, lam: float | Tensor | None, **attack: Any
    ) -> Tensor:
        """Adversarial images against the network at `lam`: a number, (B,) numbers, or None for its own."""
        made, steps = [], attack.pop("steps", None)
        parts = max(1, math.ceil(len(images) / self.batch))
        model = self.norm.wrap(self.model)
        lams = lam.tensor_split(parts) if isinstance(lam, Tensor) else [lam] * parts
        rows = (images.tensor_split(parts), labels.tensor_split(parts), indices.tensor_split(parts), lams)
        for x, y, numbers, chosen in track(zip(*rows, strict=True), parts, "attacking test images"):
            with lam_at(self.sparse, chosen):
                x, y = x.to(self.device), y.to(self.device)
                if steps is None:
                    made.append(fgsm(model, x, y, **attack).cpu())
                else:
                    made.append(pgd(model, x, y, steps=steps, indices=numbers, **attack).cpu())
        return torch.cat(made)


# --- what is measured ---


def share(right: Tensor) -> dict[str, Any]:
    correct, n = int(right.sum()), len(right)
    return {"correct": correct, "n": n, "accuracy": correct / n, "interval": list(wilson(correct, n))}


def shares(right: dict[str, Tensor]) -> dict[str, Any]:
    return {name: share(hits) for name, hits in right.items()}


def subject_of(model: nn.Module, dataset: Dataset, device: str = "cpu", batch: int = 250) -> Subject:
    """`model` with the normalisation that it or its data knows, in evaluation mode on the device."""
    return Subject(model.to(device).eval(), normalization(model, dataset), device, batch)
