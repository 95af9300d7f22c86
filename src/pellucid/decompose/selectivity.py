r"""Training for or against class selectivity (Leavitt and Morcos 2020, "Selectivity considered harmful").

$$ \mathrm{CE} - \alpha \, \frac1L \sum_{l=1}^L \frac1{C_l} \sum_{j=1}^{C_l} SI_{lj} $$

with the class-selectivity index $SI_{lj}$ of filter j of layer l over the images of a batch (`compare`): equation 2
there. Below 0, $\alpha$ makes filters answer all classes alike; above 0 it makes each answer one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.batches import Batch
from pellucid.core.data import Dataset
from pellucid.core.errors import InputError
from pellucid.core.objective import Objective, register
from pellucid.core.swap import module_at
from pellucid.decompose.compare import class_selectivity
from pellucid.decompose.evidence import pooled, probe


@dataclass
class Selectivity(Objective):
    """Cross-entropy, less alpha times the mean class selectivity of layers.

    Selectivity is of a process's own images, so it depends on how many processes share a batch.

    Args:
        alpha: above 0 filters become selective for a class, below 0 the opposite.
        layers: dotted names of layers whose outputs are of 0 or more; default every ReLU.
    """

    alpha: float = -1.0
    layers: list[str] | None = None

    taps = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise InputError(f"alpha={self.alpha} must be a finite number.")

    def prepare(self, model: nn.Module, dataset: Dataset, device: torch.device) -> None:
        """Find the layers, and check that what they answer is of 0 or more."""
        names = self.layers
        if names is None:
            names = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
            if not names:
                raise InputError(f"This {type(model).__name__} has no ReLU: name layers of answers of 0 or more.")
        else:
            for name in names:
                _, responses, head = probe(model, dataset, name)
                if head is not None or bool((responses < 0).any()):
                    raise InputError(f"Layer {name!r} answers below 0, where selectivity means nothing: name a ReLU.")
        self._places = [module_at(model, name) for name in names]
        self._classes = len(dataset.classes)

    def __call__(
        self, forward: Callable[[Tensor], Tensor], batch: Batch, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As of `Objective`."""
        if targets.ndim != 1:
            raise InputError("Class selectivity needs images of one class each: leave out --mixup and --cutmix.")
        seen: list[Tensor] = []

        def keep(module: nn.Module, _: Any, output: Tensor) -> None:
            # Averaged at once: what follows may overwrite it in place. Several uses of a module count as layers.
            seen.append(pooled(module, output).float())

        with contextlib.ExitStack() as stack:
            for place in self._places:
                stack.callback(place.register_forward_hook(keep).remove)
            logits = forward(images).float()
        loss = self.cross_entropy(logits, targets)
        if len(targets.unique()) < 2:  # nothing to compare
            return loss, logits
        means = [class_selectivity(responses, targets, self._classes).mean() for responses in seen]
        return loss - self.alpha * torch.stack(means).mean(), logits


register("selectivity", Selectivity)
