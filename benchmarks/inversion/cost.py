"""What a step of inversion costs, against a plain loop with hooks as the paper describes it.

    python benchmarks/inversion/cost.py [--compile]

ResNet-20, batch 64, 32x32, random weights with the statistics of a forward pass in training; one process, one thread,
eager, processor time, in turns: the plain loop (a hook with mean and variance on every batch norm, un-squared norms,
total variation, jitter, Adam), with the network's weights requiring gradients as loaded and with weights frozen, and
ours with the same terms in both forms. With --compile: ours, compiled, against the plain loop without frozen weights.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import ratio, record
from benchmarks.timing import interleaved
from pellucid.inversion.frozen import frozen as held
from pellucid.inversion.matching import Watch
from pellucid.inversion.optimize import Search
from pellucid.inversion.presets import recipe
from pellucid.inversion.space import Space

BATCH, TURNS = 64, 15
SHAPE = (3, 32, 32)
KEPT = contextlib.ExitStack()  # what `invert` would undo at its end; here it stays for the life of the process


def network() -> nn.Module:
    torch.manual_seed(0)
    model = pellucid.build("resnet20")
    with torch.no_grad():
        for _ in range(50):
            model(torch.randn(64, *SHAPE))
    return model.eval()


def plain(model: nn.Module, labels: Tensor) -> Callable[[], object]:
    """The loop as the paper describes it (Yin et al. 2020, sections 3.1 and 3.2)."""
    terms: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        mean, var = x.mean((0, 2, 3)), x.permute(1, 0, 2, 3).reshape(x.shape[1], -1).var(1, correction=0)
        terms.append((mean - module.running_mean).norm() + (var - module.running_var).norm())

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(hook)
    images = torch.randn(BATCH, *SHAPE, requires_grad=True)
    optimizer = torch.optim.Adam([images], lr=0.1, betas=(0.5, 0.9))

    def step() -> None:
        terms.clear()
        dy, dx = torch.randint(-2, 3, (2,)).tolist()
        seen = torch.roll(images, (dy, dx), (2, 3))
        optimizer.zero_grad()
        model.zero_grad()
        loss = F.cross_entropy(model(seen), labels) + 10 * sum(terms)
        for a, b in ((seen[..., 1:], seen[..., :-1]), (seen[..., 1:, :], seen[..., :-1, :]),
                     (seen[..., 1:, 1:], seen[..., :-1, :-1]), (seen[..., 1:, :-1], seen[..., :-1, 1:])):  # fmt: skip
            loss = loss + 2.5e-5 * (a - b).norm()
        loss.backward()
        optimizer.step()

    return step


def ours(model: nn.Module, labels: Tensor, form: str, compile: bool = False) -> Callable[[], object]:
    """A step of `invert`, without its checks."""
    found = recipe("gaussian", SHAPE)
    matching = replace(found.matching, form=form)
    found = replace(found, matching=matching, schedule=replace(found.schedule, steps=4096))
    space = Space(SHAPE, torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25))
    KEPT.enter_context(held(model))
    watch = Watch(model, pellucid.statistics(model), matching, torch.zeros(1, *SHAPE))
    KEPT.enter_context(watch.watching())
    targets = F.one_hot(labels, 10).float()
    search = Search(model, [], found, watch, space, targets, torch.arange(BATCH), 0, compile)
    search.variables.requires_grad_()
    optimizer = torch.optim.Adam([search.variables], lr=0.1, betas=(0.5, 0.9))
    steps = iter(range(4096))
    return lambda: search.step(optimizer, next(steps), 1)


def main(compile: bool) -> None:
    torch.set_num_threads(1)
    labels = torch.arange(BATCH) % 10
    frozen = network().requires_grad_(False)
    steps = {"plain": plain(network(), labels), "frozen": plain(frozen, labels)}
    if compile:
        steps["compiled"] = ours(network(), labels, "gaussian", compile=True)
    else:
        steps |= {form: ours(network(), labels, form) for form in ("gaussian", "norms")}
    times = interleaved(steps, TURNS, warm_up=2)
    facts = {"n": TURNS, "unit": "x", "seed": 0, "batch": BATCH}
    if compile:
        title = "step of inversion, resnet20, batch 64: compiled / plain loop with hooks"
        record("inversion/step-compiled", title, "at most 0.4", ratio(times["compiled"], times["plain"]), **facts)
        return
    for form, words in (("gaussian", ""), ("norms", ", with the papers' norms")):
        title = f"step of inversion, resnet20, batch 64{words}"
        claims = {
            "plain": ("plain loop with hooks", "at most 0.55"),
            "frozen": ("the same, weights frozen", "at most 0.7"),
        }
        for other, (what, claimed) in claims.items():
            found = ratio(times[form], times[other])
            record(f"inversion/step-{form}-{other}", f"{title}: ours / {what}", claimed, found, **facts)


if __name__ == "__main__":
    main("--compile" in sys.argv[1:])
