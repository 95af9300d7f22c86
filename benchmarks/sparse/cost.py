"""What sparse coding layers cost, and how close their few steps come to the minimum of the objective.

    python benchmarks/sparse/cost.py [layer | networks | gap ...]

layer: 64 to 64 channels, 32x32, two steps, batch 32, with batch norm, against convolution + batch norm + ReLU and
against the published arithmetic, written as in the paper, with its power iteration after every training step.
networks: SDNet-18 (first convolution) and SDNet-18-All. In turns, in one process; time is the processor time of one
thread. gap: the objective's distance from its minimum under each schedule of steps, relative to the published
schedule's, on patches of photographs.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import ratio, record, spread
from benchmarks.timing import interleaved
from pellucid.sparse.fista import SCHEDULES
from pellucid.sparse.layers import CSC, CSC2d

TURNS = 15


class Published(nn.Conv2d):
    """Two or more steps as published: normalise the weights in place, take the steps, compute the losses."""

    lam, n_steps = 0.1, 2
    vector: Tensor | None = None
    step = torch.tensor(0.1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            flat = self.weight.flatten(1)
            self.weight.copy_((flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).view_as(self.weight))
        t = self.step
        z = F.relu(F.softshrink(t * self.down(x) * 1.0, float(self.lam * t)))
        before, tau = z, (1 + math.sqrt(5)) / 2
        for k in range(1, self.n_steps):
            base = z
            if k > 1:
                following = (1 + math.sqrt(1 + 4 * tau * tau)) / 2
                base = (tau + following - 1) / following * z + (1 - tau) / following * before
                tau = following
            before, z = z, F.relu(F.softshrink((base + t * self.down(x - self.up(z, x))) * 1.0, float(self.lam * t)))
        loss = (x - self.up(z, x)).square().sum(), self.lam * z.abs().sum()
        if not self.training:
            self.error = float(loss[0])
        self.places = z.shape[1:]
        return z

    def down(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding)

    def up(self, z: Tensor, x: Tensor) -> Tensor:
        return F.conv_transpose2d(z, self.weight, None, self.stride, self.padding, self.stride[0] - 1)

    @torch.no_grad()
    def update(self) -> None:
        """The published step size: power iteration until the change is at most 1e-5, 50 steps at most."""
        v = torch.randn(1, *self.places) if self.vector is None else self.vector
        for _ in range(50):
            new = F.normalize(self.down(self.up(v, v)).flatten(), dim=0).view_as(v)
            change = (new - v).square().sum()
            v = new
            if change <= 1e-5:
                break
        self.vector, self.step = v, torch.tensor(0.9 / self.up(v, v).square().sum().item())


def check() -> None:
    """The plain layer is the published arithmetic."""
    torch.manual_seed(0)
    plain, ours = Published(8, 12, 3, 1, 1, bias=False), CSC2d.as_published(8, 12, 3, 1, 1)
    with torch.no_grad():
        ours.weight.copy_(plain.weight)
    x = torch.randn(4, 8, 16, 16)
    plain(x)
    plain.vector = ours.direction = torch.rand(1, 12, 16, 16)
    with torch.no_grad():
        plain.weight.copy_(ours.weight)
    plain.update()
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-4)


def stepper(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """A training step, with the published step sizes after it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    layers = [module for module in model.modules() if isinstance(module, Published)]

    def step() -> None:
        optimizer.zero_grad()
        y = model(x)
        (F.cross_entropy(y, labels) if y.dim() == 2 else (y * towards).sum()).backward()
        optimizer.step()
        for layer in layers:
            layer.update()

    towards = torch.randn(x.shape[0], 64, *x.shape[2:])
    return step


