"""A folded network is plain layers only, and computes the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pellucid
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.network import models
from pellucid.core.network.agreement import distance
from pellucid.core.network.fold import folded_module
from pellucid.whiten.base import Whitening
from pellucid.whiten.channels import ChannelDeconv

NORMS = nn.modules.batchnorm._BatchNorm
TRAINED = 3


def trained(model: nn.Module, *shape: int, scale: float = 2.0) -> nn.Module:
    """Running statistics that are not the fresh ones, and weights and norms that are nothing special."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(TRAINED):
        model.train()(scale * torch.randn(*shape, generator=generator) + 1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NORMS) and module.affine:
                module.weight.uniform_(0.5, 2, generator=generator)
                module.bias.normal_(generator=generator)
            elif getattr(module, "bias", None) is not None:
                module.bias.normal_(generator=generator)
    return model


def kinds(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in model.modules()}


# --- layers ---

LAYERS = {
    "1d": (lambda: pellucid.FastDeconv1d(6, 4, 5, stride=2, padding=2, block=4), (5, 6, 19)),
    "2d": (lambda: pellucid.FastDeconv2d(5, 4, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)), (5, 5, 9, 11)),
    "same": (lambda: pellucid.FastDeconv2d(4, 4, 3, padding="same", bias=False, block=3), (5, 4, 9, 8)),
    "groups": (lambda: pellucid.FastDeconv2d(6, 9, 3, padding=1, groups=3, block=1), (5, 6, 9, 8)),
    "depthwise": (lambda: pellucid.FastDeconv2d(6, 6, 3, padding=1, groups=6), (5, 6, 9, 8)),
    "3d": (lambda: pellucid.FastDeconv3d(3, 4, 3, padding=1), (3, 3, 5, 6, 7)),
    "published": (lambda: pellucid.FastDeconv2d.as_published(8, 4, 3, padding=1, block=4), (5, 8, 9, 8)),
    "linear": (lambda: pellucid.FastDeconvLinear(9, 4, block=4), (20, 9)),
    "linear on more axes": (lambda: pellucid.FastDeconvLinear(9, 4, bias=False), (4, 5, 9)),
    "transposed": (lambda: pellucid.FastDeconvTranspose2d(6, 4, 3, 2, 1, 1, groups=2, block=2), (5, 6, 5, 7)),
    "transposed without bias": (lambda: pellucid.FastDeconvTranspose2d(3, 4, (2, 3), bias=False), (5, 3, 5, 7)),
    "channels": (lambda: ChannelDeconv(7, block=3), (20, 7)),
    "channels of signals": (lambda: ChannelDeconv(7, block=3), (4, 7, 9)),
    "channels of maps": (lambda: ChannelDeconv(7, block=3), (4, 7, 9, 5)),
    "channels of volumes": (lambda: ChannelDeconv(7, block=3), (2, 7, 9, 5, 4)),
    **{
        mode: (lambda mode=mode: pellucid.FastDeconv2d(3, 4, 3, padding=(1, 2), padding_mode=mode), (5, 3, 9, 8))
        for mode in ("reflect", "replicate", "circular")
    },
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("fresh", [False, True])
def test_every_whitening_layer_folds_exactly(name, fresh):
    """In float64, on images of another size and scale than the layer has seen; padding included."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    if not fresh:
        generator = torch.Generator().manual_seed(1)
        for _ in range(TRAINED):
            layer.train()(2 * torch.randn(shape, generator=generator, dtype=torch.float64) + 1)
    x = torch.randn((*shape[:-1], shape[-1] + (len(shape) > 2 and "linear" not in name)), dtype=torch.float64) * 3
    layer.eval()
    state = torch.random.get_rng_state()
    folded = pellucid.fold(nn.Sequential(layer), x, tolerance=1e-12)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(folded(x), layer(x), atol=1e-10, rtol=1e-10)
    assert all(kind.__module__.startswith("torch.nn") for kind in kinds(folded))
    assert not any(issubclass(kind, Whitening) for kind in kinds(folded))
    assert [change.names for change in facts(folded).changes] == [("0",)]
    if "weight" in dict(layer.named_parameters()):
        assert not {p.data_ptr() for p in folded.parameters()} & {p.data_ptr() for p in layer.parameters()}
    alone = pellucid.fold(layer, x, tolerance=1e-12)
    torch.testing.assert_close(alone(x), layer(x), atol=1e-10, rtol=1e-10)


def test_before_fold_the_mean_matters():
    """The check would see a fold that forgets the mean or the padding."""
    torch.manual_seed(0)
    layer = pellucid.FastDeconv2d(3, 4, 3, padding=1)
    for _ in range(TRAINED):
        layer(torch.randn(8, 3, 9, 9) + 3)
    plain = folded_module(layer.eval())
    x = torch.randn(2, 3, 9, 9)
    assert distance([layer(x)], [plain(x)]) < 1e-6
    with torch.no_grad():
        plain.bias.zero_()
    assert distance([layer(x)], [plain(x)]) > 1e-2


# --- batch norm ---


class Net(nn.Module):
    """Norms that can go and norms that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.read_twice = nn.Conv2d(4, 4, 1)
        self.norm_read_twice = nn.BatchNorm2d(4)
        self.norm_alone = nn.BatchNorm2d(4, affine=False)
        self.up = nn.ConvTranspose2d(4, 6, 2, 2)
        self.norm_up = nn.BatchNorm2d(6)
        self.shared_conv = nn.Conv2d(6, 6, 1)
        self.shared_norm = nn.BatchNorm2d(6)
        self.by_batch_conv = nn.Conv2d(6, 6, 1)
        self.by_batch = nn.BatchNorm2d(6, track_running_stats=False)
        self.grouped_up = nn.ConvTranspose2d(6, 6, 1, groups=3)
        self.norm_grouped_up = nn.BatchNorm2d(6)
        self.flat = nn.Conv1d(6, 5, 3)
        self.norm_flat = nn.BatchNorm1d(5, eps=0.3)
        self.linear = nn.Linear(5, 7, bias=False)
        self.norm_linear = nn.BatchNorm1d(7)

    def forward(self, x):
        x = self.norm(self.conv(x))
        y = self.read_twice(x)
        x = self.norm_alone(self.norm_read_twice(y).relu() + y)
        x = self.norm_up(self.up(x))
        for _ in range(2):
            x = self.shared_norm(self.shared_conv(x))
        x = self.norm_grouped_up(self.grouped_up(self.by_batch(self.by_batch_conv(x))))
        return self.norm_linear(self.linear(self.norm_flat(self.flat(x.flatten(2))).mean(2)))


