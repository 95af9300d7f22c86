"""The search for images: one batch, Adam on its variables, the network as it is in evaluation."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from pellucid.core.device import choose_device
from pellucid.core.errors import InputError, first_line
from pellucid.core.facts import Normalization, facts
from pellucid.core.modes import evaluating
from pellucid.core.network.fold import folded_module
from pellucid.core.network.statistics import Statistics
from pellucid.core.network.statistics import statistics as read_statistics
from pellucid.inversion.matching import Watch, calling
from pellucid.inversion.objective import CrossEntropy, Logit, class_targets
from pellucid.inversion.presets import Recipe, changed, recipe
from pellucid.inversion.schedule import Plateau
from pellucid.inversion.start import Space
from pellucid.inversion.views import Look

CHECKS = 20  # times that a search looks at its images without views


@dataclass(frozen=True, eq=False)
class Inversion:
    """Images out of a network.

    images: float32 (B, C, H, W) in [0, 1], on the CPU. labels: int64 (B,), the largest target. logits: (B, K), the
    network's answers to `images`. numbers: int64 (B,), which images of a larger set these are. history: of every check,
    its `step`, its `loss` without views and the terms of it, and shares of targets met by the network (`own`) and each
    verifier. seconds: of the search. variables: what was varied, on the CPU; the recipe's start makes the images of it.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    numbers: Tensor
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    variables: Tensor | None = None


def invert(
    model: nn.Module,
    targets: Any,
    preset: str | Recipe = "gaussian",
    *,
    steps: int | None = None,
    lr: float | None = None,
    weight: float | None = None,
    statistics: Statistics | None = None,
    verifier: nn.Module | Sequence[nn.Module] | None = None,
    shape: Sequence[int] | None = None,
    normalization: Normalization | Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
    indices: Tensor | None = None,
    device: str | None = None,
    compile: bool = False,
    quiet: bool = False,
    **parts: Any,
) -> Inversion:
    """Images that `model` gives `targets`, and on which its layers see the statistics of its table.

    Args:
        model: a network of normalised images (B, C, H, W) -> logits (B, K); it is left as it was.
        targets: classes (B,), ("balanced", n), ("random", n), or distributions over the classes (B, K).
        preset: name of a recipe (`presets.PRESETS`), or a `Recipe`.
        steps, lr, weight: other than the recipe's: steps, Adam's rate, weight of the statistics (0 is none).
        statistics: the table to match; default what the network holds itself (batch norm, whitening layers).
        verifier: other networks of the same classes that answer to the images at each check; the first is also who a
            recipe with `disagreement` disagrees with. They normalise by their own `normalization` if they have one.
        shape: (C, H, W) of an image; default what the model's description tells.
        normalization: {"mean", "std"} of pixels in [0, 1], a number a channel; default the model's own.
        seed: every draw is a function of it and of an image's number.
        indices: numbers of the images; default 0, 1, ...: image i starts and is viewed alike in whatever batch it is.
        device: auto, cpu, cuda, ...: where the networks are moved; default where the model is.
        compile: compile the forward and backward pass with torch.compile: worth it from about a thousand steps on.
        quiet: without a progress bar.
        parts: parts of the recipe to put in place of its own: objective, matching, priors, disagreement, views, start,
            schedule.

    Raises:
        InputError: nothing to match, or an argument that does not fit the network; one sentence.
    """
    space = space_of(model, shape, normalization, device)
    device_ = space.mean.device
    unknown = sorted(set(parts) - set(Recipe.__dataclass_fields__))
    if unknown:
        raise InputError(f"A recipe has no {unknown[0]!r}: its parts are {', '.join(Recipe.__dataclass_fields__)}.")
    found = recipe(preset, space.shape) if isinstance(preset, str) else preset
    found = changed(found, steps=steps, lr=lr, weight=weight, parts=parts)
    others = [verifier] if isinstance(verifier, nn.Module) else list(verifier or ())
    if found.disagreement is not None and not others:
        raise InputError("This recipe disagrees with another network: give one with verifier=.")
    with contextlib.ExitStack() as stack:
        for network in (model, *others):
            if device is not None:
                network.to(device_)
            stack.enter_context(still(network))
        ran, classes = _probe(model, space)
        stack.enter_context(_folded(model, ran))
        numbers, wanted = class_targets(targets, classes, indices, seed)
        watch = None
        if found.matching is not None:
            table = _table(model, statistics, ran)
            watch = Watch(model, table, found.matching, torch.zeros(1, *space.shape, device=device_))
            stack.enter_context(watch.watching())
        search = _Search(model, others, found, watch, space, wanted.to(device_), numbers, seed, compile)
        return search.run(quiet)