def measure_layer() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 64, 32, 32).relu_()
    models = {
        "plain": nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        "ours": nn.Sequential(CSC2d(64, 64, 3, 1, 1), nn.BatchNorm2d(64)),
        "published": nn.Sequential(Published(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)),
    }
    leaf = x.clone().requires_grad_()  # as inside a network
    steps = {name: stepper(model, leaf, torch.zeros(32)) for name, model in models.items()}
    times = interleaved(steps, TURNS, warm_up=2)
    facts = {"n": TURNS, "unit": "x", "seed": 0}
    title = "training step, 64 to 64 channels, 32x32, two steps"
    against = "convolution + batch norm + ReLU"
    record("sparse/step", f"{title}: / {against}", "at most 2.8", ratio(times["ours"], times["plain"]), **facts)
    theirs = ratio(times["published"], times["plain"])
    record("sparse/step-published", f"{title}: published / {against}", "3.4", theirs, **facts)
    with torch.no_grad():
        for model in models.values():
            model.eval()
        evaluations = {name: functools.partial(model, x) for name, model in models.items()}
        times = interleaved(evaluations, 2 * TURNS, warm_up=2)
    facts["n"] = 2 * TURNS
    title = "evaluation, 64 to 64 channels, 32x32, two steps"
    record("sparse/eval", f"{title}: / {against}", "at most 3.0", ratio(times["ours"], times["plain"]), **facts)
    theirs = ratio(times["published"], times["plain"])
    record("sparse/eval-published", f"{title}: published / {against}", "4.6", theirs, **facts)


def network(layers: str, published: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = pellucid.build("resnet18", 10, 3, 32, layers)
    if published:
        kept = {name: module for name, module in model.named_modules() if isinstance(module, CSC)}
        pellucid.swap(
            model, lambda _: {name: pellucid.twin(module, Published, bias=False) for name, module in kept.items()}
        )
    return model


def measure_networks() -> None:
    for layers, batch, turns in (("csc", 32, 7), ("csc-all", 4, 7)):
        torch.manual_seed(0)
        x, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
        models = {"plain": network("plain"), "ours": network(layers), "published": network(layers, published=True)}
        steps = {name: stepper(model, x, labels) for name, model in models.items()}
        times = interleaved(steps, turns, warm_up=2)
        facts = {"n": turns, "unit": "x", "seed": 0, "batch": batch}
        name = "SDNet-18-All" if layers == "csc-all" else "SDNet-18 (first layer)"
        title = f"training step of {name}, batch {batch}"
        claimed = "at most 1.2" if layers == "csc" else "not claimed"
        record(f"sparse/{layers}", f"{title}: / ResNet-18", claimed, ratio(times["ours"], times["plain"]), **facts)
        claimed = "at most 1/3" if layers == "csc-all" else "not claimed"
        against = ratio(times["ours"], times["published"])
        record(f"sparse/{layers}-published", f"{title}: / published arithmetic", claimed, against, **facts)


@torch.no_grad()
def measure_gaps() -> None:
    """Gap to the least objective by schedule: 3 to 64 channels, 12 patches of 32x32 from two photographs."""
    patches = []
    for name in ("china.jpg", "flower.jpg"):
        picture = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1).double()
        patches += [picture[:, 32 * i : 32 * i + 32, 48 * i : 48 * i + 32] for i in range(6)]
    x = torch.stack(patches)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    torch.manual_seed(0)
    layer = CSC2d(3, 64, 3, padding=1).double().eval()
    layer.measure(200)
    solved = layer.solve(x, 1e-3, 1500)
    least = solved.objective - solved.gap / 2
    for n in (2, 4):
        gaps = {}
        for schedule in SCHEDULES:
            layer.schedule, layer.n_steps = schedule, n
            gaps[schedule] = (layer.objective(x, layer(x)) - least).tolist()
        facts = {"n": len(x), "unit": "x", "seed": 0}
        for schedule in SCHEDULES[1:]:
            title = f"objective's gap after {n} steps: {schedule} / published"
            claimed = "at most 0.5" if schedule == "barzilai-borwein" else "not claimed"
            record(f"sparse/gap-{schedule}-{n}", title, claimed, ratio(gaps[schedule], gaps["published"]), **facts)
        relative = [gap / float(value) for gap, value in zip(gaps["published"], least, strict=True)]
        title = f"objective's gap after {n} published steps / least objective"
        record(f"sparse/gap-published-{n}", title, "not claimed", spread(relative), **facts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    check()
    parts = {"layer": measure_layer, "networks": measure_networks, "gap": measure_gaps}
    for part in sys.argv[1:] or parts:
        parts[part]()
