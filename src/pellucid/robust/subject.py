"""A network as it meets disturbed images: normalised input, a chosen lambda, re-estimated batch norm, a blur."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pellucid.core.data.dataset import Dataset
from pellucid.core.device import fitting, single
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization
from pellucid.core.measure.attack import fgsm, pgd
from pellucid.core.measure.corrupt.resample import gaussian
from pellucid.core.measure.fits import normalization
from pellucid.core.modes import evaluating
from pellucid.core.network.reestimate import reestimated
from pellucid.core.network.statistics import BATCH_NORMS
from pellucid.core.terminal import track
from pellucid.sparse.adapt import lam_at, residual, sparse_layer

Policy = Literal["none", "fitted", "adaptive", "oracle"]
Lam = float | Callable[[Tensor], Tensor] | None

BLUR = 0.6  # standard deviation in pixels of the light blur, a control
CALIBRATION = 256  # clean images that lambda is calibrated on
RAISED = 4.0  # times the trained lambda, for attacks on a raised lambda where no policy names one


@dataclass
class Subject:
    """A network and how its images are prepared. Every call leaves the mode of each submodule as it was.

    Attributes:
        model: on `device`.
        norm: of its input.
        device: cpu, cuda, ...
        batch: images per forward pass, over which batch norm is re-estimated.
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
        """Whether there are running statistics to re-estimate."""
        return any(isinstance(m, BATCH_NORMS) and m.running_mean is not None for m in self.model.modules())

    def parts(self, images: Tensor) -> int:
        """How many equal batches of at most `batch` images make up `images`."""
        return max(1, math.ceil(len(images) / self.batch))

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """`images` in equal batches of at most `batch`."""
        yield from images.tensor_split(self.parts(images))

    def normalized(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the network expects them, on its device."""
        return self.norm.apply(images).to(self.device)

    @torch.no_grad()
    def logits(self, images: Tensor, *, lam: Lam = None, reestimate: bool = False, blur: float = 0.0) -> Tensor:
        """Logits (B, K) on the CPU for images (B, C, H, W) in [0, 1].

        Args:
            images: in [0, 1].
            lam: of the first sparse-coding layer: a number, a function images -> (B,) numbers, or None for its own.
            reestimate: normalise each batch by its own statistics.
            blur: standard deviation in pixels of a Gaussian filter applied first.
        """
        found = []
        with evaluating(self.model):
            for batch in self.batches(images):
                batch = gaussian(batch, blur) if blur else batch
                chosen = lam(batch).to(self.device) if callable(lam) else lam
                x = self.normalized(batch)
                with lam_at(self.sparse, chosen):
                    if reestimate:
                        with reestimated(self.model, x):
                            found.append(self.model(fitting(self.model, x)))
                    else:
                        found.append(self.model(fitting(self.model, x)))
        return torch.cat(found).float().cpu()

    def correct(self, images: Tensor, labels: Tensor, **how: Any) -> Tensor:
        """(B,) whether each prediction is correct; `how` as in `logits`."""
        return self.logits(images, **how).argmax(1) == labels

    def residual(self, images: Tensor) -> float:
        """Mean over the images of the sparse-coding layer's residual at its own lambda."""
        with evaluating(self.model):
            found = [residual(self.sparse, self.normalized(batch)) for batch in self.batches(images)]
        return float(torch.cat(found).mean())

    def classifier(self, lam: Lam) -> Callable[[Tensor], Tensor]:
        """Images (B, C, H, W) in [0, 1], on the device, to logits (B, K); differentiable.

        Where `lam` is a function of the images, it is evaluated for each batch of images, and differentiated too.
        """
        model = self.norm.wrap(lambda x: single(self.model(fitting(self.model, x))))

        def run(images: Tensor) -> Tensor:
            with lam_at(self.sparse, lam(images) if callable(lam) else lam):
                return model(images)

        return run

    def attacked(
        self, images: Tensor, labels: Tensor, indices: Tensor, lam: Lam, *, steps: int | None = None, **attack: Any
    ) -> Tensor:
        """Adversarial images against the network at `lam`, as in `logits`.

        Args:
            images, labels, indices: as `core.measure.attack.pgd` takes them.
            lam: of the first sparse-coding layer. A function of the images is part of what is attacked: lambda is
                computed anew in every step, and the gradient goes through it.
            steps: of projected gradient descent; None for the fast gradient sign method.
            attack: other arguments of these.
        """
        made = []
        parts = self.parts(images)
        model = self.classifier(lam)
        rows = (images.tensor_split(parts), labels.tensor_split(parts), indices.tensor_split(parts))
        with evaluating(self.model):
            for x, y, numbers in track(zip(*rows, strict=True), parts, "attacking test images"):
                x, y = x.to(self.device), y.to(self.device)
                if steps is None:
                    made.append(fgsm(model, x, y, **attack).cpu())
                else:
                    made.append(pgd(model, x, y, steps=steps, indices=numbers, **attack).cpu())
        return torch.cat(made)


def subject_of(model: nn.Module, dataset: Dataset, device: str = "cpu", batch: int = 250) -> Subject:
    """`model`, moved to the device, with the normalisation that it or else its data declare."""
    return Subject(model.to(device), normalization(model, dataset), device, batch)
