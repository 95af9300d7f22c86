"""The layer rule "deconv" in whole networks: what it puts in, what it keeps, and its flags."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import cli
from pellucid.commandline.bind import call
from pellucid.commandline.flags import flags_of
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.network import models
from pellucid.core.network.swap import Changes, swap
from pellucid.core.train.settings import TrainSettings
from pellucid.whiten.base import Whitening
from pellucid.whiten.channels import ChannelHead
from pellucid.whiten.options import DEFAULTS, PUBLISHED
from pellucid.whiten.rule import deconv
from processes import run

NORMS = nn.modules.batchnorm._BatchNorm
RECIPES = Path(pellucid.__file__).parent / "recipes"


def train_step(model: nn.Module, images: torch.Tensor, lr: float = 0.01) -> float:
    model.train()
    loss = F.cross_entropy(model(images), torch.arange(len(images)) % 5)
    model.zero_grad()
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        parameter.data -= lr * parameter.grad
    return loss.item()


def trained(model: nn.Module, size: int = 8, channels: int = 1) -> nn.Module:
    """With weights and running statistics that are not the fresh ones."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        train_step(model, 2 * torch.randn(16, channels, size, size, generator=generator) + 1)
    return model


class Branches(nn.Module):
    """A layer used twice, tied weights, a convolution without a twin, one of its own arithmetic, a 1-D tail."""

    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias)

    class Renamed(nn.Conv2d):
        def __init__(self, width: int) -> None:
            super().__init__(width, width, 1)
            self.width = width

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding="same", padding_mode="reflect", bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.again = self.stem_twice = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.tied = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.tied.weight = self.again.weight
        self.own = self.Standardised(6, 6, 1)
        self.own_norm = nn.BatchNorm2d(6)
        self.renamed = self.Renamed(6)
        self.up = nn.ConvTranspose2d(6, 4, 3, 2, output_padding=1)
        self.layer_norm = nn.GroupNorm(2, 4)
        self.tail = nn.Conv1d(4, 3, 3)
        self.back = nn.ConvTranspose1d(3, 3, 2)
        self.hidden = nn.Linear(3, 7)
        self.hidden_norm = nn.BatchNorm1d(7)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(7, 5, bias=False)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x + self.act(x)  # in place: after batch norm it overwrote that norm's own tensor
        x = self.tied(self.stem_twice(self.again(x)))
        x = self.up(self.renamed(self.own_norm(self.own(x))))
        x = self.back(self.tail(self.layer_norm(x).flatten(2)))
        return self.head(self.act(self.hidden_norm(self.hidden(x.mean(2)))))


LARGE = {"vgg11_bn", "resnet34", "resnet50", "wide_resnet50_2", "densenet121"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in models.names()]
)
def test_every_network_is_converted(name):
    """All convolutions whiten, no batch norm is left, the parameters are those of the plain network, and it trains."""
    size = 8 if "small" in models._FAMILIES[name].FORMS[name] else 32
    torch.manual_seed(0)
    plain = models.build(name, 5, 1, size)
    torch.manual_seed(0)
    model = models.build(name, 5, 1, size, layers="deconv", block=16)
    assert facts(model).description["layers"] == "deconv"
    assert not any(isinstance(module, NORMS) for module in model.modules())
    kinds = (nn.modules.conv._ConvNd,)
    assert all(isinstance(module, Whitening) for module in model.modules() if isinstance(module, kinds))
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [isinstance(module, Whitening) for module in linears] == [False] * (len(linears) - 1) + [True]
    old = {key: value for key, value in plain.named_parameters() if dict(model.named_parameters()).get(key) is not None}
    for key, value in model.named_parameters():
        if key in old:
            assert torch.equal(value, old[key])
        else:
            assert key.endswith(".bias")
            assert not value.any()
    if sum(value.numel() for value in model.parameters()) < 3e7 and name != "resnet110":
        train_step(model, torch.randn(4, 1, size, size))


