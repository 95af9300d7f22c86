"""Modules with other inputs and outputs become classifiers, in every function."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import pellucid
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts


class Odd(nn.Module):
    """A network whose output is made by `pack`; it may want a second input."""

    def __init__(self, inner: nn.Module, pack, second: bool = False) -> None:
        super().__init__()
        self.inner, self.pack, self.second = inner, pack, second

    def forward(self, x: Tensor, scale: Tensor | None = None):
        if self.second:
            assert scale is not None
            x = x * scale
        return self.pack(x, self.inner(x))


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    torch.manual_seed(0)
    model = pellucid.build("resnet20", 10, 1, 8).eval()
    return declare(model, normalization={"mean": [0.3], "std": [0.3]}, classes=[str(i) for i in range(10)])


FORMS = {
    "a dict": (lambda x, y: {"input": x, "scores": y}, "scores"),
    "the only table of a dict": (lambda x, y: {"input": x, "scores": y}, None),
    "a tuple": (lambda x, y: (x, y), 1),
    "the last of a list": (lambda x, y: [x, y], -1),
    "an attribute": (lambda x, y: SimpleNamespace(logits=y, loss=None), "logits"),
    "a function": (lambda x, y: {"deep": {"scores": y}}, lambda output: output["deep"]["scores"]),
    "logits already": (lambda x, y: y, None),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_output_becomes_logits(plain, form):
    pack, where = FORMS[form]
    x = torch.randn(4, 1, 8, 8)
    wrapped = pellucid.wrap(Odd(plain, pack).eval(), where)
    assert torch.equal(wrapped(x), plain(x)) and torch.equal(copy.deepcopy(wrapped)(x), plain(x))
    assert not wrapped.training


def test_a_second_input_is_given_by_call(plain):
    odd = Odd(plain, lambda x, y: {"scores": y}, second=True).eval()
    x = torch.randn(4, 1, 8, 8)
    wrapped = pellucid.wrap(odd, "scores", call=lambda model, images: model(images, torch.tensor(2.0)))
    assert torch.equal(wrapped(x), plain(2 * x))


def test_a_wrapped_network_goes_through_every_function(plain, tmp_path):
    odd = declare(
        Odd(plain, lambda x, y: (y, x)).eval(), normalization=facts(plain).normalization, classes=facts(plain).classes
    )
    for call in (
        lambda: pellucid.evaluate(odd, "digits"),
        lambda: pellucid.open(odd, "digits", tmp_path / "no", max_images=20, device="cpu"),
        lambda: pellucid.decompose(odd, "digits", k=3),
        lambda: pellucid.invert(odd, ("balanced", 2), steps=1, shape=(1, 8, 8)),
    ):
        with pytest.raises(InputError, match=r"pellucid\.wrap\(model, logits="):
            call()
    wrapped = pellucid.wrap(odd, 0)
    assert facts(wrapped).classes == facts(plain).classes and facts(wrapped).description is None
    assert pellucid.evaluate(wrapped, "digits").top1 == pellucid.evaluate(plain, "digits").top1
    assert pellucid.decompose(wrapped, "digits", k=3).indices == pellucid.decompose(plain, "digits", k=3).indices
    assert pellucid.open(wrapped, "digits", tmp_path / "page", max_images=20, device="cpu").path.is_file()
    assert torch.isfinite(pellucid.invert(wrapped, ("balanced", 2), steps=2, shape=(1, 8, 8)).images).all()
    whitened = pellucid.convert(wrapped, "deconv")
    assert pellucid.facts(pellucid.fold(whitened, torch.randn(2, 1, 8, 8))).difference < 1e-3


def test_what_is_not_there_is_answered_with_what_is(plain):
    x = torch.randn(2, 1, 8, 8)
    two = Odd(plain, lambda x, y: {"coarse": y, "fine": y}).eval()
    with pytest.raises(InputError, match=r"'coarse' \[2, 10\], 'fine' \[2, 10\].*name them with logits="):
        pellucid.wrap(two)(x)
    with pytest.raises(InputError, match=r"has no 'scores': it holds 'coarse' \[2, 10\]"):
        pellucid.wrap(two, "scores")(x)
    with pytest.raises(InputError, match="has no 7"):
        pellucid.wrap(two, 7)(x)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("table")


@pytest.mark.parametrize("kind", ["two inputs", "lazy", "scripted", "on meta", "failing"])
def test_modules_of_any_kind_work_or_have_one_sentence(plain, kind):
    net = {
        "two inputs": lambda: Odd(plain, lambda x, y: y, second=True),
        "lazy": lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10)),
        "scripted": lambda: torch.jit.trace(plain, torch.randn(2, 1, 8, 8)),
        "on meta": lambda: copy.deepcopy(plain).to("meta"),
        "failing": Failing,
    }[kind]()
    declare(net, normalization=facts(plain).normalization)
    calls = {
        "evaluate": lambda: pellucid.evaluate(net, "digits").n,
        "invert": lambda: pellucid.invert(net, [1], steps=1, weight=0, shape=(1, 8, 8)).images,
        "statistics": lambda: pellucid.statistics(net, torch.randn(2, 1, 8, 8)),
    }
    for name, call in calls.items():
        if kind == "lazy" or (kind == "scripted" and name != "statistics"):  # whose layers are not to be seen
            call()
            continue
        with pytest.raises(InputError) as error:
            call()
        assert len(str(error.value)) < 400