def space_of(
    model: nn.Module,
    shape: Sequence[int] | None = None,
    normalization: Normalization | Mapping[str, Sequence[float]] | None = None,
    device: str | None = None,
) -> Space:
    """The images that a network takes, by what is given or by what it says itself; InputError where neither does."""
    known = facts(model)
    if shape is None:
        if known.in_channels is None or known.image_size is None:
            raise InputError("The network does not say what images it takes: give shape=(C, H, W).")
        shape = (known.in_channels, *known.image_size)
    if len(shape) != 3 or not all(isinstance(n, int) and n >= 1 for n in shape):
        raise InputError(f"shape={tuple(shape)} is none of an image: give (C, H, W).")
    own = Normalization.of(normalization) or known.normalization
    if own is None:
        raise InputError("The network does not say how its input is normalised: give its mean and std of each channel.")
    weights = next(model.parameters(), torch.zeros(()))
    where = weights.device if device is None else torch.device(choose_device(device))
    if own.channels != shape[0]:
        raise InputError(f"mean and std must be {shape[0]} numbers each, one per channel, not {own.channels}.")
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=where).view(-1, 1, 1) for values in (own.mean, own.std)
    )
    return Space((int(shape[0]), int(shape[1]), int(shape[2])), mean, std)


@contextlib.contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """The network in evaluation, its weights constants made once; afterwards all of it is as it was."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with contextlib.ExitStack() as stack:

        def back() -> None:
            for parameter, gradient in wanted:
                parameter.requires_grad_(gradient)

        stack.callback(back)
        stack.enter_context(evaluating(model))
        model.requires_grad_(False)
        stack.enter_context(parametrize.cached())
        yield


@torch.no_grad()
def _probe(model: nn.Module, space: Space) -> tuple[dict[str, int], int]:
    """The axes of the input of every layer that runs, and how many classes the network answers."""
    ran: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():

            def note(module: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                if inputs and isinstance(inputs[0], Tensor):
                    ran[name] = inputs[0].dim()

            stack.callback(module.register_forward_pre_hook(note).remove)
        try:
            logits = model(torch.zeros(2, *space.shape, device=space.mean.device))
        except (RuntimeError, ValueError) as error:
            size = "x".join(map(str, space.shape))
            raise InputError(f"The network cannot take images of {size} ({first_line(error)}).") from None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"The network answers {what} for two images: it must give (2, K) logits.")
    return ran, logits.shape[1]


@contextlib.contextmanager
def _folded(model: nn.Module, ran: dict[str, int]) -> Iterator[None]:
    """Let layers that declare statistics compute as the plain ones that they are in evaluation, made once."""
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name in ran and hasattr(module, "declared_moments"):
                plain = folded_module(module, ran[name])
                if plain is not None:
                    stack.enter_context(calling(module, plain.eval().requires_grad_(False).forward))
        yield


def _table(model: nn.Module, given: Statistics | None, ran: dict[str, int]) -> Statistics:
    """The statistics to match, in the order in which the layers run."""
    if given is None:
        own = read_statistics(model)
        given = Statistics({name: entry for name, entry in own.items() if name in ran})
    idle = [name for name in given if name not in ran]
    if idle or not given:
        name = idle[0] if idle else "of the table"
        raise InputError(f"Layer {name!r} does not run in this network: record statistics with it, or leave it out.")
    return Statistics({name: given[name] for name in ran if name in given})


class _Search:
    """One batch on its way."""

    def __init__(
        self,
        model: nn.Module,
        others: list[nn.Module],
        found: Recipe,
        watch: Watch | None,
        space: Space,
        targets: Tensor,
        numbers: Tensor,
        seed: int,
        compile: bool,
    ) -> None:
        self.model, self.others, self.recipe, self.watch, self.space = model, others, found, watch, space
        self.targets, self.labels, self.numbers = targets, targets.argmax(1), numbers
        self.variables = found.start.draw(space, numbers, seed)
        self.look = Look(found.views, numbers, found.schedule.steps, seed)
        self.terms = torch.compile(self._terms, dynamic=False) if compile else self._terms
        self.norms = [_normalizer(other, space) for other in others]
        self.best: Tensor = self.variables
        self.lowest = math.inf
        self.history: list[dict[str, Any]] = []

    def _terms(self, x: Tensor) -> dict[str, Tensor]:
        """The parts of the loss of normalised images, and the logits."""
        found = self.recipe
        logits = self.model(x)
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
            terms["disagreement"] = found.disagreement(logits, self.others[0](self.norms[0](x)))
        return terms

    def run(self, quiet: bool) -> Inversion:
        from pellucid.core.terminal import bar

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
                    optimizer.param_groups[0]["lr"] = (
                        schedule.lr * factor * schedule.rate((step - first) / (end - first))
                    )
                    loss = self._step(optimizer, step, shrink)
                    if schedule.decay == "plateau":
                        factor = plateau.step(loss)
                    if stop_after:
                        lowest, since = (loss, 0) if loss < 0.9 * lowest else (lowest, since + 1)
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
            logits = self.model(self.space.normalized(images)).float().cpu()
        return Inversion(images.cpu(), self.labels.cpu(), logits, self.numbers, self.history, seconds, chosen.cpu())

    def _step(self, optimizer: torch.optim.Optimizer, step: int, shrink: int) -> float:
        shown = _shrunk(self.look(self.recipe.start.decode(self.variables, self.space), step), shrink)
        x = shown.detach().requires_grad_()  # a leaf: what is compiled begins here
        loss = _total(self.terms(x))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"The loss is {value} at step {step + 1}: lower the learning rate or the weights, or check the network."
            )
        towards = torch.autograd.grad(loss, x)
        (self.variables.grad,) = torch.autograd.grad(shown, [self.variables], towards)
        optimizer.step()
        if self.recipe.schedule.clip and self.recipe.start.pixels:
            with torch.no_grad():
                self.variables.copy_(self.space.clamped(self.variables))
        return value

    @torch.no_grad()
    def _check(self, step: int, shrink: int) -> str:
        """Look at the images without views; what to say of them."""
        x = _shrunk(self.recipe.start.decode(self.variables, self.space), shrink)
        terms = self._terms(x)
        loss = float(_total(terms))
        if loss <= self.lowest:
            self.lowest, self.best = loss, self.variables.detach().clone()
        row: dict[str, Any] = {"step": step, "loss": loss}
        row |= {name: float(value) for name, value in terms.items() if name != "logits"}
        row["own"] = self._met(terms["logits"])
        row["verifiers"] = [self._met(other(norm(x))) for other, norm in zip(self.others, self.norms, strict=True)]
        self.history.append(row)
        return f"loss {loss:.3f}, right {100 * row['own']:.0f} %"

    def _met(self, logits: Tensor) -> float:
        return float((logits.argmax(1) == self.labels).float().mean())


def _total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([value for name, value in terms.items() if name != "logits"]).sum()


def _shrunk(x: Tensor, factor: int) -> Tensor:
    return x if factor == 1 else F.avg_pool2d(x, factor)


def _normalizer(other: nn.Module, space: Space) -> Callable[[Tensor], Tensor]:
    """Images as `other` expects them, of images normalised as in `space`."""
    own = facts(other).normalization
    return (lambda x: x) if own is None else lambda x: own.apply(space.pixels(x))


@torch.no_grad()
def answers(model: nn.Module, images: Tensor, like: nn.Module | None = None) -> Tensor:
    """The classes (B,) that `model` gives images (B, C, H, W) in [0, 1].

    They are normalised as the model's facts say, or else as those of `like`.
    """
    own = facts(model).normalization or (None if like is None else facts(like).normalization)
    if own is None:
        raise InputError("The network does not say how its input is normalised: give its mean and std of each channel.")
    weights = next(model.parameters(), torch.zeros(()))
    with still(model):
        chunks = [model(own.apply(part).to(weights.device)).argmax(1).cpu() for part in images.split(256)]
    return torch.cat(chunks)
