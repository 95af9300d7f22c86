"""Layer rules together: their names, their options, what each does to the layers of another, and training with both."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import pellucid
from pellucid.cli import main
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.network.models import build, rebuild
from pellucid.core.network.rules import RULES, extended
from pellucid.core.network.swap import swap
from pellucid.core.train import loop
from pellucid.edgepopup.layers import masks
from pellucid.edgepopup.rule import subnet
from pellucid.sparse.layers import CSC2d
from pellucid.sparse.rule import csc, csc_all
from pellucid.whiten.base import Whitening
from pellucid.whiten.convolution import FastDeconv2d
from pellucid.whiten.linear import FastDeconvLinear
from pellucid.whiten.rule import deconv


def network(layers: str = "plain", **options) -> nn.Module:
    torch.manual_seed(0)
    return build("resnet8", 5, 1, 8, layers=layers, **options)


def some_images(n: int = 8) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module) -> None:
    model.train()
    loss = nn.functional.cross_entropy(model(some_images()), torch.arange(8) % 5)
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all()
                parameter -= 0.1 * parameter.grad


# --- names ---


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("csc+csc-all", "'csc-all' does what 'csc' does too, so write 'csc-all'"),
        ("csc-all+deconv+csc", "so write 'csc-all[+]deconv'"),
        ("plain+deconv", "'plain' changes nothing, so write 'deconv'"),
        ("plain+plain", "so write 'plain'"),
        ("deconv+deconv", "'deconv' is named twice, so write 'deconv'"),
        ("deconv+csc+deconv", "so write 'deconv[+]csc'"),
        ("csc+", "lack a name"),
        ("+", "lack a name"),
        ("csc+decnv", "'decnv': did you mean 'deconv'"),
    ],
)
def test_rules_that_make_no_sense_together_are_named(layers, said):
    with pytest.raises(InputError, match=said) as caught:
        network(layers)
    assert str(caught.value).count(". ") == 0


# --- options ---


def test_each_option_reaches_the_rule_that_has_it():
    net = network("csc+deconv", lam=0.3, block=8, momentum=0.2)
    assert net.conv1.lam == 0.3 and net.layer1[0].conv1.blocks.size == 8
    assert net.layer1[0].conv1.whiten.momentum == 0.2
    assert facts(net).description["options"] == {"lam": 0.3, "block": 8, "momentum": 0.2}
    factory = RULES["csc+deconv"]
    tables = factory.split({"lam": 0.3, "csc_published": True, "deconv_published": False})
    assert tables == {"csc": {"lam": 0.3, "published": True}, "deconv": {"published": False}}
    assert factory.join(tables) == {"lam": 0.3, "csc_published": True, "deconv_published": False}


def test_an_option_that_both_have_names_its_rule():
    net = network("csc+deconv", csc_published=True)
    assert net.conv1.published and not net.layer1[0].conv1.published
    net = network("csc+deconv", deconv_published=True)
    assert not net.conv1.published and net.layer1[0].conv1.published
    with pytest.raises(InputError, match="both have an option 'published': give csc_published or deconv_published"):
        network("csc+deconv", published=True)
    with pytest.raises(InputError, match="unexpected keyword argument 'keep'"):
        network("csc+deconv", keep=0.5)
    with pytest.raises(InputError, match="lam=-1"):
        network("csc+deconv", lam=-1)


def test_a_conversion_renames_options_that_two_rules_come_to_share():
    first = network("csc", published=True)
    second = pellucid.convert(first, "deconv", published=True, block=4)
    description = facts(second).description
    assert description["layers"] == "csc+deconv"
    assert description["options"] == {"csc_published": True, "deconv_published": True, "block": 4}
    third = pellucid.convert(second, "subnet", keep=0.5)
    assert facts(third).description["options"] == {**description["options"], "keep": 0.5}
    assert extended("plain", {}, "csc", {"published": True}) == ("csc", {"published": True})


def test_flags_of_two_rules_on_the_command_line(tmp_path, capsys):
    words = [
        "train",
        "--data",
        "digits",
        "--model",
        "resnet8",
        "--epochs",
        "1",
        "--limit-batches",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    words += ["--layers", "csc+deconv", "--json"]
    flags = ["--lam", "0.2", "--block", "8", "--deconv-momentum", "0.2", "--csc-published", "--momentum", "0.8"]
    assert main([*words, *flags]) == 0
    net = pellucid.load(tmp_path / "run")
    options = {"lam": 0.2, "block": 8, "momentum": 0.2, "csc_published": True}
    assert facts(net).description["options"] == options
    capsys.readouterr()
    for more, said in (
        (["--published"], "did you mean --csc-published"),
        (["--options.published", "true"], "did you mean 'csc_published'"),
        (["--keep", "0.5"], "--layers subnet"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--layers", "csc+deconv", "--help"])
    said = capsys.readouterr().out
    assert "--deconv-published" in said and "--csc-published" in said and "--lam" in said and "--block" in said


# --- layers ---


def test_a_combination_is_one_rule_after_the_other():
    net, other = network("csc+deconv", lam=0.2, block=8), network()
    first = swap(other, csc(lam=0.2))
    second = swap(other, deconv(block=8))
    assert type(net.conv1) is CSC2d and type(net.layer1[0].conv1) is FastDeconv2d
    assert isinstance(net.bn1, nn.BatchNorm2d) and isinstance(net.layer1[0].bn1, nn.Identity)  # codes stay normalised
    assert all(torch.equal(other.state_dict()[key], value) for key, value in net.state_dict().items())
    assert len(first) == 3 and len(second) == 13
    both = swap(network(), RULES["csc+deconv"](lam=0.2, block=8))
    assert {change.names for change in both} == {change.names for change in [*first, *second]}
    assert next(change for change in both if change.names == ("conv1",)).old.startswith("Conv2d")
    assert "conv1" in second.left and "conv1" not in both.left


def test_a_whitened_first_layer_becomes_a_code_with_its_weights():
    net = network("deconv", block=8)
    for _ in range(2):
        step(net)
    new = pellucid.convert(net, "csc")
    assert type(new.conv1) is CSC2d and torch.equal(new.conv1.weight, net.conv1.weight)
    rest = {key: value for key, value in net.state_dict().items() if not key.startswith("conv1.")}
    assert all(torch.equal(new.state_dict()[key], value) for key, value in rest.items())
    assert new(some_images()).isfinite().all()


def test_the_rest_of_a_sparse_network_is_whitened_with_its_function_kept():
    net = network("csc", lam=0.02)
    for _ in range(2):
        step(net)
    new = pellucid.convert(net, "deconv", images=some_images(32), block=8)
    assert facts(new).description["layers"] == "csc+deconv" and type(new.conv1) is CSC2d
    torch.testing.assert_close(new.eval()(some_images()), net.eval()(some_images()), rtol=1e-4, atol=1e-4)
    assert next(iter(pellucid.statistics(new))) == "bn1"
    with pytest.raises(InputError, match="cannot be fitted"):
        pellucid.convert(net, "subnet", images=some_images())
    with pytest.raises(InputError, match=r"weights of 'features.0' are masked"):
        pellucid.convert(build("conv2", 5, 1, 8, layers="subnet"), "deconv", images=some_images(32))


@pytest.mark.parametrize(("to", "kind"), [("deconv", FastDeconv2d), ("csc", CSC2d), ("csc-all", CSC2d)])
@pytest.mark.parametrize("options", [{}, {"redraw": 2, "keep": 0.5}, {"ranking": "global"}, {"init": "given"}])
def test_masks_go_to_the_layers_that_replace_theirs(to, kind, options):
    net = network("subnet", seed=3, **options)
    step(net)
    before = {name: (mask.scores.clone(), mask.mask()) for name, _, mask in masks(net)}
    new = pellucid.convert(net, to)
    assert isinstance(new.conv1, kind)
    after = {name: mask for name, _, mask in masks(new)}
    assert after.keys() == before.keys()
    for name, mask in after.items():
        assert torch.equal(mask.scores, before[name][0]) and torch.equal(mask.mask(), before[name][1])
        weight = new.get_submodule(name).parametrizations.weight.original
        assert torch.equal(weight, net.get_submodule(name).parametrizations.weight.original)
        assert mask.ranking is None or mask in mask.ranking.members
    assert new.conv1.weight.count_nonzero() == before["conv1"][1].sum() < new.conv1.weight.numel()
    trained = {name for name, parameter in new.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in new.named_parameters() if name.endswith("scores")}
    mask = after["conv1"]
    steps = None if mask.steps is None else int(mask.steps)
    step(new)
    assert steps is None or int(mask.steps) == steps + 1  # its hook has moved too, once
    folded = pellucid.fold(new.eval(), some_images())
    torch.testing.assert_close(folded(some_images()), new(some_images()), rtol=1e-4, atol=1e-4)


def test_masks_on_whitened_and_sparse_weights():
    net = network("csc+deconv+subnet", keep=0.3)
    assert isinstance(net.conv1, CSC2d) and isinstance(net.fc, FastDeconvLinear)
    assert len(list(masks(net))) == 8 and net.layer1[0].conv1.bias is None
    measured = net.conv1.norm.clone()
    assert net.conv1.measure() == pytest.approx(measured.item(), rel=0.05)  # of the masked dictionary
    for _ in range(2):
        step(net)
    declared = pellucid.statistics(net)
    assert declared["layer1.0.conv1"].cov.isfinite().all()
    folded = pellucid.fold(net.eval())
    assert isinstance(folded.conv1, CSC2d) and type(folded.fc) is nn.Linear and not list(masks(folded))
    # Masks first, then whitening: a whitened weight W D has no zeros where its W has.
    kept = net.layer1[0].conv1.weight.count_nonzero() / net.layer1[0].conv1.weight.numel()
    assert kept.item() == pytest.approx(0.3, abs=0.01) and (folded.layer1[0].conv1.weight != 0).float().mean() > 0.9
    assert folded.conv1.weight.count_nonzero() == net.conv1.weight.count_nonzero()


def test_an_atom_without_weights_has_a_finite_gradient():
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Flatten(), nn.LazyLinear(5))
    net(some_images())
    swap(net, csc())
    swap(net, subnet(keep=0.1, seed=0))
    assert (net[0].atoms.flatten(1).norm(dim=1) == 0).any()
    net(some_images()).square().sum().backward()
    scores = net[0].parametrizations.weight[0].scores.grad
    assert scores.isfinite().all() and scores.abs().max() < 1e3


# --- what a network has already ---


@pytest.mark.parametrize(
    ("had", "to", "said"),
    [
        ("deconv", "deconv", "has layers 'deconv' already"),
        ("csc-all", "csc", "as a part of 'csc-all'"),
        ("deconv", "deconv+subnet", "convert it to 'subnet' alone"),
        ("csc+deconv", "csc-all", "has layers 'csc', which 'csc-all' includes"),
        ("csc", "plain", "pellucid.fold"),
    ],
)
def test_layers_that_a_network_has_are_named(had, to, said):
    with pytest.raises(InputError, match=said):
        pellucid.convert(network(had), to)


def test_a_module_of_ones_own_is_told_what_stays():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    new = pellucid.convert(net, "csc")
    assert facts(new).description is None
    with pytest.raises(InputError, match=r"would replace \('0': CSC2d is a sparse code already\)"):
        pellucid.convert(new, "csc")
    with pytest.raises(InputError, match=r"would replace \('0': CSC2d has its own arithmetic\)"):
        pellucid.convert(new, "deconv")
    masked = pellucid.convert(net, "subnet")
    with pytest.raises(InputError, match="is parametrized already"):
        pellucid.convert(masked, "subnet")
    whitened = pellucid.convert(net, "deconv")
    with pytest.raises(InputError, match="whitens its input already"):
        pellucid.convert(whitened, "deconv")


def test_the_second_convolution_of_a_sparse_network_is_not_its_first():
    net = network("csc")
    assert not swap(net, csc())
    assert sum(isinstance(module, CSC2d) for module in net.modules()) == 1


def test_every_convolution_after_the_first_becomes_a_code_too():
    net = network("csc", lam=0.2)
    new = pellucid.convert(net, "csc-all", lam=0.2)
    assert facts(new).description["layers"] == "csc-all" and facts(new).description["options"] == {"lam": 0.2}
    direct = network()
    swap(direct, csc_all(lam=0.2))
    assert [type(module) for module in new.modules()] == [type(module) for module in direct.modules()]
    with pytest.raises(InputError, match="with lam=0.2: convert it to 'csc-all' with the same, not 0.1"):
        pellucid.convert(net, "csc-all")


# --- files and training ---


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        ("csc+deconv", {"lam": 0.2, "block": 8}),
        ("deconv+subnet", {"keep": 0.4, "anneal": 4, "block": 8}),
        ("deconv+csc", {"csc_published": True}),
        ("subnet+deconv", {"init": "given", "redraw": 0}),
        pytest.param("csc-all+subnet", {"ranking": "global"}, marks=pytest.mark.slow),
        ("csc+deconv+decomposed", {"k": 3, "head": "channel"}),
    ],
)
def test_a_combination_is_saved_and_loaded_bit_for_bit(tmp_path, layers, options):
    net = network(layers, **options)
    for _ in range(2):
        step(net)
    pellucid.save(net, tmp_path / "net.safetensors")
    back = pellucid.load(tmp_path / "net.safetensors")
    assert facts(back).description == facts(net).description
    assert torch.equal(back(some_images()), net.eval()(some_images()))
    one, two = (
        [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        for model in (net, rebuild(facts(net).description))
    )
    assert one == two
    folded = pellucid.fold(back)
    pellucid.save(folded, tmp_path / "folded.safetensors")
    assert torch.equal(pellucid.load(tmp_path / "folded.safetensors")(some_images()), folded(some_images()))
    if list(masks(net)) and options.get("init") != "given":
        pellucid.pack(net, tmp_path / "packed.safetensors")
        packed = pellucid.load(tmp_path / "packed.safetensors")
        assert torch.equal(packed(some_images()), back(some_images()))
        assert (tmp_path / "packed.safetensors").stat().st_size < (tmp_path / "net.safetensors").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["csc+deconv", "deconv+subnet"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, monkeypatch, layers):
    settings = {"data": "digits", "model": "conv2", "layers": layers, "epochs": 2, "limit_batches": 2, "seed": 4}
    if "subnet" in layers:
        settings["options"] = {"anneal": 3, "redraw": 2}
    straight = loop.train(out=tmp_path / "straight", quiet=True, **settings)
    taken = []

    def broken(*arguments, **more):
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return update(*arguments, **more)

    update = loop.update  # the fifth call and those after it work again
    monkeypatch.setattr(loop, "update", broken)
    with pytest.raises(KeyboardInterrupt):
        loop.train(out=tmp_path / "broken", quiet=True, **settings)
    resumed = loop.train(out=tmp_path / "broken", quiet=True, **settings)
    one, two = (pellucid.load(trained.run.path / "last.ckpt").state_dict() for trained in (straight, resumed))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert resumed.result["test"] == straight.result["test"]


def test_a_decomposed_combination_is_described_and_decomposed_again(tmp_path):
    net = network("csc+deconv", block=8)
    step(net)
    x, labels = some_images(20), torch.arange(20) % 5
    first = pellucid.decompose(net, (x, labels), 4).apply(net)
    description = facts(first).description
    assert description["layers"] == "csc+deconv+decomposed"
    assert description["options"] == {"block": 8, "k": 4, "layer": "fc", "bias": True}
    again = pellucid.decompose(first, (x, labels), 2).apply(first)
    assert facts(again).description["options"]["k"] == 2
    for model in (first, again):
        pellucid.save(model, tmp_path / "net.safetensors", command="decompose")
        assert torch.equal(pellucid.load(tmp_path / "net.safetensors")(x), model(x))


def test_gates_of_a_whitened_last_layer_give_its_filters(tmp_path, capsys):
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    words = ["train", "--data", "digits", "--model", "resnet8", "--layers", "csc+deconv", "--objective", "class-gates"]
    words += ["--period", "1"]
    assert main([*words, "--epochs", "1", "--limit-batches", "2", "--out", run, "--quiet"]) == 0
    assert main(["decompose", run, "--rule", "gates", "--k", "3", "--out", out, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["layer"] == "fc" and all(len(row["filters"]) <= 3 for row in result["classes"])
    new = pellucid.load(f"{out}/decomposed.safetensors")
    assert facts(new).description["layers"] == "csc+deconv+decomposed"
    # The command's own number: the filters alone, on the test images.
    assert main(["evaluate", f"{out}/decomposed.safetensors", "--data", "digits", "--json"]) == 0
    top1 = json.loads(capsys.readouterr().out)["top1"]
    (own,) = [row["accuracy"] for row in result["accuracy"] if row["what"].startswith("gates, not fitted")]
    assert top1 == pytest.approx(own)


def test_conversions_of_combinations_on_the_command_line(tmp_path, capsys):
    plain, both, three = (str(tmp_path / f"{name}.safetensors") for name in ("plain", "both", "three"))
    pellucid.save(network("csc"), plain)
    assert main(["convert", plain, "--layers", "deconv", "--block", "8", "--out", both, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["layers"] == "deconv" and listed["parameters"]["after"] > 0
    assert main(["convert", both, "--layers", "subnet", "--keep", "0.5", "--out", three, "--quiet"]) == 0
    net = pellucid.load(three)
    assert facts(net).description["layers"] == "csc+deconv+subnet"
    assert sum(isinstance(module, Whitening) for module in net.modules()) == 7
    assert main(["pack", three, "--out", str(tmp_path / "packed"), "--plain", str(tmp_path / "baked"), "--quiet"]) == 0
    assert torch.equal(pellucid.load(tmp_path / "packed")(some_images()), net(some_images()))
    capsys.readouterr()
    assert main(["convert", both, "--layers", "csc", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == "pellucid: This network has layers 'csc' already.\n"
    assert not (tmp_path / "x").exists()
    out = tmp_path / "decomposed"
    assert main(["decompose", both, "--data", "digits", "--out", str(out), "--fit", "head", "--json"]) == 2  # 5 classes
    assert "classes" in capsys.readouterr().err
