"""How good the network is: on the held-out split after each epoch, to choose the best one; once on the test split."""

from __future__ import annotations

from typing import Any

from torch import nn

from pellucid.core.data.copies import Copies, copies, copies_in
from pellucid.core.facts import declare, facts
from pellucid.core.files.tensors import save_tensors
from pellucid.core.measure.evaluate import Evaluation, evaluate
from pellucid.core.network.checkpoint import load, save
from pellucid.core.train.environment import describe_data
from pellucid.core.train.optimize import learning_rate
from pellucid.core.train.state import Training


def close_epoch(training: Training, epoch: int) -> dict[str, Any]:
    """Evaluate on the held-out split and keep the weights if they are the best so far; the epoch's row of metrics.

    Without held-out images there is nothing to choose by: the last weights are kept.
    """
    at, settings, sums = training.at, training.parts.settings, training.sums()
    training.share_buffers()
    score = _evaluate(training, training.evaluated, "val") if len(training.parts.dataset.val) else None
    row = {
        "epoch": epoch,
        "step": at.total_steps,
        "lr": learning_rate(settings, at.total_steps - 1, training.total),
        "train_loss": sums["loss_sum"] / sums["seen"],
        "train_accuracy": sums["correct"] / sums["seen"],
        "val_loss": score.loss if score else None,
        "val_accuracy": score.top1 if score else None,
        "images_per_second": at.total_steps * settings.batch_size / max(at.seconds, 1e-9),
        "seconds": at.seconds,
    }
    # Equal accuracies are common on a small held-out split: the lower loss decides.
    best = at.best
    if score is None or not best or (score.top1, -score.loss) > (best["val_accuracy"], -best["val_loss"]):
        at.best = {"epoch": epoch, "val_accuracy": row["val_accuracy"], "val_loss": row["val_loss"]}
        if training.parts.leads:
            _keep_best(training)
    return row


def finish(training: Training) -> None:
    """Read the test split, once, with the best epoch's weights, and write the result."""
    parts = training.parts
    parts.fabric.barrier()
    best = load(parts.run.best, facts(parts.model).code).to(parts.fabric.device)
    test = _evaluate(training, best, "test", copies(parts.dataset.test, parts.dataset.train))
    if parts.leads:
        parts.run.finish(
            {
                "test": test.to_json(),
                "copies": copies_in(parts.dataset),
                "best": training.at.best,
                "steps": training.at.total_steps,
                "seconds": training.at.seconds,
                "parameters": sum(p.numel() for p in best.parameters()),
                "data": describe_data(parts.dataset),
            }
        )


def _keep_best(training: Training) -> None:
    parts, chosen = training.parts, training.evaluated
    declare(
        chosen,
        description=facts(parts.model).description,
        classes=parts.dataset.classes,
        normalization=parts.dataset.normalization,
    )
    save(chosen, parts.run.best, trained={**training.at.best, "data": parts.settings.data})
    if kept := training.extra.state_dict():
        about = {"objective": parts.settings.objective, **parts.objective.facts, "trained": training.at.best}
        save_tensors(kept, parts.run.objective, **about)


def _evaluate(training: Training, model: nn.Module, split: str, apart: Copies | None = None) -> Evaluation:
    settings, fabric = training.parts.settings, training.parts.fabric
    return evaluate(
        model,
        training.parts.dataset,
        split,
        batch_size=max(512, settings.batch_size) // fabric.world_size * fabric.world_size,
        device=fabric.device,
        workers=settings.workers,
        rank=fabric.global_rank,
        world=fabric.world_size,
        channels_last=settings.channels_last,
        copies=apart,
    )
