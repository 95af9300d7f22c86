"""The whole state of training, out of a run folder and into it.

Every random draw is a function of (seed, epoch, step, rank), so a checkpoint holds tensors and a position, and no
generator's state.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pellucid.core.errors import InputError, first_line
from pellucid.core.facts import facts
from pellucid.core.files.conform import conform
from pellucid.core.ranges import Number
from pellucid.core.train.optimize import STATE_NAMES
from pellucid.core.train.run import BEST, STATE
from pellucid.core.train.state import Position, Training
from pellucid.core.train.stopping import diverged


def restore(training: Training) -> None:
    """Continue from the state in the run folder, if there is one; to be called before `Training.connect`.

    Raises:
        InputError: a state that is damaged, or of another network, optimizer or objective.
    """
    parts = training.parts
    state = parts.run.load_state()
    if state is None:
        return
    tensors, info = state
    try:
        parts.model.load_state_dict(_under(tensors, "model."))
        training.extra.load_state_dict(_under(tensors, "objective."))
        if training.ema is not None:
            training.ema.load_state_dict(_under(tensors, "ema."))
        saved: dict[int, dict[str, Any]] = {}
        for name, tensor in _under(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            saved.setdefault(int(index), {})[key] = tensor
        current = training.optimizer.state_dict()
        _check_optimizer(training, saved)
        training.optimizer.load_state_dict({"state": saved, "param_groups": current["param_groups"]})
        if "scaler" in info and parts.scaler is not None:
            parts.scaler.load_state_dict(info["scaler"])
        training.at = _position(training, info)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"The state in {str(parts.run.path / STATE)!r} does not belong to this run "
            f"({first_line(error)}): delete that folder to begin again."
        ) from None
    if not parts.leads:  # the first process keeps the sums
        training.at.loss_sum, training.at.correct, training.at.seen = 0.0, 0, 0


POSITION = {
    **dict.fromkeys(("epoch", "step", "total_steps", "correct", "seen"), Number),
    **dict.fromkeys(("loss_sum", "seconds"), float),
    "best": dict[str, Any],
}


def _position(training: Training, info: dict[str, Any]) -> Position:
    """The position that a checkpoint states.

    Raises:
        InputError: values of another type, or a position that this run does not have.
    """
    found = conform(info, POSITION, "the position is damaged")
    if found["best"] or found["epoch"]:  # every epoch that is over leaves a best one
        found["best"] = conform(found["best"], BEST, "the best epoch is damaged")
    at = Position(**{name: found[name] for name in asdict(Position())})
    if at.total_steps != at.epoch * training.per_epoch + at.step or at.total_steps > training.total:
        raise InputError(f"step {at.step} of epoch {at.epoch} cannot be step {at.total_steps} of {training.total}")
    return at


def _check_optimizer(training: Training, saved: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Refuse tensors that the optimizer would fail on in its first step."""
    parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
    for index, state in saved.items():
        names = STATE_NAMES[training.parts.settings.optimizer]
        if not 0 <= index < len(parameters) or set(state) != names:
            raise InputError(f"its optimizer's tensors {sorted(state)} of parameter {index} are not {sorted(names)}")
        for name, value in state.items():
            if value.shape not in (parameters[index].shape, torch.Size([])) or not value.is_floating_point():
                raise InputError(f"its optimizer's {name} of parameter {index} has the shape {list(value.shape)}")


def save_state(training: Training) -> None:
    """Write the whole state; to be called by all processes at the end of the same step.

    Raises:
        TrainingStopped: a weight is infinite or NaN; the state written before is kept.
    """
    parts, sums = training.parts, training.sums()
    training.share_buffers()
    weights = itertools.chain(parts.model.parameters(), training.extra.parameters())
    if not all(bool(torch.isfinite(p).all()) for p in weights):
        raise diverged(training, "A weight")
    if not parts.leads:
        return
    tensors = {f"model.{k}": v for k, v in parts.model.state_dict().items()}
    tensors |= {f"objective.{k}": v for k, v in training.extra.state_dict().items()}
    if training.ema is not None:
        tensors |= {f"ema.{k}": v for k, v in training.ema.state_dict().items()}
    for index, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    info = {**asdict(training.at), **sums}
    if parts.scaler is not None:
        info["scaler"] = parts.scaler.state_dict()
    parts.run.save_state(tensors, info, **facts(parts.model).to_json())


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
