"""Networks in float64, bfloat16 and float16: every function takes them, and says the same as of a float32 twin."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pellucid
from pellucid.core.errors import InputError
from pellucid.core.facts import declare

TYPES = [torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> nn.Module:
    """A network that has learned a little."""
    settings = pellucid.TrainSettings(model="resnet20", epochs=2, batch_size=64)
    return pellucid.train(settings, tmp_path_factory.mktemp("run") / "run", quiet=True).model


@pytest.fixture(params=TYPES, ids=str)
def other(single, request) -> nn.Module:
    return copy.deepcopy(single).to(request.param)


def test_accuracy_filters_and_statistics_are_those_of_the_twin(single, other):
    assert abs(pellucid.evaluate(other, "digits").top1 - pellucid.evaluate(single, "digits").top1) < 0.02
    found, wanted = (pellucid.decompose(net, "digits", k=3) for net in (other, single))
    same = [len(set(a) & set(b)) for a, b in zip(found.indices, wanted.indices, strict=True)]
    assert sum(same) >= 0.9 * 3 * 10
    images = torch.randn(50, 1, 8, 8)
    for name, moments in pellucid.statistics(other, images).items():
        twin = pellucid.statistics(single, images, layers=[name])[name]
        torch.testing.assert_close(moments.mean, twin.mean, atol=0.1, rtol=0.1)


def test_pages_pictures_and_inverted_images_are_made(other, tmp_path):
    assert pellucid.open(other, "digits", tmp_path / "page", max_images=20, device="cpu").audit["accuracy"]["n"] == 20
    assert torch.isfinite(pellucid.invert(other, ("balanced", 2), steps=3).images).all()
    assert pellucid.visualize(other, torch.randn(2, 1, 8, 8), layer="layer1").layers


def test_conversion_keeps_the_function_or_says_what_to_do(other):
    images = torch.randn(200, 1, 8, 8)
    if next(other.parameters()).dtype == torch.float64:
        new = pellucid.convert(other, "deconv", images=images)
        assert (new(images.double()) - other(images.double())).abs().max() < 1e-3
    else:
        with pytest.raises(InputError, match=r"too coarse to keep its function: convert model\.float\(\)"):
            pellucid.convert(other, "deconv", images=images)


class Idle(nn.Module):
    """An auxiliary head that does not run in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.auxiliary = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x).mean((2, 3))
        return self.head(features) + self.auxiliary(features) if self.training else self.head(features)


def test_idle_layers_are_left_out_of_statistics_and_listed():
    net, images = declare(Idle(), classes=["a", "b", "c"]), torch.randn(5, 1, 8, 8)
    table = pellucid.statistics(net, images)
    assert list(table) == ["conv", "head"] and table.idle == ("auxiliary",)
    with pytest.raises(InputError, match="'auxiliary' did not run"):
        pellucid.statistics(net, images, layers=["conv", "auxiliary"])