def test_the_first_layer_and_the_head_have_their_own_options():
    model = models.build("vgg11", 5, 3, 8, layers="deconv", block=16, block_fc=100, n_iter=4, first_n_iter=9)
    first, second, *_ = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert (first.whiten.n_iter, second.whiten.n_iter, model.classifier.whiten.n_iter) == (9, 4, 4)
    assert (second.blocks.size, second.blocks.count) == (16, 4)
    assert model.classifier.blocks.size <= 100
    one = models.build("vgg11", 5, 3, 8, layers="deconv", first_block=1)
    assert next(module for module in one.modules() if isinstance(module, nn.Conv2d)).blocks.count == 3
    assert type(models.build("vgg11", 5, 3, 8, layers="deconv", head="plain").classifier) is nn.Linear
    head = models.build("vgg11", 5, 3, 8, layers="deconv", head="channel", block_fc=64).classifier
    assert isinstance(head, ChannelHead)
    assert head.whiten.blocks.count == 8
    every = models.build("conv2", 5, 3, 8, layers="deconv", head="all-linear")
    assert all(isinstance(module, Whitening) for module in every.modules() if isinstance(module, nn.Linear))


def test_published_means_the_layers_published_arithmetic():
    model = models.build("resnet20", 5, 3, 8, layers="deconv", published=True, momentum=0.2)
    for module in model.modules():
        if isinstance(module, Whitening):
            assert module.pooled
            assert {name: getattr(module.whiten, name) for name in PUBLISHED} == PUBLISHED
            assert module.whiten.momentum == 0.2
    train_step(model, torch.randn(4, 3, 8, 8))


def test_defaults_are_the_layers_own():
    parameters = inspect.signature(deconv).parameters
    assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS
    for name, owner in {"block": "FastDeconv2d", "sampling_stride": "FastDeconv2d", "blocks": "FastDeconv2d"}.items():
        layer = getattr(pellucid, owner)
        assert parameters[name].default == inspect.signature(layer.__init__).parameters[name].default
    assert parameters["block_fc"].default == inspect.signature(pellucid.FastDeconvLinear).parameters["block"].default


def test_what_is_shared_stays_shared_and_what_differs_stays():
    torch.manual_seed(0)
    net = trained(Branches(), channels=2)
    weight, stem = net.again.weight, net.stem.weight
    names = [name for name, _ in net.named_modules(remove_duplicate=False)]
    changes = swap(net, deconv())
    assert isinstance(changes, Changes)
    assert net.again is net.stem_twice
    assert net.again.weight is weight is net.tied.weight
    assert net.stem.weight is stem
    assert net.stem.bias is not None and not net.stem.bias.any()
    assert (net.stem.padding, net.stem.padding_mode) == ("same", "reflect")
    assert [name for name, _ in net.named_modules(remove_duplicate=False) if ".whiten" not in name] == names
    changed = {name for change in changes for name in change.names}
    expected = {"stem", "norm", "again", "stem_twice", "tied", "renamed", "up", "tail", "act", "head"}
    assert changed == expected
    assert set(changes.left) == {"own", "own_norm", "back", "hidden_norm"}
    assert "own" in changes.left["own"]
    assert not net.act.inplace
    assert isinstance(net.layer_norm, nn.GroupNorm)
    assert net.head.bias is None
    train_step(net, torch.randn(6, 2, 8, 8))
    again = swap(net, deconv())
    assert not again  # nothing is converted twice


def test_norms_can_be_kept():
    net = Branches()
    swap(net, deconv(keep_norm=True))
    assert isinstance(net.norm, nn.BatchNorm2d)
    assert net.act.inplace


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "tail"}, "head='tail' must be linear"),
        ({"block": 0}, "block=0 must be at least 1"),
        ({"momentum": 2}, "momentum=2"),
        ({"grad": "full"}, "refresh=1"),
        ({"colour": 1}, "colour"),
    ],
)
def test_bad_options_are_sentences(options, said):
    with pytest.raises(InputError, match=said):
        models.build("resnet20", layers="deconv", **options)


