"""Networks by name: sizes, shapes, names of parameters, descriptions."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.network import described, models
from pellucid.core.network.models.resnet import BasicBlock, PadShortcut
from pellucid.core.network.rules import RULES, each

FORMS = [(name, form) for name in models.names() for form in models._FAMILIES[name].FORMS[name]]
SMALL = [name for name, form in FORMS if form == "small"]
# He et al. 2016 table 6 (0.27M ... 1.7M), Huang et al. 2017, Frankle & Carbin 2019 figure 2 (4.3M, 2.4M); the exact
# numbers are those of the public implementations of the same networks.
SMALL_COUNTS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "vgg11": 9_231_114,
    "vgg13": 9_416_010,
    "vgg16": 14_728_266,
    "vgg19": 20_040_522,
    "densenet121": 6_956_426,
    "conv2": 4_301_642,
    "conv4": 2_425_930,
}
IMAGENET_COUNTS = {  # torchvision's documentation
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "wide_resnet50_2": 68_883_240,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "densenet121": 7_978_856,
}


def on_meta(*args, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return models.build(*args, **kwargs)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "expected"), SMALL_COUNTS.items())
def test_small_form_has_the_published_number_of_parameters(name, expected):
    assert count(on_meta(name)) == expected


@pytest.mark.parametrize(("name", "expected"), IMAGENET_COUNTS.items())
def test_imagenet_form_has_torchvisions_number_of_parameters(name, expected):
    assert count(on_meta(name, 1000, image_size=224)) == expected


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 32, 32), (2, 9, 13), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_small_form_takes_any_channels_and_size(name, size):
    model = models.build(name, 7, size[0], size[1:])
    assert model.training
    logits = model(torch.randn(2, *size))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 65, 97)], ids=str)
@pytest.mark.parametrize("name", IMAGENET_COUNTS)
def test_imagenet_form_takes_any_channels_and_size_from_32(name, size):
    model = on_meta(name, 7, size[0], size[1:], form="imagenet")
    assert model(torch.empty(2, *size, device="meta")).shape == (2, 7)


def test_imagenet_form_trains():
    model = models.build("resnet18", 5, image_size=(97, 101))
    model(torch.randn(2, 3, 97, 101)).sum().backward()
    assert model.conv1.weight.shape == (64, 3, 7, 7)
    assert model.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (1, 3, 5, 7), (1, 2, 1, 1)])
def test_option_a_shortcut_is_a_pixelwise_copy(shape):
    """He et al. 2016, section 4.2, slowly: new channels are zero, half of them on either side."""
    x = torch.randn(shape)
    batch, channels, height, width = shape
    out = PadShortcut(channels, 2 * channels)(x)
    expected = torch.zeros(batch, 2 * channels, (height + 1) // 2, (width + 1) // 2)
    for c in range(channels):
        for i in range(0, height, 2):
            for j in range(0, width, 2):
                expected[:, c + channels // 2, i // 2, j // 2] = x[:, c, i, j]
    assert torch.equal(out, expected)


def test_basic_block_is_two_convolutions_and_the_shortcut():
    block = BasicBlock(4, 8, 2, PadShortcut(4, 8)).double().eval()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)

    def normed(bn, y):
        return y / (1 + bn.eps) ** 0.5  # fresh running statistics: mean 0, variance 1

    y = normed(block.bn1, nn.functional.conv2d(x, block.conv1.weight, stride=2, padding=1)).clamp_min(0)
    y = normed(block.bn2, nn.functional.conv2d(y, block.conv2.weight, padding=1))
    torch.testing.assert_close(block(x), (y + block.downsample(x)).clamp_min(0), atol=1e-12, rtol=0)


def test_convolutions_start_kaiming_normal_fan_out():
    weight = models.build("resnet18").layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert abs(weight.mean().item()) < 1e-3


def test_no_activation_works_in_place():
    """A tap on a layer must see what the layer computed."""
    for name in models.names():
        assert not any(getattr(module, "inplace", False) for module in on_meta(name).modules())


@pytest.mark.parametrize("size", [16, 31, 96])
def test_auto_is_small_below_97_pixels(size):
    assert facts(models.build("resnet18", image_size=size)).description["form"] == "small"
    assert facts(on_meta("resnet18", image_size=(97, 300))).description["form"] == "imagenet"
    assert facts(on_meta("resnet18", image_size=(96, 300))).description["form"] == "small"
    assert facts(on_meta("resnet20", image_size=224)).description["form"] == "small"
    assert facts(on_meta("wide_resnet50", image_size=32)).description["model"] == "wide_resnet50_2"


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_describe_reads_the_description_off_the_shapes(name, form):
    model = on_meta(name, 13, 2, 32 if form == "small" else 224, form=form)
    assert described.describe(model.state_dict(), name) == facts(model).description
    assert json.loads(json.dumps(facts(model).description)) == facts(model).description


def test_describe_finds_the_image_size_of_conv_networks():
    for name in ("conv2", "conv4", "conv6", "conv8"):
        for size in (16, 48):
            model = on_meta(name, image_size=size)
            assert described.describe(model.state_dict(), name)["image_size"] == [size, size]
    with pytest.raises(InputError, match="square"):
        described.describe(on_meta("conv2", image_size=(8, 12)).state_dict(), "conv2")


def test_describe_refuses_another_network():
    with pytest.raises(InputError, match="not a vgg16"):
        described.describe(on_meta("resnet20").state_dict(), "vgg16")


def test_describe_refuses_a_conv_network_without_its_first_linear_layer():
    state = {"features.0.weight": torch.zeros(8, 3, 3, 3), "classifier.weight": torch.zeros(10, 8)}
    with pytest.raises(InputError, match=r"not a conv2: they have no layer 'classifier.0'"):
        described.describe(state, "conv2")


def test_rebuild_makes_the_same_network():
    model = models.build("vgg11", 4, 1, (9, 13))
    again = models.rebuild(json.loads(json.dumps(facts(model).description)))
    assert facts(again).description == facts(model).description
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_layers_are_replaced_by_the_rule_of_that_name(monkeypatch):
    def rule(slope: float = 0.1):
        return each(nn.ReLU, lambda name, module: nn.LeakyReLU(slope))

    monkeypatch.setitem(RULES._registered, "leaky", rule)
    model = models.build("resnet20", layers="leaky", slope=0.3)
    assert model.relu.negative_slope == 0.3
    assert facts(model).description["layers"] == "leaky"
    assert models.rebuild(facts(model).description).layer1[0].relu2.negative_slope == 0.3
    with pytest.raises(InputError, match="slop"):
        models.build("resnet20", layers="leaky", slop=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "did you mean resnet18"),
        ({"name": "zzzz"}, "known are vgg11"),
        ({"name": 3}, "no model '3'"),
        ({"num_classes": 0}, "num_classes must be a whole number from 1"),
        ({"num_classes": 10**12}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"in_channels": -1}, "in_channels"),
        ({"in_channels": 2.5}, "in_channels"),
        ({"image_size": 3}, "at least 4 pixels a side, not 3x3"),
        ({"image_size": (32, 10**9)}, "image_size"),
        ({"image_size": (32, 32, 3)}, "image_size"),
        ({"image_size": "32"}, "image_size"),
        ({"form": "imagenet"}, "has the form small or 'auto', not 'imagenet'"),
        ({"form": "large"}, "not 'large'"),
        ({"name": "vgg11", "form": "imagenet", "image_size": 31}, "at least 32"),
        ({"name": "vgg11_bn", "form": "small"}, "has the form imagenet"),
        ({"layers": "nothing-like-it"}, "nothing-like-it"),
        ({"colour": "red"}, "colour"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        models.build(**{"name": "resnet20", **arguments})


@pytest.mark.parametrize(
    "description",
    [
        [],
        {},
        {"model": "resnet20", "colour": "red"},
        {"model": "resnet20", "options": []},
        {"model": "resnet20", "options": {"name": "vgg11"}},
        {"model": "resnet20", "options": {"form": "small"}},
        {"model": ["resnet20"]},
        {"model": "resnet20", "layers": 5},
        {"model": "resnet20", "form": None},
        {"model": "resnet20", "image_size": [32, None]},
    ],
    ids=str,
)
def test_descriptions_that_are_not_ours_are_refused(description):
    with pytest.raises(InputError):
        models.rebuild(description)
