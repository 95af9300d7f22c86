"""The search for one batch of images: Adam on their variables, with the network as it is in evaluation mode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.core.device import fitting, single
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.terminal import bar
from pellucid.inversion.matching import Watch
from pellucid.inversion.objective import CrossEntropy, Logit
from pellucid.inversion.presets import Recipe
from pellucid.inversion.schedule import Plateau, falls
from pellucid.inversion.space import Space
from pellucid.inversion.views import ViewSequence

CHECKS = 20  # how often a search evaluates its images without views


@dataclass(frozen=True, eq=False)
class Inversion:
    """Images out of a network.

    Attributes:
        images: float32 (B, C, H, W) in [0, 1], on the CPU.
        labels: int64 (B,), the most probable class of each target.
        logits: (B, K), the network's logits for `images`.
        numbers: int64 (B,), the place of each image in a larger set.
        history: one table per check: "step"; "loss" without views, and its terms; "own", the fraction of images that
            the network classifies as intended; "verifiers", the same for each verifier.
        seconds: duration of the search.
        variables: what was optimised, on the CPU; the recipe's start decodes it into the images.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    numbers: Tensor
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    variables: Tensor | None = None


class Search:
    """The search for one batch; the networks must be `frozen` and watched by `watch` while it runs.

    Args:
        model: the network that is inverted.
        verifiers: other networks; the first is the one that a recipe with `disagreement` disagrees with.
        recipe: what is minimised, and how.
        watch: computes the statistics term of each pass; None without statistics.
        space: the images that the network takes.
        targets: (B, K) distributions over the classes.
        numbers: (B,) the images' numbers, on which their random draws depend.
        seed: of all random draws.
        compile: compile the terms of the loss with torch.compile.
    """

    def __init__(
        self,
        model: nn.Module,
        verifiers: Sequence[nn.Module],
        recipe: Recipe,
        watch: Watch | None,
        space: Space,
        targets: Tensor,
        numbers: Tensor,
        seed: int,
        compile: bool,
    ) -> None:
        self.model, self.verifiers, self.recipe, self.watch, self.space = model, verifiers, recipe, watch, space
        self.targets, self.labels, self.numbers = targets, targets.argmax(1), numbers
        self.variables = recipe.start.draw(space, numbers, seed)
        self.views = ViewSequence(recipe.views, numbers, recipe.schedule.steps, seed)
        self.compute_terms = torch.compile(self._terms, dynamic=False) if compile else self._terms
        self.converters = [_converter(verifier, space) for verifier in verifiers]
        self.best: Tensor = self.variables
        self.lowest = math.inf
        self.history: list[dict[str, Any]] = []

    def run(self, quiet: bool) -> Inversion:
        """All steps of the schedule, and the images that it keeps.

        Raises:
            InputError: the loss became infinite or NaN.
        """
        schedule = self.recipe.schedule
        began = time.perf_counter()
        every = max(1, schedule.steps // CHECKS)
        plateau = Plateau(max(1, round(schedule.patience * schedule.steps)))
        stop_after = round(schedule.stop_after * schedule.steps)
        lowest, since, stopped = math.inf, 0, False
        with bar(schedule.steps, quiet=quiet) as progress:
            for first, end, shrink in schedule.stages():
                self.variables = self.variables.detach().requires_grad_()
                optimizer = torch.optim.Adam([self.variables], lr=schedule.lr, betas=schedule.betas)
                self.lowest = math.inf  # losses at two resolutions are not compared
                factor = 1.0
                for step in range(first, end):
                    rate = schedule.rate((step - first) / (end - first))
                    optimizer.param_groups[0]["lr"] = schedule.lr * factor * rate
                    loss = self.step(optimizer, step, shrink)
                    if schedule.decay == "plateau":
                        factor = plateau.step(loss)
                    if stop_after:
                        lowest, since = (loss, 0) if falls(loss, lowest, 0.1) else (lowest, since + 1)
                        stopped = since >= stop_after
                    if (step + 1 - first) % every == 0 or step + 1 == end or stopped:
                        progress.update(step + 1, self._check(step + 1, shrink))
                    if stopped:
                        break
                if stopped:
                    break
        seconds = time.perf_counter() - began
        with torch.no_grad():
            chosen = self.best if schedule.keep == "best" else self.variables.detach()
            images = self.space.pixels(self.recipe.start.decode(chosen, self.space)).clamp(0, 1)
            logits = self.model(fitting(self.model, self.space.normalized(images))).float().cpu()
        return Inversion(images.cpu(), self.labels.cpu(), logits, self.numbers, self.history, seconds, chosen.cpu())

    def step(self, optimizer: torch.optim.Optimizer, step: int, shrink: int) -> float:
        """One update of the variables, on images shrunk by the factor `shrink`; the loss before it."""
        shown = _shrunk(self.views(self.recipe.start.decode(self.variables, self.space), step), shrink)
        x = shown.detach().requires_grad_()  # a leaf: what is compiled begins here
        loss = _total(self.compute_terms(x))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"The loss is {value} at step {step + 1}: lower the learning rate or the weights, or check the network."
            )
        gradient = torch.autograd.grad(loss, x)
        (self.variables.grad,) = torch.autograd.grad(shown, [self.variables], gradient)
        optimizer.step()
        if self.recipe.schedule.clip and self.recipe.start.pixels:
            with torch.no_grad():
                self.variables.copy_(self.space.clamped(self.variables))
        return value

    def _terms(self, x: Tensor) -> dict[str, Tensor]:
        """The terms of the loss of normalised images, and the logits."""
        found = self.recipe
        logits = single(self.model(fitting(self.model, x)))
        terms = {"logits": logits}
        if isinstance(found.objective, CrossEntropy | Logit):
            terms["objective"] = found.objective(logits, self.targets)
        else:
            terms["objective"] = found.objective(self.space.pixels(x))
        if self.watch is not None:
            terms["statistics"] = self.watch.matching.weight * self.watch.take()
        if found.priors:
            terms["priors"] = torch.stack([prior(x) for prior in found.priors]).sum()
        if found.disagreement is not None:
            terms["disagreement"] = found.disagreement(logits, self.verifiers[0](self.converters[0](x)))
        return terms

    @torch.no_grad()
    def _check(self, step: int, shrink: int) -> str:
        """Evaluate the images without views, and keep them if they are the best so far; the text of the bar."""
        x = _shrunk(self.recipe.start.decode(self.variables, self.space), shrink)
        terms = self._terms(x)
        loss = float(_total(terms))
        if loss <= self.lowest:
            self.lowest, self.best = loss, self.variables.detach().clone()
        row: dict[str, Any] = {"step": step, "loss": loss}
        row |= {name: float(value) for name, value in terms.items() if name != "logits"}
        row["own"] = self._fraction_right(terms["logits"])
        row["verifiers"] = [
            self._fraction_right(verifier(convert(x)))
            for verifier, convert in zip(self.verifiers, self.converters, strict=True)
        ]
        if self.watch is not None:
            self.watch.forget()  # a verifier may be the network itself: its passes are none of the search
        self.history.append(row)
        return f"loss {loss:.3f}, {100 * row['own']:.0f} % classified as intended"

    def _fraction_right(self, logits: Tensor) -> float:
        return float((logits.argmax(1) == self.labels).float().mean())


def _total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([value for name, value in terms.items() if name != "logits"]).sum()


def _shrunk(x: Tensor, factor: int) -> Tensor:
    return x if factor == 1 else F.avg_pool2d(x, factor)


def _converter(verifier: nn.Module, space: Space) -> Callable[[Tensor], Tensor]:
    """Images normalised as in `space`, as `verifier` expects them."""
    own = facts(verifier).normalization
    return (lambda x: x) if own is None else lambda x: own.apply(space.pixels(x))
