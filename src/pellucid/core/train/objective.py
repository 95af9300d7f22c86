"""What training minimises: cross-entropy, or an objective that an idea has registered by name.

An objective turns one pass of the network over a batch into a loss. This file names no idea's.
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
    """Cross-entropy with the logits of one pass; the base of every other objective.

    The network keeps its structure: what an objective trains or counts itself is its own `module`.

    Attributes:
        module: parameters and buffers of the objective's own, or None. They are trained with the network's, by the
            same optimizer and learning rate but without weight decay or gradient clipping; a checkpoint keeps them
            (of several processes the first one's buffers), and `objective.safetensors` of the run folder those of the
            best epoch. What need not be kept, such as a frozen teacher, stays out of it.
        facts: what the file of the best epoch tells beside its tensors, as JSON.
        taps: whether it looks into the network as it runs, which a compiled one does not allow.
        label_smoothing: share of a label's weight that is spread over all classes; the training loop sets it.
    """

    module: nn.Module | None = None
    facts: Mapping[str, Any] = MappingProxyType({})
    taps: bool = False
    label_smoothing: float = 0.0

    def data(self, dataset: Dataset, seed: int) -> Dataset:
        """What is trained on in place of `dataset`, which the settings name; called first. Its test set is kept.

        Raises:
            InputError: the objective does not fit the data.
        """
        return dataset

    def prepare(self, model: nn.Module, dataset: Dataset, device: torch.device) -> None:
        """Called once, before there is an optimizer; random draws are functions of the run's seed.

        Args:
            model: the network, on `device`, in training mode and with the weights that training starts from; neither
                its structure nor its state may change.
            dataset: what it is trained on.
            device: where batches will be; tensors of the objective's own belong there.

        Raises:
            InputError: the objective does not fit the network or the data.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of `epoch` (from 0), and again where a run is resumed within it."""

    def __call__(
        self, forward: Callable[[Tensor], Tensor], batch: Batch, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of one step, and the network's logits.

        Args:
            forward: the network as it trains (distributed, in mixed precision, compiled): images -> logits. It must
                be called, and only once.
            batch: this process's share as it was drawn, with labels and indices.
            images: (B, C, H, W) float32, its images after mixing.
            targets: (B,) int64 labels, or (B, K) float32 shares of the classes where images are mixed.

        Returns:
            The mean loss of the B images, a scalar with a gradient, and the logits (B, K) in float32.
        """
        logits = forward(images).float()
        return self.cross_entropy(logits, targets), logits

    def after_step(self) -> None:
        """Called after every update of the weights, with gradients off: the place for a projection."""

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of logits (B, K) with `targets` as of a call, smoothed as the run asks."""
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)


# --- objectives by name ---

# Functions of typed, documented keyword arguments, or dataclasses: the arguments become flags.
OBJECTIVES: Registry[Callable[..., Objective]] = Registry("objective", own="OBJECTIVES")


def objective(name: str, **options: Any) -> Objective:
    """The objective called `name`, with `options`.

    Raises:
        InputError: no such objective, or an option that it does not take.
    """
    return made(f"objective {name!r}", OBJECTIVES[name], options)
