"""One training loop on Lightning Fabric, resumable to the bit.

Nothing in it depends on when it is looked at: the learning rate is a function of the step; the order of the images,
their augmentation and every other random draw are functions of (seed, epoch, step, rank). A checkpoint therefore
holds tensors and a position, and no generator's state.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.data.batches import Batch, batches, steps_per_epoch
from pellucid.core.data.dataset import Dataset
from pellucid.core.data.mix import mix
from pellucid.core.errors import InputError, Interrupted, TrainingStopped, first_line
from pellucid.core.facts import declare, facts
from pellucid.core.files.tensors import save_tensors
from pellucid.core.measure.evaluate import Evaluation, evaluate
from pellucid.core.modes import determinism, seeded
from pellucid.core.network.checkpoint import load, save
from pellucid.core.seeds import seed_of
from pellucid.core.terminal import Bar, bar, percent
from pellucid.core.train.environment import describe_data
from pellucid.core.train.launch import launch
from pellucid.core.train.objective import Objective
from pellucid.core.train.objective import objective as objective_named
from pellucid.core.train.optimize import learning_rate, make_optimizer
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings
from pellucid.core.train.setup import Trained, make_augment, new_model, placed, read_data
from pellucid.core.train.signals import catch_signals


@dataclass
class Position:
    """Where training stands: the step `step` of `epoch` is the next; sums are over this epoch's steps so far."""

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)