# --- converting ---


def test_convert_returns_a_new_network_that_says_what_changed():
    model = trained(models.build("resnet20", 5, 1, 8))
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    new = pellucid.convert(model, "deconv", block=16)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert facts(model).description["layers"] == "plain"
    assert facts(new).description == {**facts(model).description, "layers": "deconv", "options": {"block": 16}}
    assert new.training == model.training
    assert {change.old.partition("(")[0] for change in facts(new).changes} == {"Conv2d", "BatchNorm2d", "Linear"}
    assert new.conv1.weight is not model.conv1.weight
    assert torch.equal(new.conv1.weight, model.conv1.weight)
    twice = swap(models.build("resnet20", 5, 1, 8), deconv())
    assert facts(pellucid.convert(nn.Sequential(nn.Conv2d(1, 2, 3)), "deconv")).changes
    assert twice
    for wrong, said in ((new, "has layers 'deconv' already"), (nn.ReLU(), "nothing")):
        with pytest.raises(InputError, match=said):
            pellucid.convert(wrong, "deconv")
    with pytest.raises(InputError, match="Unknown layers"):
        pellucid.convert(model, "magic")


def test_a_second_rule_is_described_after_the_first(monkeypatch):
    from pellucid.core.network.rules import RULES, each

    monkeypatch.setitem(RULES._registered, "quiet", lambda: each(nn.ReLU, lambda name, module: nn.SiLU()))
    new = pellucid.convert(pellucid.convert(models.build("resnet20", 5, 1, 8), "deconv"), "quiet")
    assert facts(new).description["layers"] == "deconv+quiet"
    with pytest.raises(InputError, match="cannot be fitted"):
        pellucid.convert(models.build("resnet20", 5, 1, 8), "quiet", images=torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("name", ["vgg11", "resnet20", pytest.param("resnet18", marks=pytest.mark.slow), "conv2"])
@pytest.mark.parametrize("options", [{}, {"head": "channel"}, {"published": True, "head": "all-linear"}])
def test_with_images_the_function_is_kept(name, options):
    torch.manual_seed(0)
    model = trained(models.build(name, 5, 1, 8))
    batches = [torch.randn(20, 1, 8, 8), torch.randn(12, 1, 8, 8) + 1]
    new = pellucid.convert(model, "deconv", images=batches, block=16, **options)
    assert new.training
    x = torch.randn(9, 1, 8, 8)
    torch.testing.assert_close(new.eval()(x), model.eval()(x), atol=1e-4, rtol=1e-4)
    moments = pellucid.statistics(new)
    assert moments
    assert all(entry.cov.isfinite().all() for entry in moments.values())
    # The statistics are those of the inputs, and not left at their start.
    assert (new.conv1 if name.startswith("resnet") else new.features[0]).whiten.updates == 2
    train_step(new, x)


def test_calibration_leaves_modes_hooks_and_random_state_alone():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3)), nn.Flatten(), nn.LazyLinear(5)
    )
    x = torch.randn(6, 1, 8, 8)
    plain(x)  # a lazy layer draws its weights
    new = copy.deepcopy(plain)
    rule = deconv()
    swap(new, rule)
    for model in (plain, new):
        model.train()
        model[1].eval()  # frozen, as in fine-tuning
    modes = [[module.training for module in model.modules()] for model in (plain, new)]
    random = torch.get_rng_state()
    rule.calibrate(plain, new, [x])
    assert torch.equal(torch.get_rng_state(), random)
    assert [[module.training for module in model.modules()] for model in (plain, new)] == modes
    assert not any(module._forward_pre_hooks for module in plain.modules())
    torch.testing.assert_close(new.eval()(x), plain.eval()(x), atol=1e-4, rtol=1e-4)
    assert new[1][1].whiten.updates == 1


