"""Why and how training stops early: divergence, a signal, too little memory or disk; each in one sentence."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence

import torch

from pellucid.core.errors import Interrupted, TrainingStopped
from pellucid.core.train.optimize import learning_rate
from pellucid.core.train.run import STATE
from pellucid.core.train.settings import TrainSettings
from pellucid.core.train.state import Training


def agree(training: Training, *flags: bool) -> list[bool]:
    """Each flag: whether any process raised it. All processes must save or stop at the same step."""
    fabric = training.parts.fabric
    if fabric.world_size == 1:
        return list(flags)
    raised = torch.tensor([float(flag) for flag in flags], device=fabric.device)
    return [value > 0 for value in fabric.all_reduce(raised, reduce_op="sum").tolist()]


def diverged(training: Training, what: str) -> TrainingStopped:
    """The error for `what` ("The loss", "A weight") that is not finite any more."""
    at, run = training.at, training.parts.run
    lr = learning_rate(training.parts.settings, max(0, at.total_steps - 1), training.total)
    checked = f" (checked every {training.check_every} steps)" if training.check_every > 1 else ""
    kept = "the last good checkpoint is kept" if (run.path / STATE).exists() else "nothing was saved"
    return TrainingStopped(
        f"{what} became infinite or NaN at step {at.total_steps}{checked} of {training.total}, epoch {at.epoch + 1}, "
        f"at learning rate {lr:.3g}; {kept} in {str(run.path)!r}. Try a lower --lr, a longer --warmup, --clip 1 or "
        "--precision 32."
    )


def stop_if_asked(training: Training, received: Sequence[int]) -> None:
    """Stop if a signal was `received`; the state must have been saved.

    Raises:
        Interrupted: one was; the message says how to continue.
    """
    if received:
        raise Interrupted(
            received[0],
            f"Stopped at step {training.at.total_steps} of {training.total}; continue with: "
            f"pellucid train --resume {training.parts.run.path}",
        )


@contextlib.contextmanager
def explained(settings: TrainSettings, path: str | os.PathLike[str], device: torch.device) -> Iterator[None]:
    """Turn running out of memory or disk inside the block into a sentence.

    Raises:
        TrainingStopped: it did.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingStopped(
            f"The memory of {device} is too small for --batch-size {settings.batch_size}: give a "
            "smaller one, or try --precision bf16-mixed."
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise TrainingStopped(
                f"The disk refused to store the run in {os.fspath(path)!r} ({error.strerror}); the last complete "
                "checkpoint is kept: make room and run the same command again."
            ) from error
        raise
