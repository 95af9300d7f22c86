"""What a training run consists of while it runs: its fixed parts, and the position that moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pellucid.core.data.batches import steps_per_epoch
from pellucid.core.data.dataset import Dataset
from pellucid.core.train.objective import Objective
from pellucid.core.train.optimize import make_optimizer
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings


@dataclass
class Position:
    """Where training stands: the next step is `step` of `epoch`; the sums run over this epoch's steps so far."""

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """What `core.train.setup.opened` makes ready.

    Attributes:
        settings: of the run.
        fabric: Lightning's Fabric, launched.
        scaler: the gradient scaler of `--precision 16-mixed`, else None; checkpoints keep its state.
        dataset: what is trained on.
        model: the plain network on its device; its names are those in checkpoints.
        objective: prepared.
        run: the folder, locked by the first process.
    """

    settings: TrainSettings
    fabric: Any
    scaler: torch.amp.GradScaler | None
    dataset: Dataset
    model: nn.Module
    objective: Objective
    run: Run

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes the folder and prints."""
        return self.fabric.global_rank == 0


class Training:
    """The state of one run in one process.

    Attributes:
        parts: see `Parts`.
        at: the position.
        per_epoch, total: steps of one epoch and of the whole run.
        check_every: steps between two looks at the loss.
        extra: what the objective trains next to the network; an empty module if nothing.
        optimizer: of the network and of `extra`.
        ema: the moving average of the network, or None.
        forward, step_optimizer: network and optimizer as Fabric wraps them; set by `connect`.
    """

    forward: Any
    step_optimizer: Any

    def __init__(self, parts: Parts) -> None:
        settings, fabric = parts.settings, parts.fabric
        self.parts, self.at = parts, Position()
        per_epoch = steps_per_epoch(len(parts.dataset.train), settings.batch_size, drop_last=True)
        self.per_epoch = min(per_epoch, settings.limit_batches) if settings.limit_batches else per_epoch
        self.total = self.per_epoch * settings.epochs
        self.check_every = 1 if fabric.device.type == "cpu" else 10  # each look waits for the GPU
        module = parts.objective.module
        self.extra = nn.Module() if module is None else module.to(fabric.device)
        self.optimizer = make_optimizer(settings, parts.model, self.extra)
        self.ema: Any = None
        if settings.ema:
            from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

            average = get_ema_multi_avg_fn(settings.ema)
            self.ema = AveragedModel(parts.model, multi_avg_fn=average, use_buffers=True).to(fabric.device)

    def connect(self) -> None:
        """Hand network and optimizer, with whatever was restored into them, to Fabric."""
        model = self.parts.model
        forward = torch.compile(model) if self.parts.settings.compile else model
        self.forward, self.step_optimizer = self.parts.fabric.setup(forward, self.optimizer)

    @property
    def evaluated(self) -> nn.Module:
        """The network that validation looks at: the moving average where there is one."""
        return self.parts.model if self.ema is None else self.ema.module

    @torch.no_grad()
    def share_buffers(self) -> None:
        """Give all processes the first one's buffers; to be called by all of them.

        Each process has moved its running statistics by its own images, and it is the first one's that are saved.
        """
        if self.parts.fabric.world_size == 1:
            return
        for module in (self.parts.model, self.extra, *([] if self.ema is None else [self.ema])):
            for buffer in module.buffers():
                shared = buffer.contiguous()
                torch.distributed.broadcast(shared, 0)
                buffer.copy_(shared)

    def sums(self) -> dict[str, Any]:
        """This epoch's sums over all processes; to be called by all of them."""
        at, fabric = self.at, self.parts.fabric
        if fabric.world_size == 1:
            return {"loss_sum": at.loss_sum, "correct": at.correct, "seen": at.seen}
        sums = torch.tensor([at.loss_sum, at.correct, at.seen], dtype=torch.float64)
        total = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").tolist()
        return {"loss_sum": total[0], "correct": int(total[1]), "seen": int(total[2])}