class Untraceable(nn.Module):
    """Control flow that depends on values, around a convolution that feeds its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.conv(x)))
        return self.head(x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)))


class Beside(nn.Module):
    """A norm beside a convolution, on the same input, and one after their sum, as in re-parametrised networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.beside = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.after, self.head = nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.after(self.conv(x) + self.beside(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (Untraceable, {"bn"}),
        (Beside, {"beside", "after"}),
        pytest.param(lambda: models.build("densenet121", 5, 1, 8), None, marks=pytest.mark.slow),
    ],
)
def test_norms_that_no_weights_can_take_in_stay_and_the_function_is_kept(make, kept, tmp_path):
    torch.manual_seed(0)
    model = trained(make()).eval()
    x = torch.randn(16, 1, 8, 8)
    new = pellucid.convert(model, "deconv", images=x, block=16)
    other = torch.randn(9, 1, 8, 8) + 0.5
    torch.testing.assert_close(new(other), model(other), atol=1e-4, rtol=1e-4)
    norms = {name for name, module in new.named_modules() if isinstance(module, NORMS)}
    assert norms == set(facts(new).changes.left)
    assert all(isinstance(m, Whitening) for m in new.modules() if isinstance(m, nn.Conv2d))
    folded = pellucid.fold(new, x)
    torch.testing.assert_close(folded(other), model(other), atol=1e-4, rtol=1e-4)
    if kept is not None:
        assert norms == kept
        return
    assert "features.denseblock1.denselayer1.norm1" in norms
    assert "features.denseblock1.denselayer1.norm2" not in norms  # it follows a convolution
    assert set(facts(new).description["options"]["kept_norms"]) == norms
    pellucid.save(new, tmp_path / "n.safetensors")
    assert torch.equal(pellucid.load(tmp_path / "n.safetensors")(other), new(other))


