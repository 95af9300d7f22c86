"""What a call borrows of torch's global state and of a model's modes, it gives back."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import nn

import pellucid
from pellucid import cli
from pellucid.core.modes import determinism, evaluating, seeded
from pellucid.core.source import build_fresh


def globals_of_torch() -> tuple[object, ...]:
    return (
        torch.random.get_rng_state().tolist(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
    )


@pytest.fixture(params=["torch's own", "set by the caller"])
def caller(request, monkeypatch):
    """Both as torch starts, and with everything the other way round."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    torch.manual_seed(17)
    if request.param != "torch's own":
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = True
    yield request.param
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run") / "run"
    pellucid.train(model="resnet8", data="digits", epochs=1, limit_batches=1, out=folder, quiet=True)
    return str(folder)


def mixed() -> nn.Module:
    """A network whose submodules are in different modes, as one with frozen batch norm is."""
    model = pellucid.build("resnet8", 10, 1, 8).train()
    for number, module in enumerate(model.modules()):
        module.training = number % 3 != 0
    return model


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


IMAGES = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = (IMAGES, torch.arange(16) % 10)

ON_A_MODEL: dict[str, Callable[[nn.Module], object]] = {
    "evaluate": lambda model: pellucid.evaluate(model, DATA),
    "evaluate a name": lambda model: pellucid.evaluate(model, "digits", "val"),
    "statistics": lambda model: pellucid.statistics(model, IMAGES),
    "declared statistics": lambda model: pellucid.statistics(model),
    "convert": lambda model: pellucid.convert(model, "deconv", block=8),
    "convert with images": lambda model: pellucid.convert(model, "deconv", images=IMAGES, block=8),
    "fold": lambda model: pellucid.fold(model, IMAGES),
    "fold on random images": lambda model: pellucid.fold(model),
}


@pytest.mark.parametrize("name", ON_A_MODEL)
def test_a_call_on_a_model_leaves_no_trace(caller, name):
    model = mixed()
    before, was = globals_of_torch(), modes(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    ON_A_MODEL[name](model)
    assert globals_of_torch() == before
    assert modes(model) == was
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["evaluate", "statistics", "fold", "convert with images"])
def test_a_call_that_fails_leaves_no_trace(caller, name):
    model = mixed()
    model.fc = nn.Linear(3, 10)  # takes what the network does not hand it
    before, was = globals_of_torch(), modes(model)
    with pytest.raises((pellucid.InputError, RuntimeError)):
        ON_A_MODEL[name](model)
    assert globals_of_torch() == before
    assert modes(model) == was
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("deterministic", [True, False])
def test_training_leaves_no_trace(caller, tmp_path, deterministic):
    before = globals_of_torch()
    settings = {"model": "conv2", "epochs": 1, "limit_batches": 1, "deterministic": deterministic}
    pellucid.train(**settings, out=tmp_path / "run", quiet=True)
    assert globals_of_torch() == before
    with pytest.raises(pellucid.InputError, match="another folder"):
        pellucid.train(**settings, lr=0.5, out=tmp_path / "run", quiet=True)
    assert globals_of_torch() == before


def test_reading_and_building_leave_no_trace(caller, run):
    before = globals_of_torch()
    model = pellucid.load(run)
    assert globals_of_torch() == before
    first = build_fresh("resnet8", 10, 1, 8, seed=3)
    assert globals_of_torch() == before
    assert not torch.equal(first.conv1.weight, model.conv1.weight)
    assert torch.equal(first.conv1.weight, build_fresh("resnet8", 10, 1, 8, seed=3).conv1.weight)


@pytest.mark.parametrize(
    "words", [["evaluate"], ["fold", "--out", "x"], ["convert", "--layers", "deconv", "--out", "x"]]
)
def test_a_command_leaves_no_trace(caller, run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    before = globals_of_torch()
    assert cli.main([words[0], run, *words[1:], "--quiet"]) == 0
    assert globals_of_torch() == before


def test_the_contexts_give_back_after_an_error():
    model = mixed()
    before, was = globals_of_torch(), modes(model)

    def fail() -> None:
        with evaluating(model), determinism(True), seeded(4):
            assert not any(modes(model).values())
            assert torch.are_deterministic_algorithms_enabled()
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert globals_of_torch() == before
    assert modes(model) == was
