"""A network that can only be asked for its predictions: images (B, C, H, W) -> logits (B, K)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError, shown
from pellucid.core.facts import declare


class BlackBox(nn.Module):
    """A network in a file that holds a finished computation, not layers.

    Attributes:
        file: where it comes from, for messages.
        kind: what the file is, in words: "an ONNX file".
        in_channels, image_size: of its images; None where it takes any.
        num_classes: number of logits per image; None if the file does not say.
        batch: number of images that it takes at a time; None for any. Images are passed on in such batches.
        differentiable: whether gradients flow from the logits to the images.
    """

    kind = "a black box"
    differentiable = False

    def __init__(
        self,
        file: str,
        in_channels: int | None,
        image_size: tuple[int, int] | None,
        num_classes: int | None,
        batch: int | None,
    ) -> None:
        super().__init__()
        self.file, self.in_channels, self.image_size = file, in_channels, image_size
        self.num_classes, self.batch = num_classes, batch
        self.place: Tensor
        # Says to which device the module was moved: images are expected, and logits returned, there.
        self.register_buffer("place", torch.empty(0), persistent=False)

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """The logits of one batch, of `batch` images if the file is for so many."""

    def forward(self, images: Tensor) -> Tensor:
        self._check(images)
        if len(images) == 0 and self.num_classes is not None:
            return images.new_zeros(0, self.num_classes)
        if self.batch is None or len(images) == self.batch:
            return self.predict(images)
        found = []
        for part in images.split(self.batch):
            missing = self.batch - len(part)
            whole = torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part
            found.append(self.predict(whole)[: len(part)])
        return torch.cat(found)

    def _check(self, images: Tensor) -> None:
        wanted = [self.in_channels, *(self.image_size or (None, None))]
        fits = images.dim() == 4 and all(n is None or n == m for n, m in zip(wanted, images.shape[1:], strict=True))
        if not fits:
            form = " x ".join("any" if n is None else str(n) for n in wanted)
            raise InputError(
                f"{shown(self.file, 200)} takes images of {form} (channels, height, width), not a tensor of shape "
                f"{list(images.shape)}."
            )

    def extra_repr(self) -> str:
        return f"{self.file!r}, {self.kind}"


B = TypeVar("B", bound=BlackBox)


def described(box: B, **known: Any) -> B:
    """`box` in evaluation mode, with the facts that its file names, and a description of its images."""
    size = None if box.image_size is None else list(box.image_size)
    about = {"num_classes": box.num_classes, "in_channels": box.in_channels, "image_size": size}
    return declare(box, description={"model": box.kind.partition(" ")[2], **about}, **known).eval()


def softmax(file: str) -> str:
    """What there is to say of a file whose last operator is a softmax."""
    return f"{shown(file, 200)} returns probabilities, of which the logarithms are taken as logits."


def black_box_in(model: nn.Module) -> BlackBox | None:
    """The black box that `model` is, or has inside; None for a network with layers of its own."""
    return next((module for module in model.modules() if isinstance(module, BlackBox)), None)


def needs_layers(model: nn.Module, what: str) -> None:
    """Refuse a black box where layers are looked into, replaced or trained.

    Args:
        model: any network.
        what: what cannot be done, as the subject of a sentence: "Folding".

    Raises:
        InputError: it is a black box.
    """
    if (box := black_box_in(model)) is not None:
        raise InputError(
            f"{what} needs the layers of a network, but {shown(box.file, 200)} is {box.kind}, which only predicts: "
            "give the run or checkpoint that it was exported from."
        )


def needs_gradients(model: nn.Module, what: str) -> None:
    """Refuse a black box that gives no gradients.

    Raises:
        InputError: it is one; `what` begins the sentence.
    """
    box = black_box_in(model)
    if box is not None and not box.differentiable:
        raise InputError(
            f"{what} needs gradients, but {shown(box.file, 200)} is {box.kind}, which gives none: give the run or "
            "checkpoint that it was exported from, or export it with --to pt2."
        )