def test_batch_norm_goes_where_it_can_and_the_rest_is_told():
    torch.manual_seed(0)
    net = trained(Net(), 8, 2, 8, 8).double()
    x = torch.randn(8, 2, 9, 10, dtype=torch.float64)
    folded = pellucid.fold(net, x, tolerance=1e-12)
    assert {change.names[0] for change in facts(folded).changes if change.new == "Identity()"} == {
        "norm",
        "norm_up",
        "norm_flat",
        "norm_linear",
    }
    assert set(facts(folded).changes.left) == {
        "norm_read_twice",
        "norm_alone",
        "shared_norm",
        "by_batch",
        "norm_grouped_up",
    }
    left = facts(folded).changes.left
    assert "'read_twice' is read elsewhere" in left["norm_read_twice"]
    assert "no convolution" in left["norm_alone"]
    assert "runs 2 times" in left["shared_norm"]
    assert "batch's own" in left["by_batch"]
    assert "in groups" in left["norm_grouped_up"]
    assert not folded.training and net.training
    assert folded.conv.bias is not None and net.conv.bias is None


def test_what_cannot_be_traced_keeps_its_norms():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    net = trained(Branching(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), 4, 1, 8, 8)
    folded = pellucid.fold(net, torch.randn(2, 1, 8, 8))
    assert not facts(folded).changes
    assert "cannot be traced" in facts(folded).changes.left["1"]


def test_a_convolution_with_arithmetic_of_its_own_keeps_its_norm():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)

    net = trained(nn.Sequential(Standardised(1, 2, 3), nn.BatchNorm2d(2)), 4, 1, 8, 8)
    assert "'0', is not a plain" in facts(pellucid.fold(net, torch.randn(2, 1, 8, 8))).changes.left["1"]
    norm = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3))
    net = trained(nn.Sequential(norm, nn.BatchNorm2d(2)), 4, 1, 8, 8)
    assert not facts(
        pellucid.fold(net, torch.randn(2, 1, 8, 8))
    ).changes.left  # torch's own parametrizations are understood


# --- networks ---


