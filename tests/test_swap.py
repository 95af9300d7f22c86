"""Replacing and tapping layers anywhere in a module tree."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from torch import nn

import pellucid
from pellucid.core import registry
from pellucid.core.errors import InputError
from pellucid.core.facts import declare
from pellucid.core.network.rules import RULES, each, rule
from pellucid.core.network.swap import swap, twin
from pellucid.core.network.tap import module_at, tap


class Marked(nn.Conv2d):
    """A convolution under another name: what a rule would put in."""


def to_marked(name: str, conv: nn.Conv2d) -> nn.Module:
    return twin(conv, Marked)


class Net(nn.Module):
    """Shared layer, tied weight, nested containers and a convolution without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=(1, 0), dilation=2, groups=1, padding_mode="reflect")
        shared = nn.Conv2d(4, 4, 1, bias=False)
        self.body = nn.ModuleList([nn.Sequential(shared, nn.ReLU()), nn.ModuleDict({"again": shared})])
        self.tied = nn.Conv2d(4, 4, 1, bias=False)
        self.tied.weight = shared.weight
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.body[0](self.stem(x))
        x = self.tied(self.body[1]["again"](x))
        return self.head(x.mean((2, 3)))


def test_swap_keeps_weights_shares_ties_and_outputs():
    net = Net().eval()
    x = torch.randn(2, 3, 11, 13)
    before, count = net(x), sum(p.numel() for p in net.parameters())
    changes = swap(net, each(nn.Conv2d, to_marked))
    assert torch.equal(net(x), before)
    assert [c.names for c in changes] == [("stem",), ("body.0.0", "body.1.again"), ("tied",)]
    assert net.body[0][0] is net.body[1]["again"]
    assert net.tied.weight is net.body[0][0].weight
    assert all(isinstance(net.get_submodule(c.names[0]), Marked) for c in changes)
    assert sum(p.numel() for p in net.parameters()) == count
    assert not net.stem.training
    assert changes[0].old.startswith("Conv2d(3, 4") and changes[0].new.startswith("Marked(3, 4")
    assert changes[0].parameters_before == changes[0].parameters_after == 3 * 4 * 9 + 4


def test_swapped_weights_still_train_as_one():
    net = Net()
    swap(net, each(nn.Conv2d, to_marked))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(2, 3, 11, 13)).square().sum().backward()
    optimizer.step()
    assert net.tied.weight is net.body[1]["again"].weight


def test_twin_keeps_dtype_mode_and_buffers():
    norm = nn.BatchNorm2d(3, eps=0.1, momentum=None).double().eval()
    norm.running_mean.copy_(torch.randn(3))
    copy = twin(norm, nn.BatchNorm2d, affine=True)
    assert copy.eps == 0.1
    assert copy.momentum is None
    assert not copy.training
    assert torch.equal(copy.running_mean, norm.running_mean)
    assert copy.running_mean.dtype == torch.float64
    assert copy.weight is norm.weight


def test_swap_refuses_what_it_cannot_do():
    net = Net()
    with pytest.raises(InputError, match=r"no layer 'stam'; the nearest names are stem"):
        swap(net, lambda model: {"stam": nn.Identity()})
    with pytest.raises(InputError, match="shared"):
        swap(net, lambda model: {"body.0.0": nn.Identity(), "body.1.again": nn.Identity()})
    with pytest.raises(InputError, match="inside it"):
        swap(net, lambda model: {"body": nn.Identity(), "body.0.0": nn.Identity()})
    with pytest.raises(InputError, match="whole model"):
        swap(net, lambda model: {"": nn.Identity()})
    assert isinstance(net.body[0][0], nn.Conv2d)  # a refused swap changes nothing


def test_rules_by_name(monkeypatch):
    monkeypatch.setattr(RULES, "_registered", {})
    RULES.register("marked", lambda *, only="": each(nn.Conv2d, lambda n, c: twin(c, Marked) if only in n else None))
    net = Net()
    assert [c.names[0] for c in swap(net, rule("marked", only="tied"))] == ["tied"]
    assert swap(net, rule("plain")) == []
    with pytest.raises(InputError, match="'nope'.*marked, plain"):
        rule("nope")
    with pytest.raises(InputError, match="colour"):
        rule("marked", colour=1)
    with pytest.raises(InputError, match="takes no options"):
        rule("plain", block=3)


def test_tap_yields_inputs_outputs_and_gradients():
    net = Net()
    x = torch.randn(2, 3, 11, 13)
    with tap(net, ["stem", "body.0.0", "head"]) as taps:
        out = net(x)
    assert torch.equal(taps["stem"].input, x)
    assert taps["body.0.0"].calls == 2  # the shared layer ran twice
    assert taps["head"].output is out
    (gradient,) = torch.autograd.grad(out.sum(), taps["head"].input)
    assert torch.allclose(gradient, net.head.weight.sum(0).expand(2, -1))
    net(x)
    assert taps["stem"].calls == 1  # hooks are gone
    assert not net.stem._forward_hooks


def test_tap_lists_the_nearest_names():
    with pytest.raises(InputError, match=r"'body.0.1x'; the nearest names are body.0.1"), tap(Net(), ["body.0.1x"]):
        pass
    with pytest.raises(InputError, match="has no layers"):
        module_at(nn.ReLU(), "a")


def test_a_broken_plugin_is_named_once_and_for_all_and_takes_nothing_of_ours_away(monkeypatch):
    class Broken:
        value = "acme.layers"

        def load(self):
            raise OSError("libacme.so is missing")

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [Broken()])
    monkeypatch.setattr(registry, "_guests", {})
    for _ in range(2):  # what failed once was silent for ever after
        with pytest.raises(InputError, match=r"choose one of .*deconv.*'acme.layers' could not be imported .libacme"):
            RULES["fortran"]
        assert callable(RULES["deconv"]) and {"csc", "deconv", "subnet"} <= set(RULES.names())


class Tabled(nn.Module):
    """In evaluation mode it keeps a table computed from a parameter, as timm's LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.biases, self.tables = nn.Parameter(torch.randn(4)), {}

    def train(self, mode: bool = True) -> Tabled:
        super().train(mode)
        self.tables = {} if mode else {"cpu": [2 * self.biases]}
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = 2 * self.biases if self.training else self.tables["cpu"][0]
        return self.head(self.bn(self.conv(x)).mean((2, 3)) + table)


def test_networks_that_keep_computed_tables_are_copied():
    net, x = declare(Tabled().eval(), classes=["a", "b", "c"]), torch.randn(9, 1, 8, 8)
    kept = net.tables["cpu"][0]
    assert not kept.is_leaf
    torch.testing.assert_close(pellucid.fold(net, x)(x), net(x))
    assert pellucid.convert(net, "deconv")(x).shape == (9, 3)
    labels = torch.arange(9) % 3
    assert pellucid.decompose(net, (x, labels), k=4).apply(net)(x).shape == (9, 3)
    assert kept.requires_grad and net.tables["cpu"][0].requires_grad
