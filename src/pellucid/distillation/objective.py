r"""The training objective `distillation`: a student learns a teacher's answers, on whatever images there are.

With logits $z^S$ of the student, $z^T$ of the teacher, temperature T and labels y,

$$\alpha\, T^2\, KL\!\left(\mathrm{softmax}(z^T/T) \,\|\, \mathrm{softmax}(z^S/T)\right)
  + (1 - \alpha)\, CE(z^S, y)$$

(Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2). The teacher sees the images as the student does, augmented
and mixed; without a teacher its stored answers to the plain images stand in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.core.data.batches import Batch
from pellucid.core.data.dataset import Dataset
from pellucid.core.data.splits import MemorySplit, Split
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization, declare, facts
from pellucid.core.modes import evaluating
from pellucid.core.seeds import seed_of
from pellucid.core.source import open_network
from pellucid.core.train.objective import Objective
from pellucid.distillation.features import answers, run
from pellucid.distillation.folder import fingerprint, read


@dataclass
class Distillation(Objective):
    """Learn a teacher's answers instead of labels alone.

    Args:
        teacher: run folder or checkpoint; default none: the answers that are stored beside synthesised images.
        teacher_model: architecture of a foreign checkpoint.
        teacher_mean: mean of each input channel, where the teacher does not know it.
        teacher_std: standard deviation of each input channel, where the teacher does not know it.
        images: what is learned from, one or more of: folders of synthesised images; real, all training images of the
            data; real:K, K of each class; random:N, N of all; noise:N, Gaussian noise.
        length: images in an epoch; fewer are repeated. Default as many as there are.
        temperature: of both softmaxes; above 0.
        alpha: share of the teacher's answers in the loss, 0 to 1; the rest is of the labels.
    """

    teacher: str | None = None
    teacher_model: str | None = None
    teacher_mean: list[float] | None = None
    teacher_std: list[float] | None = None
    images: list[str] | None = None
    length: int | None = None
    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"A temperature of {self.temperature:g} is out of range: give one above 0.")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is {self.alpha:g}: it is a share, from 0 to 1.")
        if self.length is not None and self.length < 1:
            raise InputError(f"An epoch of {self.length} images is empty: give at least 1.")
        self.network: nn.Module | None = None
        self._stored: Tensor | None = None  # logits of the images of an epoch, by their place in it
        self._norms: list[Normalization] = []  # of what the loop feeds, and of what the teacher takes

    def data(self, dataset: Dataset, seed: int) -> Dataset:
        """The images to learn from in place of the training images; validation is on them too, without augmentation.

        Nothing real but the test set is left, unless `images` names real ones.
        """
        if self.teacher is not None:
            self.network = open_network(self.teacher, self.teacher_model).model
            self._check_teacher(self.network, dataset)
        found = [self._source(word, dataset, seed) for word in self.images or ["real"]]
        split, stored = _joined([split for split, _, _ in found]), [logits for _, logits, _ in found]
        norm = self._norm(dataset, next((norm for _, _, norm in found if norm), None))
        order = torch.arange(self.length or len(split)) % len(split)
        if self.network is None and self.alpha:
            if any(logits is None for logits in stored):
                raise InputError("These images have no stored answers: name the --teacher.")
            self._stored = torch.cat([logits for logits in stored if logits is not None])[order]
        digest = hashlib.sha256(dataset.fingerprint.encode())
        digest.update(split.labels.numpy().tobytes())
        if isinstance(split, MemorySplit):
            digest.update(split.images.contiguous().numpy().data)
        if self.network is not None:
            digest.update(fingerprint(self.network).encode())
        return replace(
            dataset,
            train=split.take(order),
            val=split,
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
        soft = (self._answers(batch, images, targets) / self.temperature).log_softmax(1)
        own = (logits / self.temperature).log_softmax(1)
        divergence = F.kl_div(own, soft, reduction="batchmean", log_target=True)
        loss = self.alpha * self.temperature**2 * divergence
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * self.cross_entropy(logits, targets)
        return loss, logits

    @torch.no_grad()
    def _answers(self, batch: Batch, images: Tensor, targets: Tensor) -> Tensor:
        """The teacher's logits (B, K)."""
        if self.network is not None:
            if self._norms:
                images = _renormalized(images, *self._norms)
            return self.network(images).float()
        assert self._stored is not None
        if targets.is_floating_point():
            raise InputError("Stored answers are of unmixed images: leave out --mixup and --cutmix, or name --teacher.")
        return self._stored[batch.indices]

    # --- what is learned from ---

    def _source(self, word: str, dataset: Dataset, seed: int) -> tuple[Split, Tensor | None, Normalization | None]:
        """Images, stored logits and normalisation that one word of `images` names."""
        kind, _, number = word.partition(":")
        if word == "real":
            return dataset.train, None, None
        if kind in ("real", "random", "noise") and number:
            if not number.isdigit() or int(number) < 1:
                raise InputError(f"{word!r} names no images: give a whole number, as in {kind}:10.")
            draw = {"real": _of_each_class, "random": _of_all, "noise": self._noise}[kind]
            return draw(dataset, int(number), seed), None, None
        images = read(word)
        if sorted(images.classes) != sorted(dataset.classes):
            raise InputError(f"The classes of {word!r} are not those of {dataset.name}: give images of the same ones.")
        split, norm = images.split, Normalization.of(images.manifest.get("normalization"))
        if (split.channels, *split.image_size) != (dataset.channels, *dataset.image_size):
            sizes = " and ".join(f"{c}x{h}x{w}" for c, (h, w) in ((s.channels, s.image_size) for s in (split, dataset)))
            raise InputError(f"The images of {word!r} and those of {dataset.name} differ in size, {sizes}.")
        place = torch.tensor([dataset.classes.index(name) for name in images.classes])
        split = replace(split, labels=place[split.labels])
        logits = images.logits
        return split, logits if logits is None else logits[:, place.argsort()], norm

    def _noise(self, dataset: Dataset, count: int, seed: int) -> Split:
        """Gaussian noise of the input's mean and deviation, labelled by the teacher."""
        if self.network is None:
            raise InputError("Noise has no labels but the teacher's: name the --teacher.")
        norm = self._norm(dataset, None)
        rng = torch.Generator().manual_seed(seed_of("noise", seed))
        noise = torch.randn(count, dataset.channels, *dataset.image_size, generator=rng)
        pixels = (255 * norm.undo(noise).clamp(0, 1)).round().byte()
        return MemorySplit(pixels, answers(self.network, pixels, norm).argmax(1))

    def _norm(self, dataset: Dataset, stored: Normalization | None) -> Normalization:
        """What the input is normalised by: as the teacher's, so that both see the same."""
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
            raise InputError(f"The teacher {self.teacher!r} tells other classes apart than those of {dataset.name}.")
        with torch.no_grad(), evaluating(network):
            outputs = run(network, torch.zeros(1, dataset.channels, *dataset.image_size)).shape[1]
        if outputs != len(dataset.classes):
            raise InputError(
                f"The teacher {self.teacher!r} has {outputs} classes, {dataset.name} {len(dataset.classes)}: they must "
                "be the same."
            )


