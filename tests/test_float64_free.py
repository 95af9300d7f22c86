"""Every command's tensor code on a device that has no float64, as Apple's GPUs."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from float64_free import pretended
from pellucid.cli import main
from pellucid.core.network.export import export
from pellucid.ideas import COMMANDS
from pellucid.inversion.representation import reconstruct


@pytest.fixture(autouse=True)
def device(monkeypatch):
    from lightning_fabric.accelerators.mps import MPSAccelerator

    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    with pretended():
        yield


def test_the_pretended_device_refuses_what_the_real_one_does():
    x = torch.randn(3, 4).to("mps")
    assert x.device.type == "mps" and (x @ x.T)[0].device.type == "mps" and x.cpu().device.type == "cpu"
    for bad in (
        lambda: x.double(),
        lambda: x.to(torch.float64),
        lambda: x.to("cpu", torch.float64),
        lambda: torch.zeros(2, dtype=torch.float64).to("mps"),
        lambda: torch.zeros(2, dtype=torch.float64, device="mps"),
        lambda: torch.tensor(np.ones(3), device="mps"),
        lambda: x.sum(dtype=torch.float64),
        lambda: torch.zeros(3, 4, dtype=torch.float64).copy_(x),
        lambda: nn.Linear(2, 2).double().to("mps"),
        lambda: nn.Linear(2, 2).to(device="mps", dtype=torch.float64),
        lambda: x.numpy(),
    ):
        with pytest.raises(TypeError):
            bad()
    for bad in (
        lambda: x + torch.ones(4),
        lambda: torch.rand(2, device="mps", generator=torch.Generator()),
        lambda: x.normal_(generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError):
            bad()
    assert x.cpu().double().dtype == torch.float64
    assert torch.ones(2, dtype=torch.float64).to("mps", torch.float32).device.type == "mps"
    assert (x * 2.5 + torch.tensor(1.0, dtype=torch.float64)).dtype == torch.float32


def test_the_pretended_device_is_followed_through_training_and_copies():
    layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to("mps")
    assert {t.device.type for t in layer.state_dict().values()} == {"mps"}
    layer(torch.ones(3, 4, device="mps")).square().sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9).step()
    assert {p.grad.device.type for p in layer.parameters()} == {"mps"}
    assert {t.device.type for t in copy.deepcopy(layer).state_dict().values()} == {"mps"}
    assert {t.device.type for t in nn.Linear(2, 2).to(device="mps").state_dict().values()} == {"mps"}
    assert {t.device.type for t in layer.cpu().state_dict().values()} == {"cpu"}
    with pytest.raises(RuntimeError):
        layer(torch.ones(3, 4, device="mps"))


# --- every command ---

TINY = "--batch-size 20 --limit-batches 2 --epochs 1 --quiet"
TRAINED = {  # name -> flags; the runs that other commands read
    "plain": "--model resnet20",
    "deconv": "--model conv2 --layers deconv",
    "csc": "--model resnet20 --layers csc",
    "subnet": "--model conv2 --layers subnet --options.anneal 2 --options.redraw 1",
    "gates": "--model resnet20 --objective class-gates --objective-options.period 1",
    "averaged": "--model conv2 --ema 0.9 --mixup 0.2 --clip 1 --cutout 2 --optimizer adamw",
    "selective": "--model resnet20 --objective selectivity",
    "published": "--model conv2 --layers deconv --options.method newton --options.refresh 2",
}
RULES = ("evidence", "l1", "omp", "gradient", "frequency", "mass", "weight", "random")
# Each is a command line; RUNS stands for the folder of the runs above.
LINES = [
    "evaluate RUNS/plain",
    *(f"decompose RUNS/plain --rule {rule} --k 2 --split val --out filters.json" for rule in RULES),
    "decompose RUNS/gates --rule gates --split val --out filters.json",
    "decompose RUNS/plain --fit head --k 2 --split val --out filters.json",
    "decompose RUNS/plain --fit network --k 2 --split val --out filters.json",
    "visualize RUNS/csc --max-images 2 --out seen",
    "visualize RUNS/plain --max-images 2 --out seen",
    "pack RUNS/subnet --plain plain.safetensors --out packed.safetensors",
    "robust RUNS/plain --kinds gaussian_noise --severities 3 --max-images 8",
    "robust RUNS/csc --kinds gaussian_noise --severities 3 --lam adaptive --attack fgsm --max-images 4",
    "invert RUNS/plain --count 10 --steps 2 --out inverted",
    "invert RUNS/plain --count 10 --steps 2 --preset deepinversion --out inverted",
    "invert RUNS/plain --count 10 --steps 2 --preset generator --out inverted",
    "invert RUNS/deconv --count 10 --steps 2 --out inverted",
    "synthesize RUNS/plain --per-class 1 --steps 2 --out images",
    "assess RUNS/plain RUNS/images --data digits --max-images 40",
    "distill RUNS/plain conv2 RUNS/images --data digits --epochs 1 --real 1 --out students",
    "distill RUNS/plain conv2 --online 1 --per-class 5 --steps 2 --no-controls --epochs 1 --out students",
    "open RUNS/plain --max-images 40 --out page",
    "open RUNS/deconv --max-images 40 --out page",
    "open RUNS/csc --max-images 20 --out page",
    "open RUNS/subnet --max-images 40 --out page",
    "convert RUNS/plain --layers deconv --data digits --max-images 40 --out converted.safetensors",
    "fold RUNS/deconv --out folded.safetensors",
    "export RUNS/deconv --max-images 5 --out exported.pt2",
]
SLOW = ("open RUNS/plain", "open RUNS/csc", "open RUNS/subnet", "robust RUNS/csc")
ELSEWHERE = {"search": "its trials are the other commands"}


def on_device(line: str) -> list[str]:
    words = line.split()
    return words if words[0] == "fold" else [*words, "--device", "mps"]  # fold has no device


def test_every_command_is_here():
    assert {line.split()[0] for line in LINES} | {"train", *ELSEWHERE} == set(COMMANDS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", TRAINED)
def test_training_needs_no_float64(runs, name, capfd):
    status = main(on_device(f"train {TRAINED[name]} {TINY} --out {runs / name}"))
    assert status == 0, capfd.readouterr().err


@pytest.fixture(scope="module")
def ready(runs) -> Path:
    """All runs, made on the CPU where the tests above did not make them, and a folder of images."""
    for name, flags in TRAINED.items():
        if not (runs / name / "result.json").exists():
            assert main(f"train {flags} {TINY} --out {runs / name}".split()) == 0
    assert main(f"synthesize {runs / 'plain'} --per-class 2 --steps 1 --out {runs / 'images'} --quiet".split()) == 0
    return runs


def in_a_thread(function):
    """`function` where the pretended device is not: torch cannot trace under it. Its tensors must be on the CPU."""

    def run(*args):
        assert {t.device.type for one in args for t in (one.parameters() if isinstance(one, nn.Module) else [])} <= {
            "cpu"
        }
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function, *args).result()

    return run


@pytest.mark.parametrize("line", [pytest.param(x, marks=[pytest.mark.slow] * x.startswith(SLOW)) for x in LINES])
def test_no_command_needs_float64(ready, line, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(reconstruct.__kwdefaults__, "steps", 2)
    for name in ("program_of", "to_pt2", "_read_back"):
        monkeypatch.setattr(export, name, in_a_thread(getattr(export, name)))
    status = main(on_device(line.replace("RUNS", str(ready))))
    assert status == 0, capfd.readouterr().err


# --- functions with a device of their own ---


def test_statistics_and_reestimation():
    from pellucid.core.network.reestimate import reestimated

    model, images = pellucid.build("resnet20", 10, 1, 8).to("mps"), torch.randn(8, 1, 8, 8).to("mps")
    table = pellucid.statistics(model, images, covariance=True)
    assert {moments.mean.dtype for moments in table.values()} == {torch.float64}
    with reestimated(model, [images[:4], images[4:]]):
        assert model(images).device.type == "mps"
    assert pellucid.fold(model, images) is not None


def test_conversion_keeps_the_function():
    model, images = pellucid.build("resnet20", 10, 1, 8).to("mps"), torch.randn(64, 1, 8, 8).to("mps")
    converted = pellucid.convert(model, to="deconv", images=[images])
    assert {t.device.type for t in converted.state_dict().values()} == {"mps"}
    assert torch.allclose(converted.eval()(images), model.eval()(images), atol=1e-2)


def test_a_subnetwork_is_drawn_for_the_device():
    model = pellucid.subnet(pellucid.build("conv2", 10, 1, 8).to("mps"), redraw=1)
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"mps"}
    assert model.train()(torch.randn(4, 1, 8, 8).to("mps")).device.type == "mps"


def test_lambda_follows_images_on_the_device():
    from pellucid.sparse.adapt import Adaptive

    lams = Adaptive((0.0, 0.5), (0.1, 0.6))(torch.rand(2, 1, 8, 8).to("mps"))
    assert lams.device.type == "mps" and lams.dtype == torch.float32
