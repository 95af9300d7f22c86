r"""The training objective `distillation`: a student learns a teacher's predictions on any images.

With logits $z^S$ of the student and $z^T$ of the teacher, temperature T and labels y, the loss is

$$\alpha\, T^2\, KL\!\left(\mathrm{softmax}(z^T/T) \,\|\, \mathrm{softmax}(z^S/T)\right)
  + (1 - \alpha)\, CE(z^S, y)$$

(Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2). The teacher sees the very images that the student sees,
augmented and mixed; without a teacher, logits stored for the plain images take its place.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.core.data.batches import Batch
from pellucid.core.data.dataset import Dataset
from pellucid.core.data.splits import MemorySplit, holdout
from pellucid.core.device import fitting
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization, declare, facts
from pellucid.core.modes import evaluating
from pellucid.core.source import open_network
from pellucid.core.train.objective import Objective
from pellucid.distillation.features import logits_from
from pellucid.distillation.folder import fingerprint
from pellucid.distillation.sources import joined, read_source


@dataclass
class Distillation(Objective):
    """Learn a teacher's predictions, not labels alone.

    Args:
        teacher: run folder or checkpoint; default none: the logits stored with synthesised images.
        teacher_model: architecture of a foreign checkpoint.
        teacher_mean: mean of each input channel, for a teacher that does not know it.
        teacher_std: standard deviation of each input channel, for a teacher that does not know it.
        images: what to learn from, one or more of: folders of synthesised images; real, all training images of the
            data; real:K, K per class; random:N, N of all; noise:N, Gaussian noise.
        length: images per epoch, repeated if there are fewer, evenly spaced ones if there are more; default as many as
            there are, those held out included.
        temperature: of both softmaxes; above 0.
        alpha: weight of the teacher's predictions in the loss, from 0 to 1; the labels have the rest.
        held_out: fraction of these images, in the classes' proportions, that is not learned from but used to choose the
            best epoch, below 0.5. Of real alone, the data's own held-out images are used instead. With 0, or one image
            per class, nothing is held out and the last epoch is kept.
    """

    teacher: str | None = None
    teacher_model: str | None = None
    teacher_mean: list[float] | None = None
    teacher_std: list[float] | None = None
    images: list[str] | None = None
    length: int | None = None
    temperature: float = 4.0
    alpha: float = 0.9
    held_out: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"A temperature of {self.temperature:g} is out of range: give one above 0.")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is {self.alpha:g}: give a weight from 0 to 1.")
        if not 0 <= self.held_out < 0.5:
            raise InputError(f"A held-out fraction of {self.held_out:g} is out of range: give 0 to below 0.5.")
        if self.length is not None and self.length < 1:
            raise InputError(f"An epoch of {self.length} images is empty: give at least 1.")
        self.network: nn.Module | None = None
        self._stored: Tensor | None = None  # logits of an epoch's images, by their place in it
        self._norms: list[Normalization] = []  # of the images in the loop and of the teacher, where they differ

    def data(self, dataset: Dataset, seed: int) -> Dataset:
        """`dataset` with the images to learn from as training images, and those held out of them for validation.

        No real image but those of the test set remains, unless `images` names real ones.
        """
        if self.teacher is not None:
            self.network = open_network(self.teacher, self.teacher_model).model
            self._check_teacher(self.network, dataset)
        words = self.images or ["real"]
        found = [read_source(word, dataset, seed, self.network, self._norm(dataset, None)) for word in words]
        split = joined([source.split for source in found])
        norm = self._norm(dataset, next((source.normalization for source in found if source.normalization), None))
        if words == ["real"] and self.held_out:
            kept, val = torch.arange(len(split)), dataset.val
        else:
            kept, held = self._parted(split.labels)
            val = split.take(held).marked("val")
        length = self.length or len(split)
        places = torch.arange(length)
        # Images come class by class: where an epoch has room for fewer, they are taken evenly spaced.
        order = kept[places % len(kept) if length >= len(kept) else places * len(kept) // length]
        if self.network is None and self.alpha:
            stored = [source.logits for source in found if source.logits is not None]
            if len(stored) < len(found):
                raise InputError("These images have no stored logits: name the --teacher.")
            self._stored = torch.cat(stored)[order]
        digest = hashlib.sha256(f"{dataset.fingerprint} {self.held_out:g}".encode())
        digest.update(split.labels.numpy().tobytes())
        if isinstance(split, MemorySplit):
            digest.update(split.images.contiguous().numpy().data)
        if self.network is not None:
            digest.update(fingerprint(self.network).encode())
        return replace(
            dataset,
            train=split.take(order),
            val=val,
            mean=norm.mean,
            std=norm.std,
            fingerprint=digest.hexdigest(),
        )

    def prepare(self, model: nn.Module, dataset: Dataset, device: torch.device) -> None:
        if self.network is not None:
            self.network.to(device).requires_grad_(False).eval()
            own, fed = facts(self.network).normalization, dataset.normalization
            self._norms = [] if own is None or own == fed else [fed, own]
        if self._stored is not None:
            self._stored = self._stored.to(device)

    def __call__(
        self, forward: Callable[[Tensor], Tensor], batch: Batch, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = forward(images).float()
        if not self.alpha:
            return self.cross_entropy(logits, targets), logits
        soft = (self._teacher_logits(batch, images, targets) / self.temperature).log_softmax(1)
        own = (logits / self.temperature).log_softmax(1)
        divergence = F.kl_div(own, soft, reduction="batchmean", log_target=True)
        loss = self.alpha * self.temperature**2 * divergence
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * self.cross_entropy(logits, targets)
        return loss, logits

    @torch.no_grad()
    def _teacher_logits(self, batch: Batch, images: Tensor, targets: Tensor) -> Tensor:
        """The teacher's logits (B, K) for a batch."""
        if self.network is not None:
            if self._norms:
                images = _renormalized(images, *self._norms)
            return self.network(fitting(self.network, images)).float()
        assert self._stored is not None
        if targets.is_floating_point():
            raise InputError(
                "Stored logits belong to unmixed images: leave out --mixup and --cutmix, or name --teacher."
            )
        return self._stored[batch.indices]

    def _parted(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The places of the images to learn from, and of those held out, which may be none."""
        if round(self.held_out * len(labels)) and int(labels.bincount().max()) > 1:
            return holdout(labels, self.held_out, "The images to learn from")
        return torch.arange(len(labels)), torch.arange(0)

    def _norm(self, dataset: Dataset, stored: Normalization | None) -> Normalization:
        """How the input is normalised: as the teacher expects, so that both networks see the same."""
        own = None if self.network is None else facts(self.network).normalization
        return own or stored or dataset.normalization

    def _check_teacher(self, network: nn.Module, dataset: Dataset) -> None:
        if (self.teacher_mean is None) != (self.teacher_std is None):
            raise InputError("--teacher-mean and --teacher-std belong together: give both.")
        if self.teacher_mean is not None and self.teacher_std is not None:
            if {len(self.teacher_mean), len(self.teacher_std)} != {dataset.channels} or min(self.teacher_std) <= 0:
                raise InputError(
                    f"--teacher-mean and --teacher-std need {dataset.channels} numbers each, std above 0, not "
                    f"{self.teacher_mean} and {self.teacher_std}."
                )
            declare(network, normalization=Normalization(tuple(self.teacher_mean), tuple(self.teacher_std)))
        known = facts(network).classes
        if known and known != dataset.classes:
            raise InputError(
                f"The teacher {self.teacher!r} distinguishes other classes than those of {dataset.name}: give one of "
                "the same classes."
            )
        with torch.no_grad(), evaluating(network):
            outputs = logits_from(network, torch.zeros(1, dataset.channels, *dataset.image_size)).shape[1]
        if outputs != len(dataset.classes):
            raise InputError(
                f"The teacher {self.teacher!r} has {outputs} classes, {dataset.name} {len(dataset.classes)}: they must "
                "be the same."
            )


def _renormalized(images: Tensor, old: Normalization, new: Normalization) -> Tensor:
    """Images normalised by `old`, converted to the normalisation `new`."""
    m, s, M, S = (
        torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        for values in (old.mean, old.std, new.mean, new.std)
    )
    return images * (s / S) + (m - M) / S