class Heads(nn.Module):
    """Two averaged heads after a block of linear layers, whose inner width may be the number of classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3)
        self.block = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 6))
        self.head, self.head_dist = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.stem(x).mean((2, 3)))
        return (self.head(x) + self.head_dist(x)) / 2


@pytest.mark.parametrize("width", [8, 5])
def test_every_head_is_whitened_and_nothing_else(width):
    torch.manual_seed(0)
    model, x = Heads(width).eval(), torch.randn(12, 1, 8, 8)
    for options in ({}, {"images": x}):
        new = pellucid.convert(model, "deconv", **options)
        whitened = [name for name, module in new.named_modules() if isinstance(module, Whitening)]
        assert whitened == ["stem", "head", "head_dist"]
    torch.testing.assert_close(new(x), model(x), atol=1e-4, rtol=1e-4)


def test_a_rule_that_cannot_keep_norms_is_refused_where_it_would_have_to(monkeypatch):
    from pellucid.core.network.rules import RULES

    class Guest:
        """Knows how to calibrate, but not how to leave a norm alone."""

        def __call__(self, model: nn.Module) -> dict[str, nn.Module]:
            return deconv()(model)

        def calibrate(self, *args: object) -> None:
            deconv().calibrate(*args)

    monkeypatch.setitem(RULES._registered, "guest", Guest)
    with pytest.raises(InputError, match=r"batch norm 'bn' cannot be folded .* since the network cannot be traced"):
        pellucid.convert(Untraceable(), "guest", images=torch.randn(2, 1, 8, 8))


def test_norms_can_be_kept_by_name():
    new = pellucid.convert(models.build("vgg11", 5, 1, 8), "deconv", kept_norms=["features.1"])
    assert [name for name, module in new.named_modules() if isinstance(module, NORMS)] == ["features.1"]
    with pytest.raises(InputError, match=r"kept_norms names 'features\.0', which is not a batch norm"):
        pellucid.convert(models.build("vgg11", 5, 1, 8), "deconv", kept_norms=["features.0"])


def test_a_function_that_cannot_be_kept_is_a_sentence():
    up = nn.Sequential(nn.ConvTranspose2d(2, 2, 3))
    with pytest.raises(InputError, match="transposed convolution '0'"):
        pellucid.convert(up, "deconv", images=torch.randn(2, 2, 8, 8))
    with pytest.raises(InputError, match="no images"):
        pellucid.convert(models.build("conv2", 5, 1, 8), "deconv", images=[])


# --- flags and recipes ---


def settings_of(*words: str) -> TrainSettings:
    """What the command line makes of them."""
    seen = []

    def command(settings: TrainSettings) -> int:
        """Take settings."""
        seen.append(settings)
        return 0

    assert call(command, "pellucid train", words) == 0
    return seen[0]


def test_options_of_the_rule_are_flags(tmp_path):
    words = ["--layers", "deconv", "--block", "16", "--block-fc=256", "--n-iter", "4", "--published", "--eps", "1e-4"]
    settings = settings_of(*words)
    assert settings.options == {"block": 16, "block_fc": 256, "n_iter": 4, "published": True, "eps": 1e-4}
    assert settings_of("--layers=deconv").options == {}
    # A name that training has already is called after the rule; explicit values count though they are the defaults.
    settings = settings_of("--layers", "deconv", "--momentum", "0.8", "--deconv-momentum", "0.2", "--block", "64")
    assert (settings.momentum, settings.options) == (0.8, {"momentum": 0.2, "block": 64})
    mixed = settings_of("--layers", "deconv", "--options.block", "16", "--head", "channel", "--no-sync")
    assert mixed.options == {"block": 16, "head": "channel", "sync": False}
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({"layers": "deconv", "options": {"block": 16, "eps": 0.1}, "n_iter": 7}))
    assert settings_of("--config", str(file), "--block", "64").options == {"block": 64, "eps": 0.1, "n_iter": 7}
    with pytest.raises(InputError, match="n_iter"):
        settings_of("--config", str(file), "--layers", "plain")
    with pytest.raises(InputError, match="block"):
        settings_of("--block", "16")  # plain layers have no such option
    with pytest.raises(InputError, match="head"):
        settings_of("--layers", "deconv", "--head", "tail")
    with pytest.raises(InputError, match="Unknown layers 'decon'"):
        settings_of("--layers", "decon", "--block", "16")


def test_help_lists_the_options_of_the_rule_with_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--layers", "deconv", "--help"])
    assert not end.value.code
    out = " ".join(capsys.readouterr().out.split())
    assert "maximum number of channels that a convolution whitens together. (type: int, default: 16)" in out
    assert "--deconv-momentum" in out
    for flag in flags_of(deconv):
        assert flag.help, flag.name
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "--block" not in capsys.readouterr().out


def recipes() -> list[str]:
    return sorted(file.stem for file in RECIPES.glob("*.yaml") if file.stem.endswith(("-deconv", "-batchnorm")))


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_parses_by_its_name_and_builds_its_network(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    data, net, kind = name.split("-")
    assert text.startswith("# ")
    assert f"pellucid train --config {name}" in text
    assert "Expected" in text and "Source:" in text and "Not run here" in text
    settings = settings_of("--config", name)
    assert settings == settings_of("--config", str(RECIPES / f"{name}.yaml"))
    assert settings_of(f"--config={name}", "--epochs", "1").epochs == 1
    assert (settings.layers == "deconv") == (kind == "deconv")
    assert (settings.optimizer, settings.schedule, settings.warmup, settings.decay_all) == ("sgd", "cosine", 0, True)
    with torch.device("meta"):
        model = models.build(
            settings.model, 10, 3, settings.image_size or 32, settings.layers, settings.form, **settings.options
        )
    assert any(isinstance(module, Whitening) for module in model.modules()) == (kind == "deconv")
    assert any(isinstance(module, NORMS) for module in model.modules()) == (kind == "batchnorm")
    assert settings.data.partition(":")[2 if data == "imagenet" else 0] == data
    assert settings.model.startswith(net)


def test_recipes_come_in_pairs():
    twins = {name.removesuffix("-deconv") for name in recipes() if name.endswith("-deconv")}
    assert {f"{name}-batchnorm" for name in twins} | {f"{name}-deconv" for name in twins} == set(recipes())
    assert len(recipes()) == 18


# --- as a user types it ---


@pytest.mark.slow
def test_train_evaluate_fold_open_from_the_command_line(tmp_path):
    words = ["train", "--data", "digits", "--model", "vgg11", "--layers", "deconv", "--block", "16", "--epochs", "1"]
    done = run(*words, "--limit-batches", "6", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())["options"] == {"block": 16}
    before = run("evaluate", "run", "--json", cwd=tmp_path)
    folded = run("fold", "run", "--out", "folded.safetensors", cwd=tmp_path)
    assert folded.returncode == 0, folded.stderr
    assert "Next: pellucid evaluate folded.safetensors --data digits" in folded.stdout
    assert "images of digits differ by" in folded.stdout
    after = run("evaluate", "folded.safetensors", "--data", "digits", "--json", cwd=tmp_path)
    assert json.loads(after.stdout)["confusion"] == json.loads(before.stdout)["confusion"]
    kinds = {type(module) for module in pellucid.load(tmp_path / "folded.safetensors").modules()}
    assert not any(issubclass(kind, Whitening | NORMS) for kind in kinds)
    opened = run("open", "folded.safetensors", "--data", "digits", cwd=tmp_path)
    assert opened.returncode == 0, opened.stderr


@pytest.mark.slow
def test_convert_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def typed(*words: str) -> str:
        assert cli.main(words) == 0
        return capsys.readouterr().out

    typed("train", "--epochs", "1", "--limit-batches", "4", "--out", "run")
    words = ["convert", "run", "--layers", "deconv", "--block", "16", "--max-images", "200", "--data", "digits"]
    done = run(*words, "--out", "sub/new.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "FastDeconv2d" in done.stdout
    assert "Next: pellucid evaluate sub/new.safetensors --data digits" in done.stdout
    old = json.loads(typed("evaluate", "run", "--json"))
    new = json.loads(typed("evaluate", "sub/new.safetensors", "--data", "digits", "--json"))
    assert old["confusion"] == new["confusion"]
    assert facts(pellucid.load("sub/new.safetensors")).description["options"] == {"block": 16}
    out = typed("convert", "resnet20", "--layers", "deconv", "--num-classes", "7", "--out", "f.safetensors")
    assert "Next: pellucid fold f.safetensors --out f-folded.safetensors" in out
    assert facts(pellucid.load("f.safetensors")).description["num_classes"] == 7
    assert "Next: pellucid evaluate g --help" in typed("fold", "f.safetensors", "--out", "g")
    for words, said in (
        (["convert", "run", "--out", "x"], "layers"),
        (["convert", "run", "--layers", "magic", "--out", "x"], "Unknown layers"),
        (["convert", "run", "--layers", "plain", "--out", "x"], "nothing"),
        (["convert", "run", "--layers", "deconv", "--num-classes", "3", "--out", "x"], "architecture"),
        (["convert", "f.safetensors", "--layers", "deconv", "--out", "x"], "has layers 'deconv' already"),
        (["convert", "g", "--layers", "deconv", "--out", "x"], "folded"),
        (["convert", "resnet20", "--layers", "deconv", "--data", "digits", "--out", "x"], "random weights"),
        (
            ["convert", "run", "--layers", "deconv", "--data", "digits", "--max-images", "0", "--out", "x"],
            "--max-images 0",
        ),
        (["fold", "nowhere", "--out", "x"], "nowhere"),
        (["fold", "g", "--mean", "0.5", "--out", "x"], "--data"),
        (["fold", "run", "--tolerance", "1e-12", "--out", "x"], "tolerance=1e-12"),
    ):
        assert cli.main(words) == 2, words
        err = capsys.readouterr().err
        assert said in err
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "x").exists()
