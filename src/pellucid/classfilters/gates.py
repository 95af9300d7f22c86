r"""Class-specific gates: a training in which every filter comes to serve few classes (Liang et al. 2020, ECCV).

A gate $G_{cj} \in [0, 1]$ is the factor by which filter j is multiplied for images of class c. Training alternates
between epochs of the plain network and epochs in which filter j of an image of class y is multiplied by $G_{yj}$ and
the loss is

$$ \mathrm{CE} + \lambda \, \max\bigl(0, \lVert G \rVert_1 - g\bigr) $$

After each such step G is projected: every filter's gates are divided by their maximum, so that some class can always
use it ($\lVert G_{\cdot j} \rVert_\infty = 1$), and clipped to [0, 1] (section 3.2, algorithm 1). Evaluation uses no
gates.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.classfilters.responses import probe
from pellucid.classfilters.sets import ClassFilters
from pellucid.classfilters.top import fractions, top_sets
from pellucid.core.data.batches import Batch
from pellucid.core.data.dataset import Dataset
from pellucid.core.errors import InputError
from pellucid.core.files.tensors import read_tensors
from pellucid.core.network.tap import module_at
from pellucid.core.train.objective import Objective
from pellucid.core.train.run import Run

NAME = "class-gates"


@dataclass
class ClassGates(Objective):
    """Cross-entropy, in some epochs with gates that let a filter pass only for its own classes.

    For mixed images, a gate is the mean of the gates of their classes, weighted by the classes' fractions.

    Args:
        layer: dotted name of the layer whose filters are gated; default the inputs of the last linear layer.
        density: mean of all gates above which they are penalised, from 0 to 1.
        sparsity: factor of the penalty on the sum of the gates beyond that.
        period: apply the gates in every `period`-th epoch; 1 means every epoch.
    """

    layer: str | None = None
    density: float = 0.2
    sparsity: float = 1e-3
    period: int = 3

    taps = True

    def __post_init__(self) -> None:
        if not 0 <= self.density <= 1:
            raise InputError(f"density={self.density} is out of range: give 0 to 1.")
        if not 0 <= self.sparsity < float("inf"):
            raise InputError(f"sparsity={self.sparsity} is out of range: give at least 0.")
        if self.period < 1:
            raise InputError(f"period={self.period} is out of range: give at least 1.")
        self._behind = False

    def prepare(self, model: nn.Module, dataset: Dataset, device: torch.device) -> None:
        """Create the gates, one per class and filter, all 1/2."""
        name, responses, head = probe(model, dataset, self.layer)
        self._place, self._before = module_at(model, name), head is not None
        self.gates = nn.Parameter(torch.full((len(dataset.classes), responses.shape[1]), 0.5, device=device))
        self.module = nn.ParameterDict({"gates": self.gates})
        self.facts = {"layer": name, "classes": dataset.classes}

    def begin_epoch(self, epoch: int) -> None:
        """Apply the gates in the last epoch of each period."""
        self._behind = (epoch + 1) % self.period == 0

    def __call__(
        self, forward: Callable[[Tensor], Tensor], batch: Batch, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the logits that it is computed from; see `Objective`."""
        if not self._behind:
            return super().__call__(forward, batch, images, targets)
        rows = self.gates[targets] if targets.ndim == 1 else targets.to(self.gates) @ self.gates
        hook = self._gated(rows)
        if self._before:
            handle = self._place.register_forward_pre_hook(lambda _, inputs: (hook(inputs[0]), *inputs[1:]))
        else:
            handle = self._place.register_forward_hook(lambda _, __, output: hook(output))
        try:
            logits = forward(images).float()
        finally:
            handle.remove()
        excess = self.gates.abs().sum() - self.density * self.gates.numel()
        return self.cross_entropy(logits, targets) + self.sparsity * excess.clamp(min=0), logits

    def _gated(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        def hook(value: Tensor) -> Tensor:
            if value.ndim not in (2, 4) or value.shape[:2] != rows.shape:
                raise InputError(
                    f"Gates apply to vectors (images, filters) or maps (images, filters, height, width), but "
                    f"{self.facts['layer']!r} has shape {list(value.shape)}: name another layer."
                )
            return value * rows.to(value.dtype).view(*rows.shape, *[1] * (value.ndim - 2))

        return hook

    def after_step(self) -> None:
        """Project the gates."""
        if self._behind:
            self.gates.copy_(projected(self.gates))


def projected(gates: Tensor) -> Tensor:
    """(K, C): each filter's gates divided by their maximum, clipped to [0, 1]; all 1 where no gate is above 0."""
    most = gates.amax(0, keepdim=True)
    return torch.where(most > 0, gates / most, 1.0).clamp(0, 1)


def class_gates(run: str | os.PathLike[str] | Run, k: int = 5, *, budget: int | None = None) -> ClassFilters:
    """The gates that a run with `objective="class-gates"` trained, as sets: for each class the k largest ones.

    Args:
        run: the run or its folder; the gates are those of its best epoch.
        k: filters per class; ties go to the lower index.
        budget: filters of all classes together, in place of `k` per class.

    Returns:
        Sets by the rule "gates"; scores are the gates (K, C), shares their fractions of the class's sum.

    Raises:
        InputError: no such run, a run without gates, or a k or budget out of range.
    """
    run = run if isinstance(run, Run) else Run(run)
    if run.settings.objective != NAME:
        raise InputError(f"{str(run.path)!r} was trained without gates: train with --objective {NAME}.")
    if not run.objective.is_file():
        raise InputError(f"{str(run.path)!r} has no gates yet: let it finish its first epoch.")
    tensors, facts = read_tensors(run.objective)
    try:
        gates, layer, classes = tensors["gates"].double(), str(facts["layer"]), tuple(map(str, facts["classes"]))
        classes_there, width = gates.shape
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{str(run.objective)!r} does not hold the gates of a layer ({error!r}).") from None
    if classes_there != len(classes) or not bool(gates.isfinite().all()):
        raise InputError(
            f"{str(run.objective)!r} is damaged: {classes_there} rows of gates for {len(classes)} classes."
        )
    if not bool((gates.amax(0) == 1).all()):
        raise InputError(f"The best epoch of {str(run.path)!r} came before its first one with gates: train for longer.")
    if budget is None and not 1 <= k <= width:
        raise InputError(f"k={k} is out of range: layer {layer!r} has {width} filters.")
    if budget is not None and not 1 <= budget <= gates.numel():
        raise InputError(f"A budget of {budget} filters is out of range: there are 1 to {gates.numel()} gates.")
    sets = top_sets(gates, k, budget=budget, positive=True)
    shares = tuple(fractions(row[list(chosen)], float(row.sum())) for row, chosen in zip(gates, sets, strict=True))
    return ClassFilters(sets, shares, "gates", layer, width, classes, gates.float())
