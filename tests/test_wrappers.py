"""Networks inside the wrappers of `torch.compile` and `DataParallel`: every function works on the network within."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import pellucid
from pellucid.core.facts import declare, facts

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
}


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    made = pellucid.build("resnet20", 10, 1, 8)
    declare(made, normalization={"mean": [0.3], "std": [0.3]}, classes=[*"0123456789"])
    made.train()(torch.randn(20, 1, 8, 8))
    return made.eval()


@pytest.fixture(params=WRAPPERS)
def wrapped(net, request) -> nn.Module:
    return WRAPPERS[request.param](net)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(30, 1, 8, 8)


def test_statistics_and_facts_are_those_of_the_network(net, wrapped, images):
    assert facts(wrapped) is facts(net)
    for given in (None, images):
        found, wanted = pellucid.statistics(wrapped, given), pellucid.statistics(net, given)
        assert list(found) == list(wanted)
        assert all(torch.equal(found[name].mean, wanted[name].mean) for name in wanted)
    assert list(pellucid.statistics(wrapped, images, layers=["conv1"])) == ["conv1"]


def test_conversion_and_folding_return_plain_networks(net, wrapped, images):
    for made, wanted in (
        (pellucid.convert(wrapped, "deconv", images=images), net),
        (pellucid.fold(wrapped, images), net),
    ):
        torch.testing.assert_close(made(images), wanted(images), atol=1e-3, rtol=1e-3)
        assert "conv1" in dict(made.named_modules())


def test_filters_are_found_and_put_in(net, wrapped, images):
    labels = torch.arange(30) % 10
    found, wanted = (pellucid.decompose(each, (images, labels)) for each in (wrapped, net))
    assert (found.indices, found.layer) == (wanted.indices, wanted.layer)
    assert torch.equal(found.apply(wrapped)(images), wanted.apply(net)(images))
    ask = {"data": (images, labels), "draws": 1}
    assert found.essential(wrapped, **ask).to_json() == wanted.essential(net, **ask).to_json()
    inner = pellucid.decompose(wrapped, (images, labels), rule="mass", layer="layer1")
    assert inner.indices == pellucid.decompose(net, (images, labels), rule="mass", layer="layer1").indices
    edited, other = (pellucid.reweight(each, 3, 1, 2.0, (images, labels)).model for each in (wrapped, net))
    assert torch.equal(edited(images), other(images))


@pytest.mark.slow
def test_images_pages_and_pictures_are_made(net, wrapped, tmp_path):
    found, wanted = (pellucid.invert(each, torch.arange(2), steps=2, quiet=True).images for each in (wrapped, net))
    assert torch.equal(found, wanted)
    assert pellucid.visualize(wrapped, torch.randn(2, 1, 8, 8), layer="layer1").layers
    assert pellucid.open(wrapped, "digits", tmp_path / "page", max_images=20, device="cpu").audit["accuracy"]["n"] == 20


@pytest.mark.slow  # of torch.compile, which then has to
def test_accuracy_is_that_of_the_network(net, wrapped):
    assert pellucid.evaluate(wrapped, "digits") == pellucid.evaluate(net, "digits")


def test_files_are_written_and_loaded_into_the_network(net, wrapped, images, tmp_path):
    expected = net(images)
    pellucid.save(wrapped, tmp_path / "n.safetensors")
    assert torch.equal(pellucid.load(tmp_path / "n.safetensors")(images), expected)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert pellucid.load(tmp_path / "n.safetensors", wrapped) is wrapped
    assert torch.equal(net(images), expected)
    assert facts(wrapped).load_report is not None


def test_masks_are_put_on_and_read(net, wrapped):
    twin = copy.deepcopy(net)
    assert pellucid.subnet(wrapped, 0.5, seed=3) is wrapped
    pellucid.subnet(twin, 0.5, seed=3)
    found, wanted = ([(name, mask.mask()) for name, _, mask in pellucid.masks(each)] for each in (wrapped, twin))
    assert wanted and [name for name, _ in found] == [name for name, _ in wanted]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, wanted, strict=True))
    x = torch.randn(8, 1, 8, 8)
    torch.testing.assert_close(pellucid.bake(wrapped, x)(x), pellucid.bake(twin, x)(x))