HEAVY = [("resnet50", layers) for layers in ("deconv", "channel", "published")]
HEAVY += [("resnet18", "published"), ("vgg11", "published")]
HEAVY += [("densenet121", layers) for layers in ("deconv", "channel", "published")]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        pytest.param(name, layers, marks=[pytest.mark.slow] if (name, layers) in HEAVY else [])
        for name in ["vgg11", "resnet18", "resnet20", "resnet50", "densenet121", "conv4"]
        for layers in ["plain", "deconv", "channel", "published"]
    ],
)
def test_networks_fold_and_travel(name, layers, tmp_path):
    options = {"plain": {}, "deconv": {}, "channel": {"head": "channel"}, "published": {"published": True}}[layers]
    if layers != "plain":
        options["block"] = 16
    torch.manual_seed(0)
    model = models.build(name, 5, 1, 12, layers="plain" if layers == "plain" else "deconv", **options)
    model = trained(model, 8, 1, 12, 12)
    declare(model, classes=tuple("abcde"), normalization={"mean": [0.5], "std": [0.25]})
    before = copy.deepcopy(model.state_dict())
    folded = pellucid.fold(model)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert facts(folded).difference <= 1e-5
    x = torch.randn(6, 1, 12, 12)
    assert distance([model.eval()(x)], [folded(x)]) <= 1e-5
    left = set(facts(folded).changes.left)
    assert not any(issubclass(kind, Whitening) for kind in kinds(folded))
    if name == "densenet121" and layers == "plain":
        assert len(left) == 62  # before each block's first convolution, not after one
    else:
        assert not left
        assert not any(issubclass(kind, NORMS) for kind in kinds(folded))
    names = {key for key, _ in model.named_modules() if ".whiten" not in key and not key.startswith("classifier.")}
    assert {key for key in names if "fc." not in key} <= {key for key, _ in folded.named_modules()}
    assert facts(folded).description == {**facts(model).description, "folded": True}
    pellucid.save(folded, tmp_path / "f.safetensors")
    again = pellucid.load(tmp_path / "f.safetensors")
    assert torch.equal(again(x), folded(x))
    assert (facts(again).description, facts(again).classes) == (facts(folded).description, facts(folded).classes)
    assert kinds(again) == kinds(folded)
    twice = pellucid.fold(again)
    assert not facts(twice).changes
    assert torch.equal(twice(x), folded(x))
    if layers != "plain":
        pellucid.save(model, tmp_path / "m.safetensors")
        loaded = pellucid.load(tmp_path / "m.safetensors")
        assert torch.equal(loaded(x), model(x))
        assert facts(loaded).description == facts(model).description


def test_kept_norms_are_folded_after_the_whitening_layers():
    model = trained(models.build("resnet20", 5, 1, 8, layers="deconv", keep_norm=True), 8, 1, 8, 8)
    folded = pellucid.fold(model)
    assert not any(issubclass(kind, Whitening | NORMS) for kind in kinds(folded))
    (row,) = [change for change in facts(folded).changes if change.names == ("conv1",)]
    assert (row.old.partition("(")[0], row.new.partition("(")[0]) == ("FastDeconv2d", "Conv2d")


def test_any_layer_can_fold_by_a_method_of_its_own():
    class Doubling(nn.Module):
        def forward(self, x):
            return 2 * x

        def folded_module(self) -> nn.Module:
            return nn.Identity()

    net = nn.Sequential(nn.Linear(2, 3), Doubling())
    with pytest.raises(InputError, match=r"differ by 0.5 of the largest, more than tolerance=1e-05"):
        pellucid.fold(net, torch.randn(4, 2))
    assert isinstance(pellucid.fold(net, torch.randn(4, 2), tolerance=0.6)[1], nn.Identity)


def test_tables_of_outputs_are_compared():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = pellucid.FastDeconv2d(1, 2, 3)

        def forward(self, x):
            return {"out": self.conv(x), "more": [x.sum(), {"deep": self.conv(-x)}]}

    net = trained(Two(), 4, 1, 8, 8)
    assert facts(pellucid.fold(net, torch.randn(4, 1, 8, 8))).difference < 1e-6
    a = torch.ones(3)
    assert distance([a], [a]) == 0
    assert distance([0 * a], [0 * a]) == 0
    for found in ([0 * a * float("nan")], [a, a], [torch.ones(2)], []):
        assert distance([a], found) == float("inf")
    assert distance([0 * a], [a]) == float("inf")
    assert distance([], []) == float("inf")


def test_what_is_missing_is_a_sentence():
    with pytest.raises(InputError, match="as example"):
        pellucid.fold(nn.Sequential(pellucid.FastDeconv2d(1, 2, 3)))
    with pytest.raises(InputError, match=r"cannot take the example \(2, 3, 8, 8\)"):
        pellucid.fold(models.build("resnet20", 5, 1, 8), torch.randn(2, 3, 8, 8))
    with pytest.raises(InputError, match="ChannelDeconv"):
        folded_module(ChannelDeconv(3))

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = pellucid.FastDeconvTranspose2d(2, 2, 3, 2)

        def forward(self, x):
            return self.up(x, output_size=[18, 18])

    with pytest.raises(InputError, match="does not run"):
        pellucid.fold(Sized(), torch.randn(2, 2, 8, 8))


@pytest.mark.parametrize("damage", [{"folded": True, "layers": "plain"}, {"folded": False}])
def test_a_description_that_does_not_fit_is_refused(damage, tmp_path):
    folded = pellucid.fold(trained(models.build("resnet20", 5, 1, 8, layers="deconv", keep_norm=True), 8, 1, 8, 8))
    declare(folded, description={**facts(folded).description, **damage, "options": {}})
    pellucid.save(folded, tmp_path / "f.safetensors")
    if damage["folded"]:
        pellucid.load(tmp_path / "f.safetensors")  # the same plain network by another way
    else:
        with pytest.raises(InputError, match=r"damaged|does not fit"):
            pellucid.load(tmp_path / "f.safetensors")
