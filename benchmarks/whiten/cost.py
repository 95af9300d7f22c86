"""What whitening costs per training step and, folded, per evaluation, against convolution + batch norm.

    python benchmarks/whiten/cost.py [vgg11 | resnet18 ...]

Small forms, batch 128, 32x32, SGD with momentum; in turns, in one process: batch norm, whitening between two refreshes,
whitening at a refresh, and the published arithmetic written as in the paper (its layer is checked against ours set as
published); then evaluation of the plain network, the folded one and batch norm.
A step's cost is the mean over a refresh cycle. Time is the processor time of one thread. Peak memory is what five steps
add to a process that runs nothing else.
"""

from __future__ import annotations

import copy
import functools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pellucid
from benchmarks.record import ratio, record
from benchmarks.timing import interleaved, seconds

BATCH, TURNS, REFRESH = 128, 7, 16
KINDS = {"bn": {}, "default": {"layers": "deconv"}, "published": {}}


class Published(nn.Conv2d):
    """Network Deconvolution as published, for 3x3 and 1x1 convolutions without groups, written as in the paper."""

    block, eps, momentum, sampling = 64, 1e-5, 0.1, 3

    def forward(self, x: Tensor) -> Tensor:
        kernel, count = math.prod(self.kernel_size), max(1, self.in_channels // self.block)
        stride = self.stride[0] * self.sampling
        if kernel > 1:
            rows = (
                F.unfold(x, self.kernel_size, 1, self.padding, stride).transpose(1, 2).reshape(-1, x.shape[1] * kernel)
            )
        else:
            rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])[:: stride**2]
        rows = rows.view(-1, rows.shape[1] // count, count).transpose(1, 2).reshape(-1, rows.shape[1] // count)
        mean = rows.mean(0)
        rows = rows - mean
        eye = torch.eye(rows.shape[1])
        cov = rows.T @ rows / len(rows) + self.eps * eye
        norm = cov.norm()
        y, z = cov / norm, eye
        for _ in range(5):
            t = 0.5 * (3 * eye - z @ y)
            y, z = y @ t, t @ z
        root = z / norm.sqrt()
        with torch.no_grad():
            if not hasattr(self, "running"):
                self.running = mean.clone(), root.clone()
            for old, new in zip(self.running, (mean, root), strict=True):
                old.lerp_(new, self.momentum)
        weight = self.weight.view(-1, root.shape[0], count).transpose(1, 2).reshape(-1, root.shape[0]) @ root
        shift = (weight @ mean).view(self.out_channels, -1).sum(1)
        weight = weight.view(-1, count, root.shape[0]).transpose(1, 2).reshape(self.weight.shape)
        return F.conv2d(x, weight, self.bias - shift, self.stride, self.padding)


def check() -> None:
    """The plain layer is the published arithmetic."""
    for size, kernel in ((64, 3), (128, 3), (128, 1)):
        torch.manual_seed(0)
        plain, ours = (
            Published(size, 8, kernel, 1, kernel // 2),
            pellucid.FastDeconv2d.as_published(size, 8, kernel, 1, kernel // 2),
        )
        ours.load_state_dict(plain.state_dict(), strict=False)
        x = torch.randn(8, size, 16, 16)
        torch.testing.assert_close(plain(x), ours(x), rtol=1e-4, atol=1e-4)


def make(model: str, kind: str) -> nn.Module:
    torch.manual_seed(0)
    net = pellucid.build(model, 10, 3, 32, **KINDS[kind])
    if kind == "published":
        convs = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
        norms = [n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
        pellucid.swap(net, lambda _: {n: pellucid.twin(m, Published, bias=True) for n, m in convs.items()})
        pellucid.swap(net, lambda _: {n: nn.Identity() for n in norms})
        last = next(n for n, m in net.named_modules() if isinstance(m, nn.Linear))
        head = pellucid.FastDeconvLinear.as_published
        pellucid.swap(net, lambda m: {last: head(m.get_submodule(last).in_features, 10)})
    return net


def stepper(model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(images: Tensor, labels: Tensor) -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def at_step(model: nn.Module, number: int) -> None:
    """Set every whitening layer to step `number`, past the first steps, each of which is a refresh."""
    state = model.state_dict()
    model.load_state_dict(
        {k: torch.full_like(v, number) if k.endswith("whiten.steps") else v for k, v in state.items()}
    )


def measure(name: str) -> None:
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    models = {kind: make(name, kind) for kind in KINDS}
    steps = {kind: stepper(model) for kind, model in models.items()}
    for step in steps.values():
        step(images, labels)
    times: dict[str, list[float]] = {key: [] for key in ("bn", "between", "refresh", "published")}
    for _ in range(TURNS):
        times["bn"].append(seconds(lambda: steps["bn"](images, labels)))
        at_step(models["default"], 4 * REFRESH)
        times["between"].append(seconds(lambda: steps["default"](images, labels)))
        at_step(models["default"], 4 * REFRESH - 1)
        times["refresh"].append(seconds(lambda: steps["default"](images, labels)))
        times["published"].append(seconds(lambda: steps["published"](images, labels)))
    cycle = [((REFRESH - 1) * a + b) / REFRESH for a, b in zip(times["between"], times["refresh"], strict=True)]
    facts = {"n": TURNS, "unit": "x", "seed": 0, "refresh": REFRESH}
    title = f"training step of {name}, batch {BATCH}"
    record(f"whiten/step-{name}", f"{title}: default / batch norm", "at most 1.1", ratio(cycle, times["bn"]), **facts)
    record(
        f"whiten/step-published-{name}",
        f"{title}: published arithmetic / default",
        "at least 4",
        ratio(times["published"], cycle),
        **facts,
    )
    plain = make(name, "bn")
    pellucid.swap(plain, lambda m: {n: nn.Identity() for n, x in m.named_modules() if isinstance(x, nn.BatchNorm2d)})
    nets = {
        "plain": plain.eval(),
        "folded": pellucid.fold(models["default"], images[:8]),
        "bn": copy.deepcopy(models["bn"]).eval(),
    }
    for net in nets.values():
        for module in net.modules():  # all three on a par: convolutions with a bias
            if isinstance(module, nn.Conv2d) and module.bias is None:
                module.bias = nn.Parameter(torch.zeros(module.out_channels))
    with torch.no_grad():
        evaluations = interleaved({key: functools.partial(net, images) for key, net in nets.items()}, 2 * TURNS)
    facts["n"] = 2 * TURNS
    title = f"evaluation of {name}, batch {BATCH}"
    record(
        f"whiten/eval-{name}",
        f"{title}: folded / plain convolutions",
        "1.00",
        ratio(evaluations["folded"], evaluations["plain"]),
        **facts,
    )
    record(
        f"whiten/eval-bn-{name}",
        f"{title}: folded / batch norm",
        "below 1",
        ratio(evaluations["folded"], evaluations["bn"]),
        **facts,
    )
    peaks = {kind: [peak(name, kind) for _ in range(3)] for kind in ("bn", "default")}
    facts["n"] = 3
    record(
        f"whiten/memory-{name}",
        f"peak memory of a training process of {name}: default / batch norm",
        "at most 1.2",
        ratio(peaks["default"], peaks["bn"]),
        **facts,
    )


def peak(name: str, kind: str) -> float:
    """MiB that five steps add to a process that has built the network."""
    done = subprocess.run([sys.executable, __file__, "--peak", name, kind], check=True, capture_output=True, text=True)
    return float(done.stdout)


def print_peak(name: str, kind: str) -> None:
    step = stepper(make(name, kind))
    begun = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the recorded peak
    for _ in range(5):
        step(torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,)))
    print(memory("VmHWM") - begun)


def memory(key: str) -> float:
    """A value of this process's status in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--peak"]:
        print_peak(*sys.argv[2:4])
    else:
        check()
        for chosen in sys.argv[1:] or ["vgg11", "resnet18"]:
            measure(chosen)