def _of_each_class(dataset: Dataset, count: int, seed: int) -> Split:
    """`count` random training images of each class, or all where there are fewer."""
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed_of("real", seed)))
    labels = dataset.train.labels[order]
    picks = [order[labels == label][:count] for label in range(len(dataset.classes))]
    return dataset.train.take(torch.cat(picks))


def _of_all(dataset: Dataset, count: int, seed: int) -> Split:
    """`count` random training images."""
    if count > len(dataset.train):
        raise InputError(f"{dataset.name} has {len(dataset.train)} training images, not {count}: ask for fewer.")
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed_of("real", seed)))
    return dataset.train.take(order[:count])


def _joined(splits: Sequence[Split]) -> Split:
    if len(splits) == 1:
        return splits[0]
    held = [split for split in splits if isinstance(split, MemorySplit)]
    if len(held) < len(splits):
        raise InputError("Several sources of images must fit into memory: give one, or smaller ones.")
    return MemorySplit(torch.cat([s.images for s in held]), torch.cat([s.labels for s in held]), held[0].budget)


def _renormalized(images: Tensor, old: Normalization, new: Normalization) -> Tensor:
    """Images normalised by `old`, as they would be by `new`."""
    m, s, M, S = (
        torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        for values in (old.mean, old.std, new.mean, new.std)
    )
    return images * (s / S) + (m - M) / S
