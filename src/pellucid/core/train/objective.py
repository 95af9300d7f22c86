"""What training minimises: cross-entropy, or an objective that an idea or another package provides by name.

An objective turns one pass of the network over a batch into a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.core.data.batches import Batch
from pellucid.core.data.dataset import Dataset
from pellucid.core.registry import Registry, made


class Objective:
    """Cross-entropy of the logits of one pass, and the base class of every other objective.

    The network keeps its structure: parameters and counters of the objective itself belong to its `module`.

    Attributes:
        module: the objective's own parameters and buffers, or None. They are trained along with the network's, with the
            same optimizer and learning rate but without weight decay or gradient clipping. Checkpoints keep them (with
            several processes, the first one's buffers), and `objective.safetensors` in the run folder keeps those of
            the best epoch. What need not be kept, such as a frozen teacher, does not belong in it.
        facts: what that file says about its tensors, as JSON values.
        taps: whether it looks into the network as it runs, which a compiled network does not allow.
        label_smoothing: fraction of a label's weight that is spread over all classes; set by the training loop.
    """

    module: nn.Module | None = None
    facts: Mapping[str, Any] = MappingProxyType({})
    taps: bool = False
    label_smoothing: float = 0.0

    def data(self, dataset: Dataset, seed: int) -> Dataset:
        """The data to train on in place of `dataset`, which the settings name; called first. Keeps its test split.

        Without validation images, the last epoch is kept.

        Raises:
            InputError: the objective does not fit the data.
        """
        return dataset

    def prepare(self, model: nn.Module, dataset: Dataset, device: torch.device) -> None:
        """Called once, before the optimizer is made; torch's random state is set from the run's seed.

        Args:
            model: the network, on `device`, in training mode and with the weights that training starts from; neither
                its structure nor its state may change.
            dataset: the training data.
            device: where batches will be, and where the objective's own tensors belong.

        Raises:
            InputError: the objective does not fit the network or the data.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of `epoch` (from 0), and again when a run is resumed within it."""

    def __call__(
        self, forward: Callable[[Tensor], Tensor], batch: Batch, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of one step, and the network's logits.

        Args:
            forward: the network as it trains (distributed, in mixed precision, compiled), images -> logits; to be
                called exactly once.
            batch: this process's part of the batch as it was drawn, with labels and indices.
            images: (B, C, H, W) float32, the images of `batch` after mixing.
            targets: (B,) int64 labels, or (B, K) float32 fractions of the classes if images are mixed.

        Returns:
            The mean loss of the B images, a scalar with a gradient, and the logits (B, K), float32.
        """
        logits = forward(images).float()
        return self.cross_entropy(logits, targets), logits

    def after_step(self) -> None:
        """Called after every update of the weights, without gradients: the place for a projection."""

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of logits (B, K) with `targets` as in a call, with the run's label smoothing."""
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)


# --- objectives by name ---

# Functions with typed, documented keyword arguments, or dataclasses; the arguments become flags.
OBJECTIVES: Registry[Callable[..., Objective]] = Registry("objective", own="OBJECTIVES")


def objective(name: str, **options: Any) -> Objective:
    """The objective called `name`, with `options`.

    Raises:
        InputError: an unknown objective or option.
    """
    return made(f"objective {name!r}", OBJECTIVES[name], options)
