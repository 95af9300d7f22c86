"""What training shows as it runs: the epoch's sums so far, a line per epoch, TensorBoard's events."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pellucid.core.device import has_double
from pellucid.core.terminal import Bar, percent
from pellucid.core.train.state import Training


class Meter:
    """This epoch's sums, added up on the device without waiting for it, and the time spent.

    A loss that is NaN or infinite stays so in the sum: looking at the sum checks every step before it. The sum of the
    losses is in float64, or in float32 on a device without it: to add up on the CPU would be to wait at every step.
    """

    def __init__(self, training: Training) -> None:
        at, device = training.at, training.parts.fabric.device
        self.training = training
        dtype = torch.float64 if has_double(device) else torch.float32
        self.loss_sum = torch.tensor(at.loss_sum, dtype=dtype, device=device)
        self.correct = torch.tensor(at.correct, device=device)
        self.began = self.saved = self.rated = time.monotonic()
        self.rated_step, self.rate = at.total_steps, 0.0

    def add(self, step: int, loss: Tensor, logits: Tensor, labels: Tensor) -> bool:
        """Count `step` of the epoch; whether the sums are to be looked at now."""
        training, at = self.training, self.training.at
        self.loss_sum += loss.detach().to(self.loss_sum.dtype) * len(labels)
        self.correct += (logits.detach().argmax(1) == labels).sum()
        at.step, at.seen, at.total_steps = step + 1, at.seen + len(labels), at.total_steps + 1
        return at.total_steps % training.check_every == 0 or at.step == training.per_epoch

    def read(self, shown: Bar) -> None:
        """Bring the position's sums up to date, which waits for the device, and show them."""
        at, now = self.training.at, time.monotonic()
        at.loss_sum, at.correct = self.loss_sum.item(), int(self.correct)
        if now - self.rated > 0.5:
            images = (at.total_steps - self.rated_step) * self.training.parts.settings.batch_size
            self.rate, self.rated, self.rated_step = images / (now - self.rated), now, at.total_steps
        shown.update(
            at.total_steps,
            f"loss {at.loss_sum / at.seen:.3f}  accuracy {100 * at.correct / at.seen:.1f} %  {self.rate:.0f} images/s",
        )

    def is_due(self) -> bool:
        """Whether the last checkpoint is older than the settings allow."""
        return time.monotonic() - self.saved >= self.training.parts.settings.checkpoint_seconds

    def book(self) -> None:
        """Add the time since the last call to the position's."""
        now = time.monotonic()
        self.training.at.seconds += now - self.began
        self.began = now


def report(training: Training, row: dict[str, Any], shown: Bar, events: Any) -> None:
    """Log an epoch's row, in the first process only."""
    if not training.parts.leads:
        return
    training.parts.run.log(row)
    for key, value in row.items():
        if key not in ("epoch", "step") and value is not None:
            events.add_scalar(key, value, row["step"])
    events.flush()  # or a kill after the checkpoint that follows would lose them
    shown.line(
        f"epoch {row['epoch'] + 1}/{training.parts.settings.epochs}  loss {row['train_loss']:.4f}  "
        f"accuracy {percent(row['train_accuracy'])}  validation {percent(row['val_accuracy'])}  "
        f"{row['images_per_second']:.0f} images/s"
    )


@contextlib.contextmanager
def open_events(training: Training) -> Iterator[Any]:
    """TensorBoard's writer, in the first process only; events of steps that will be made again are superseded."""
    if not training.parts.leads:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    step = training.at.total_steps
    writer = SummaryWriter(str(training.parts.run.path), purge_step=step + 1 if step else None)
    try:
        yield writer
    finally:
        writer.close()