def train(
    settings: TrainSettings,
    out: str | os.PathLike[str] | None = None,
    *,
    data: Dataset | None = None,
    quiet: bool = False,
) -> Trained:
    """Train as `settings` say, in the run folder `out` (default `runs/<settings' own name>`).

    A folder that was begun with the same settings is continued; a finished one is only read. Several devices:
    the function must be called in a script (it is started again for each device).

    `data` is used in place of reading `settings.data` by name, which should be its name: the run folder records both
    the name and the fingerprint, and refuses to continue with other data.

    Raises:
        InputError: bad settings or data, or a folder in use or with other settings.
        TrainingStopped: a loss or weight became infinite or NaN, or the disk is full.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    with determinism(settings.deterministic), seeded():
        return _train(settings, out, data, quiet)


def _train(settings: TrainSettings, out: str | os.PathLike[str] | None, data: Dataset | None, quiet: bool) -> Trained:
    fabric = launch(
        device=settings.device,
        devices=settings.devices,
        nodes=settings.nodes,
        strategy=settings.strategy,
        precision=settings.precision,
    )
    path = out if out is not None else os.path.join("runs", settings.name())
    objective = objective_named(settings.objective, **settings.objective_options)
    objective.label_smoothing = settings.label_smoothing
    if objective.taps and settings.compile:
        raise InputError(f"--objective {settings.objective} looks into the network as it runs: leave out --compile.")
    with fabric.rank_zero_first():  # one process downloads and unpacks, the others find it done
        dataset = read_data(settings) if data is None else data
        dataset = objective.data(dataset, settings.seed)
    model = new_model(settings, dataset)
    if settings.init is not None:
        load(settings.init, model).train()
    declare(model, classes=dataset.classes, normalization=dataset.normalization)  # not those of --init
    model = placed(model, settings, fabric.device)
    run = None
    try:
        torch.manual_seed(seed_of("objective", settings.seed))
        objective.prepare(model, dataset, fabric.device)
        problem = None
        if fabric.global_rank == 0:
            try:
                run = Run.start(path, settings)
                run.write_environment(dataset)
            except InputError as error:
                problem = str(error)
        problem = fabric.broadcast(problem)  # or the other processes would wait for the first for ever
        if problem:
            raise InputError(problem)
        run = run or Run(path)
        if run.result() is None:
            _Training(settings, fabric, dataset, model, objective, run).go(quiet)
        fabric.barrier()
        result = run.result()
        assert result is not None
        return Trained(run, result, load(run.best))
    except torch.OutOfMemoryError:
        raise TrainingStopped(
            f"The memory of {fabric.device} is too small for --batch-size {settings.batch_size}: give a lower one, or "
            "try --precision bf16-mixed."
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise TrainingStopped(
                f"The disk refused to store the run in {os.fspath(path)!r} ({error.strerror}); the last complete "
                "checkpoint is kept: make room and run the same command again."
            ) from error
        raise
    finally:
        if run is not None:
            run.release()


class _Training:
    """The state of one run in one process."""

    def __init__(
        self, settings: TrainSettings, fabric: Any, dataset: Dataset, model: nn.Module, objective: Objective, run: Run
    ) -> None:
        self.settings, self.fabric, self.dataset, self.run = settings, fabric, dataset, run
        per_epoch = steps_per_epoch(len(dataset.train), settings.batch_size, drop_last=True)
        self.per_epoch = min(per_epoch, settings.limit_batches) if settings.limit_batches else per_epoch
        self.total = self.per_epoch * settings.epochs
        self.check_every = 1 if fabric.device.type == "cpu" else 10  # a check waits for the GPU
        self.model = model  # the plain module: its names are those in checkpoints
        self.objective = objective
        self.beside = nn.Module() if objective.module is None else objective.module.to(fabric.device)
        self.optimizer = make_optimizer(settings, model, self.beside)
        self.at = Position()
        self.ema: Any = None
        if settings.ema:
            from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

            average = get_ema_multi_avg_fn(settings.ema)
            self.ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True).to(fabric.device)
        self._restore()
        forward = torch.compile(model) if settings.compile else model
        self.forward, self.step_optimizer = fabric.setup(forward, self.optimizer)

    # --- state ---

    def _restore(self) -> None:
        state = self.run.load_state()
        if state is None:
            return
        tensors, info = state
        try:
            self.model.load_state_dict(_under(tensors, "model."))
            self.beside.load_state_dict(_under(tensors, "objective."))
            if self.ema is not None:
                self.ema.load_state_dict(_under(tensors, "ema."))
            saved: dict[int, dict[str, Any]] = {}
            for name, tensor in _under(tensors, "optimizer.").items():
                index, _, key = name.partition(".")
                saved.setdefault(int(index), {})[key] = tensor
            current = self.optimizer.state_dict()
            self.optimizer.load_state_dict({"state": saved, "param_groups": current["param_groups"]})
            if "scaler" in info:
                self.fabric._precision.load_state_dict(info["scaler"])
            self.at = Position(**{name: info[name] for name in asdict(Position())})
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"The state in {str(self.run.path / 'last.ckpt')!r} does not belong to this run "
                f"({first_line(error)}): delete that folder to begin again."
            ) from None
        if self.fabric.global_rank:  # sums are kept by the first process
            self.at.loss_sum, self.at.correct, self.at.seen = 0.0, 0, 0

    def _save(self) -> None:
        """Write the whole state; called by all processes together at the end of a step."""
        sums = self._sums()
        weights = itertools.chain(self.model.parameters(), self.beside.parameters())
        if not all(bool(torch.isfinite(p).all()) for p in weights):
            self._stop("A weight became infinite or NaN")
        if self.fabric.global_rank:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"objective.{k}": v for k, v in self.beside.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
        info = {**asdict(self.at), **sums}
        if scaler := self.fabric._precision.state_dict():
            info["scaler"] = scaler
        self.run.save_state(
            tensors,
            info,
            **facts(self.model).to_json(),
        )

    def _sums(self) -> dict[str, Any]:
        """This epoch's sums over all processes."""
        if self.fabric.world_size == 1:
            return {"loss_sum": self.at.loss_sum, "correct": self.at.correct, "seen": self.at.seen}
        sums = torch.tensor([self.at.loss_sum, self.at.correct, self.at.seen], dtype=torch.float64)
        total = self.fabric.all_reduce(sums.to(self.fabric.device), reduce_op="sum").tolist()
        return {"loss_sum": total[0], "correct": int(total[1]), "seen": int(total[2])}

    # --- the loop ---

    def go(self, quiet: bool) -> None:
        """Train to the end, evaluate once on the test set, and write the result."""
        leader = self.fabric.global_rank == 0
        if leader:
            self.run.forget_from(self.at.epoch)
        with (
            bar(self.total, self.at.total_steps, quiet=quiet or not leader) as shown,
            _events(self.run, self.at.total_steps, leader) as events,
            catch_signals() as received,
        ):
            for epoch in range(self.at.epoch, self.settings.epochs):
                self._epoch(epoch, shown, received)
                row = self._close_epoch(epoch)
                if leader:
                    self.run.log(row)
                    for key, value in row.items():
                        if key not in ("epoch", "step"):
                            events.add_scalar(key, value, row["step"])
                    shown.line(
                        f"epoch {epoch + 1}/{self.settings.epochs}  loss {row['train_loss']:.4f}  "
                        f"accuracy {percent(row['train_accuracy'])}  validation {percent(row['val_accuracy'])}  "
                        f"{row['images_per_second']:.0f} images/s"
                    )
                self.at.epoch, self.at.step = epoch + 1, 0
                self.at.loss_sum, self.at.correct, self.at.seen = 0.0, 0, 0
                self._save()
                self._stop_if_asked(received)
        self._finish()

    def _epoch(self, epoch: int, shown: Bar, received: list[int]) -> None:
        settings, fabric = self.settings, self.fabric
        began, saved = time.monotonic(), time.monotonic()
        loss_sum = torch.tensor(self.at.loss_sum, dtype=torch.float64, device=fabric.device)
        correct = torch.tensor(self.at.correct, device=fabric.device)
        rate_from, rate_at, rate = self.at.total_steps, time.monotonic(), 0.0
        self.forward.train()
        self.objective.begin_epoch(epoch)
        for batch in self._batches(epoch):
            torch.manual_seed(seed_of("step", settings.seed, epoch, batch.step, fabric.global_rank))
            lr = learning_rate(settings, self.at.total_steps, self.total)
            loss, hits = self._step(epoch, batch, lr)
            loss_sum += loss.double() * len(batch.labels)
            correct += hits
            self.at.step, self.at.seen = batch.step + 1, self.at.seen + len(batch.labels)
            self.at.total_steps += 1
            if self.at.total_steps % self.check_every and self.at.step < self.per_epoch:
                continue
            now = time.monotonic()
            self.at.loss_sum, self.at.correct = loss_sum.item(), int(correct)
            if now - rate_at > 0.5:
                rate = (self.at.total_steps - rate_from) * settings.batch_size / (now - rate_at)
                rate_from, rate_at = self.at.total_steps, now
            shown.update(
                self.at.total_steps,
                f"loss {self.at.loss_sum / self.at.seen:.3f}  accuracy {100 * self.at.correct / self.at.seen:.1f} %  "
                f"{rate:.0f} images/s",
            )
            bad, stop, due = self._agree(
                # A NaN or an infinity stays in the sum, so checking the sum checks every step.
                not math.isfinite(self.at.loss_sum),
                bool(received),
                now - saved >= settings.checkpoint_seconds,
            )
            if bad:
                self._stop("The loss became infinite or NaN")
            if (due or stop) and self.at.step < self.per_epoch:
                self.at.seconds += now - began
                began = now
                self._save()
                saved = time.monotonic()
            if stop:
                self._stop_if_asked(received or [signal.SIGINT])
        self.at.seconds += time.monotonic() - began

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """What this process sees in the steps left of `epoch`."""
        settings = self.settings
        stream = batches(
            self.dataset.train,
            settings.batch_size,
            mean=self.dataset.mean,
            std=self.dataset.std,
            device=self.fabric.device,
            shuffle=True,
            augment=make_augment(settings, self.dataset),
            seed=settings.seed,
            epoch=epoch,
            start=self.at.step,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            drop_last=True,
            workers=settings.workers,
            channels_last=settings.channels_last,
        )
        return itertools.islice(stream, self.per_epoch - self.at.step)

    def _step(self, epoch: int, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        """One update of the weights; the loss (mean of this process's images) and the number right, as tensors."""
        settings = self.settings
        images, targets = batch.images, batch.labels
        if settings.mixup or settings.cutmix:
            images, targets = mix(
                images,
                batch.labels,
                len(self.dataset.classes),
                mixup=settings.mixup,
                cutmix=settings.cutmix,
                seed=settings.seed,
                epoch=epoch,
                step=batch.step,
                total=batch.total,
                first=batch.first,
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss, logits = self.objective(self.forward, batch, images, targets)
        self.fabric.backward(loss)
        self._share_gradients()
        if settings.clip:
            self.fabric.clip_gradients(
                self.forward, self.step_optimizer, max_norm=settings.clip, error_if_nonfinite=False
            )
        self.step_optimizer.step()
        self.step_optimizer.zero_grad()
        with torch.no_grad():
            self.objective.after_step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
            for averaged, now in zip(self.ema.module.buffers(), self.model.buffers(), strict=True):
                if not averaged.is_floating_point():  # a count, of which there is no average
                    averaged.copy_(now)
        return loss.detach(), (logits.detach().argmax(1) == batch.labels).sum()

    def _share_gradients(self) -> None:
        """Average the gradients of what is trained beside the network; the network's own are averaged on their way."""
        if self.fabric.world_size > 1:
            for parameter in self.beside.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.fabric.all_reduce(parameter.grad, reduce_op="mean")

    def _close_epoch(self, epoch: int) -> dict[str, Any]:
        """Evaluate on the held-out split, keep the weights if they are the best so far, return the metrics row."""
        sums = self._sums()
        score = self._evaluate(self.ema.module if self.ema is not None else self.model, "val")
        row = {
            "epoch": epoch,
            "step": self.at.total_steps,
            "lr": learning_rate(self.settings, self.at.total_steps - 1, self.total),
            "train_loss": sums["loss_sum"] / sums["seen"],
            "train_accuracy": sums["correct"] / sums["seen"],
            "val_loss": score.loss,
            "val_accuracy": score.top1,
            "images_per_second": self.at.total_steps * self.settings.batch_size / max(self.at.seconds, 1e-9),
            "seconds": self.at.seconds,
        }
        best = self.at.best
        # Equal accuracies on a small held-out split are common: the lower loss decides.
        if not best or (score.top1, -score.loss) > (best["val_accuracy"], -best["val_loss"]):
            self.at.best = {"epoch": epoch, "val_accuracy": score.top1, "val_loss": score.loss}
            if self.fabric.global_rank == 0:
                chosen = self.ema.module if self.ema is not None else self.model
                declare(
                    chosen,
                    description=facts(self.model).description,
                    classes=self.dataset.classes,
                    normalization=self.dataset.normalization,
                )
                save(chosen, self.run.best, trained={**self.at.best, "data": self.settings.data})
                if kept := self.beside.state_dict():
                    about = {"objective": self.settings.objective, **self.objective.facts, "trained": self.at.best}
                    save_tensors(kept, self.run.objective, **about)
        return row

    def _finish(self) -> None:
        """Read the test set, once, with the best epoch's weights."""
        self.fabric.barrier()
        best = load(self.run.best).to(self.fabric.device)
        test = self._evaluate(best, "test")
        if self.fabric.global_rank == 0:
            self.run.finish(
                {
                    "test": test.to_json(),
                    "best": self.at.best,
                    "steps": self.at.total_steps,
                    "seconds": self.at.seconds,
                    "parameters": sum(p.numel() for p in best.parameters()),
                    "data": describe_data(self.dataset),
                }
            )

    def _evaluate(self, model: nn.Module, split: str) -> Evaluation:
        return evaluate(
            model,
            self.dataset,
            split,
            batch_size=max(512, self.settings.batch_size) // self.fabric.world_size * self.fabric.world_size,
            device=self.fabric.device,
            workers=self.settings.workers,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            channels_last=self.settings.channels_last,
        )

    # --- stopping ---

    def _agree(self, *flags: bool) -> list[bool]:
        """Each flag, if it is up in any process: all must save or stop at the same step."""
        if self.fabric.world_size == 1:
            return list(flags)
        raised = torch.tensor([float(flag) for flag in flags], device=self.fabric.device)
        return [value > 0 for value in self.fabric.all_reduce(raised, reduce_op="sum").tolist()]

    def _stop(self, what: str) -> None:
        lr = learning_rate(self.settings, max(0, self.at.total_steps - 1), self.total)
        checked = f" (checked every {self.check_every} steps)" if self.check_every > 1 else ""
        kept = "the last good checkpoint is kept" if (self.run.path / "last.ckpt").exists() else "nothing was saved"
        raise TrainingStopped(
            f"{what} at step {self.at.total_steps}{checked} of {self.total}, epoch {self.at.epoch + 1}, at "
            f"learning rate {lr:.3g}; {kept} in {str(self.run.path)!r}. Try a lower --lr, a longer --warmup, --clip 1 "
            "or --precision 32."
        )

    def _stop_if_asked(self, received: list[int]) -> None:
        if received:
            raise Interrupted(
                received[0],
                f"Stopped at step {self.at.total_steps} of {self.total}; continue with: "
                f"pellucid train --resume {self.run.path}",
            )


@contextlib.contextmanager
def _events(run: Run, step: int, leader: bool) -> Iterator[Any]:
    """TensorBoard's writer; events of steps that will be made again are marked as superseded."""
    if not leader:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run.path), purge_step=step + 1 if step else None)
    try:
        yield writer
    finally:
        writer.close()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
