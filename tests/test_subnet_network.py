"""Subnetworks as networks: the rule, folding, files of a seed and bits, runs, commands, and the card."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import pellucid
import reference_subnet as twin
from pellucid import cli
from pellucid.audit.audit import make_audit
from pellucid.audit.cards.subnet import subnet as card
from pellucid.commandline.bind import call
from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.files.tensors import read_tensors, save_tensors
from pellucid.core.network import models
from pellucid.core.train.loop import train
from pellucid.core.train.settings import TrainSettings
from pellucid.edgepopup.layers import masks
from pellucid.edgepopup.rule import subnet as rule
from pellucid.edgepopup.subnet import subnet
from processes import run, start

RECIPES = Path(pellucid.__file__).parent / "recipes"
NETWORKS = [f"cifar10-{net}-subnet" for net in ("conv2", "conv4", "conv6", "conv8", "resnet18")]
NETWORKS += ["imagenet-resnet50-subnet", "imagenet-wide_resnet50-subnet"]


def trained(model: nn.Module, steps: int = 3, size: int = 8, channels: int = 1) -> nn.Module:
    """After real steps on random images, in evaluation mode."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for seed in range(steps):
        x = torch.randn(8, channels, size, size, generator=torch.Generator().manual_seed(seed))
        model.train()(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


class Depthwise(nn.Sequential):
    """A depthwise and a transposed convolution, batch norm with scale and shift, and a bias, no description."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6),
            nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip


# --- the rule ---


@pytest.mark.parametrize("name", ["conv2", "resnet20", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_the_rule_is_the_function(name):
    torch.manual_seed(0)
    built = models.build(name, 5, 1, 8, layers="subnet", keep=0.25, ranking="global", seed=3)
    torch.manual_seed(0)
    masked = subnet(models.build(name, 5, 1, 8), 0.25, ranking="global", seed=3)
    assert facts(built).description["options"] == {"keep": 0.25, "ranking": "global", "seed": 3}
    a, b = built.state_dict(), masked.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert all("scores" in key for key, p in built.named_parameters() if p.requires_grad)
    kept = sum(int(mask.mask().sum()) for _, _, mask in masks(built))
    assert kept == twin.kept("0.25", sum(mask.scores.numel() for _, _, mask in masks(built)))
    again = models.rebuild(facts(built).description)
    again.load_state_dict(trained(built).state_dict())
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again.eval()(x), built(x))


def test_the_run_seed_decides_the_weights():
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(models.build("conv2", 5, 1, 8, layers="subnet").features[0].weight)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_layers_that_cannot_be_masked_are_listed():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)
            self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.token = nn.Parameter(torch.zeros(4))
            self.head = nn.Linear(4, 2)

    new = pellucid.convert(Net(), "subnet", keep=0.5)
    assert facts(new).changes.left == {
        "attention.out_proj": "NonDynamicallyQuantizableLinear has its weight read by other code",
        "norm": "ParametrizedLinear is parametrized already",
    }
    assert [name for name, p in new.named_parameters() if p.requires_grad] == ["head.parametrizations.weight.0.scores"]


# --- plain networks ---


@pytest.mark.parametrize("options", [{}, {"ranking": "global", "anneal": 2, "redraw": 2}, {"init": "given"}])
def test_folded_is_equal(options):
    torch.manual_seed(0)
    for model in (models.build("conv2", 5, 1, 8), models.build("resnet20", 5, 1, 8), Depthwise()):
        trained(subnet(model, 0.4, **options))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        x = torch.randn(5, 1, 8, 8)
        folded = pellucid.fold(model, x)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-6)
        assert not list(masks(folded))
        assert not any(key.partition("parametrizations")[1] for key in folded.state_dict())
        for name, _, mask in masks(model):
            plain = folded.get_submodule(name)
            assert type(plain) in (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)
            assert torch.equal(plain.weight != 0, mask.mask()) or plain.bias is not None
            assert plain.weight.requires_grad and not plain._forward_pre_hooks
        if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            assert torch.equal(folded(x), model(x)) and facts(folded).difference == 0
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        folded(x).sum().backward()


def test_other_parametrizations_fold_too():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 3, 3))
    model = nn.Sequential(layer, nn.BatchNorm2d(3), nn.ReLU())
    trained(model)
    x = torch.randn(2, 1, 6, 6)
    folded = pellucid.fold(model, x)
    assert type(folded[0]) is nn.Conv2d and isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-6)


def test_baking_takes_statistics_from_images():
    torch.manual_seed(0)
    model = trained(models.build("resnet20", 5, 1, 8, layers="subnet", anneal=9), steps=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [2 + 3 * torch.randn(40, 1, 8, 8), 2 + 3 * torch.randn(40, 1, 8, 8)]
    torch.testing.assert_close(pellucid.bake(model)(batches[0]), model(batches[0]), rtol=1e-4, atol=1e-5)
    baked = pellucid.bake(model, batches)
    first = model.conv1(torch.cat(batches)).detach()  # what the first batch norm sees
    scale = (first.var((0, 2, 3), correction=0) + model.bn1.eps).rsqrt()
    torch.testing.assert_close(baked.conv1.weight, model.conv1.weight.detach() * scale[:, None, None, None])
    torch.testing.assert_close(baked.conv1.bias, -first.mean((0, 2, 3)) * scale, rtol=1e-4, atol=1e-5)
    assert (baked.conv1.weight - pellucid.fold(model, batches[0]).conv1.weight).abs().max() > 0.1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(InputError, match="without images"):
        pellucid.bake(model, [])
    with pytest.raises(InputError, match="no subnetwork"):
        pellucid.bake(models.build("conv2", 5, 1, 8))


# --- files ---


@pytest.mark.parametrize(
    "options",
    [
        {"init": "kaiming_normal", "redraw": 1, "redraw_share": 0.5},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {},
                {"init": "xavier_uniform", "ranking": "global", "anneal": 5, "scale_fan": True},
                {"init": "kaiming_uniform", "binary": True, "affine": True},
            )
        ),
    ],
)
def test_a_subnetwork_is_a_seed_and_a_bit_a_weight(options, tmp_path):
    torch.manual_seed(2)
    model = trained(models.build("resnet20", 5, 1, 8, layers="subnet", **options), steps=4)
    declare(model, classes=tuple("abcde"))
    file, whole = tmp_path / "sub.safetensors", tmp_path / "whole.safetensors"
    pellucid.pack(model, file, note="kept")
    pellucid.save(model, whole)
    loaded, x = pellucid.load(file), torch.randn(6, 1, 8, 8)
    assert torch.equal(loaded(x), model(x)) and facts(loaded).classes == facts(model).classes
    assert torch.equal(pellucid.load(whole)(x), model(x))
    for (_, a, p), (_, b, q) in zip(masks(model), masks(loaded), strict=True):
        assert torch.equal(a.weight, b.weight) and torch.equal(p.mask(), q.mask()) and p.seed == q.seed
    other = sum(t.nbytes for name, t in model.state_dict().items() if "parametrizations" not in name)
    weights = sum(mask.scores.numel() for _, _, mask in masks(model))
    rounds = 3 * twin.kept("0.3", weights) / 8 if "redraw" in options else 0
    # 1 bit a weight, 3 a kept weight for rounds 0 to 4, and names and hashes of 20 layers.
    assert weights / 8 < file.stat().st_size < weights / 8 + rounds + other + 20 * 700 + 4000
    assert whole.stat().st_size > 8 * weights
    pellucid.pack(loaded, tmp_path / "again", note="kept")
    again = pellucid.load(tmp_path / "again")
    assert torch.equal(again(x), model(x))


def test_a_network_without_description_is_loaded_into_its_like(tmp_path):
    torch.manual_seed(0)
    model = trained(subnet(Depthwise(), 0.3, redraw=2))
    pellucid.pack(model, tmp_path / "f")
    x = torch.randn(3, 1, 8, 8)
    loaded = pellucid.load(tmp_path / "f", subnet(Depthwise(), 0.3, redraw=2))
    assert torch.equal(loaded(x), model(x))
    layer = trained(subnet(nn.Conv2d(1, 2, 3), 0.3))
    pellucid.pack(layer, tmp_path / "g")
    assert torch.equal(pellucid.load(tmp_path / "g", subnet(nn.Conv2d(1, 2, 3), 0.3))(x), layer(x))


def test_halves_keep_their_mask_in_the_file(tmp_path):
    model = trained(models.build("conv2", 5, 1, 8, layers="subnet", init="kaiming_normal"))
    chosen = [mask.mask() for _, _, mask in masks(model)]
    model.to(torch.bfloat16)
    assert all(torch.equal(mask.mask(), old) for (_, _, mask), old in zip(masks(model), chosen, strict=True))
    pellucid.pack(model, tmp_path / "f")
    for (_, a, _), (_, b, _) in zip(masks(model), masks(pellucid.load(tmp_path / "f")), strict=True):
        assert torch.equal(a.weight.float(), b.weight.float())


def test_what_cannot_be_drawn_again_is_a_sentence(tmp_path):
    model = models.build("conv2", 5, 1, 8, layers="subnet")
    with torch.no_grad():
        model.features[0].parametrizations.weight.original.mul_(2)
    for wrong, said in (
        (model, "layer 'features.0' are not the ones that its seed gives"),
        (subnet(nn.Linear(3, 3), init="given"), "cannot be drawn again"),
        (nn.Linear(3, 3), "holds no subnetwork"),
    ):
        with pytest.raises(InputError, match=said):
            pellucid.pack(wrong, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_damaged_and_hostile_files_are_sentences(tmp_path):
    torch.manual_seed(0)
    model = trained(models.build("conv2", 5, 1, 8, layers="subnet", redraw=1))
    file = tmp_path / "f.safetensors"
    pellucid.pack(model, file)
    tensors, info = read_tensors(file)
    first = next(iter(info["masks"]))

    def change(**values):
        return {**info, "masks": {**info["masks"], first: {**info["masks"][first], **values}}}

    flipped = {**tensors, f"{first}.mask": tensors[f"{first}.mask"] ^ 1}
    cases = [
        (tensors, change(seed=1), "differ from the ones that were saved"),
        (tensors, change(std=1.0), "differ from the ones that were saved"),
        (flipped, info, "damaged|differ from the ones that were saved"),
        (tensors, change(shape=[2**30, 2**30]), "damaged"),
        (tensors, change(shape=[-4, -1, 12, 12]), "damaged"),
        (tensors, change(shape="x"), "damaged"),
        (tensors, change(bits=10**9), "damaged"),
        (tensors, change(bits=1), "damaged"),
        (tensors, change(dtype="load"), "damaged"),
        (tensors, change(init="given"), "choose one of"),
        (tensors, change(seed=2**80), "damaged"),
        (tensors, {**info, "masks": 3}, "damaged"),
        (tensors, {**info, "masks": {}}, "does not fit|missing"),
        (tensors, {**info, "encoding": "magic"}, "stored in a way that"),
        (tensors, {**info, "encoding": ["subnet"]}, "stored in a way that"),
        ({k: v for k, v in tensors.items() if k != f"{first}.mask"}, info, "damaged"),
        ({**tensors, f"{first}.mask": tensors[f"{first}.mask"].float()}, info, "damaged"),
    ]
    for number, (changed, table, said) in enumerate(cases):
        table = {key: value for key, value in table.items() if key != "format"}
        save_tensors(changed, tmp_path / "bad", **table)
        with pytest.raises(InputError, match=said) as caught:
            pellucid.load(tmp_path / "bad")
        assert "bad'" in str(caught.value), number
    content = file.read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="truncated"):
        pellucid.load(tmp_path / "cut")


# --- runs and commands ---


@pytest.mark.slow
def test_a_run_goes_round(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--model", "conv2", "--layers", "subnet", "--keep", "0.2", "--subnet-init", "kaiming_normal"]
    words += ["--anneal", "10", "--redraw", "4", "--epochs", "2", "--batch-size", "100", "--lr", "0.05"]
    assert cli.main([*words, "--out", "run"]) == 0
    assert yaml.safe_load(Path("run/settings.yaml").read_text())["options"] == {
        "keep": 0.2, "init": "kaiming_normal", "anneal": 10, "redraw": 4,
    }  # fmt: skip
    for _, _, mask in masks(pellucid.load("run")):
        assert int(mask.mask().sum()) == twin.kept("0.2", mask.scores.numel())
    capsys.readouterr()
    assert cli.main(["pack", "run", "--out", "s", "--plain", "p"]) == 0
    assert "Next: pellucid evaluate s --data digits" in capsys.readouterr().out
    said = []
    for words in (["run"], ["s", "--data", "digits"], ["p", "--data", "digits"]):
        assert cli.main(["evaluate", *words, "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out)["confusion"])
    assert said[0] == said[1] == said[2]


def test_the_command_writes_and_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = models.build("conv2", 10, 1, 8, layers="subnet", keep=0.2)
    pellucid.save(model, "whole")
    assert cli.main(["pack", "whole", "--out", "s", "--plain", "p"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"Wrote s: {os.path.getsize('s')} bytes, instead of" in out and "20.00 %" in out
    assert "Wrote p: an ordinary network." in out and "Next: pellucid evaluate s --data DATA" in out
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(pellucid.load("s")(x), model.eval()(x)) and torch.equal(pellucid.load("p")(x), model(x))
    for words, wrong in (
        (["whole", "--out", "x", "--max-images", "-1"], "--max-images -1"),
        (["whole", "--out", "x", "--max-images", "5"], "--plain"),
        (["whole", "--out", "x", "--plain", "y", "--data", "digits"], "give --max-images"),
        (["whole", "--out", "x", "--plain", "y", "--max-images", "5"], "name data with --data"),
        (["whole", "--out", "x", "--plain", "y", "--max-images", "5", "--data", "digits"], "no batch norm"),
        (["whole", "--out", "x", "--batch-size", "0"], "--batch-size 0"),
        (["whole", "--out", "x", "--device", "nowhere"], "no device 'nowhere'"),
        (["p", "--out", "x"], "no subnetwork"),
        (["nowhere", "--out", "x"], "nowhere"),
    ):
        assert cli.main(["pack", *words]) == 2, words
        err = capsys.readouterr().err
        assert wrong in err and len(err.strip().splitlines()) == 1
        assert not Path("x").exists() and not Path("y").exists()
    assert cli.main(["train", "--layers", "subnet", "--keep", "1.5", "--out", "z"]) == 2
    assert "keep=1.5 is out of range" in capsys.readouterr().err


def packed_run(tmp_path, monkeypatch, capsys) -> None:
    """A masked resnet20 with batch norm, trained for a moment on the digits, in the file `whole`."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = trained(models.build("resnet20", 10, 1, 8, layers="subnet", keep=0.25))
    pellucid.save(model, "whole")
    capsys.readouterr()


PACK = ["pack", "whole", "--out", "s", "--plain", "p", "--data", "digits", "--device", "cpu"]


def test_json_is_one_object_with_all_that_the_table_shows(tmp_path, monkeypatch, capsys):
    packed_run(tmp_path, monkeypatch, capsys)
    assert cli.main([*PACK, "--max-images", "40"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert cli.main([*PACK, "--max-images", "40", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert printed.err == "" and len(printed.out.strip().splitlines()) == 1
    assert [row["layer"] for row in found["layers"]] == [name for name, _, _ in masks(pellucid.load("s"))]
    for row in found["layers"]:
        assert row["kept"] == twin.kept("0.25", row["weights"]) and row["fraction"] == row["kept"] / row["weights"]
    assert found["kept"] == sum(row["kept"] for row in found["layers"])
    assert found["weights"] == sum(row["weights"] for row in found["layers"])
    assert found["fraction"] == found["kept"] / found["weights"]
    assert found["bytes"] == os.path.getsize("s") and f"{found['bytes']} bytes" in shown
    assert found["bytes_unpacked"] > 8 * found["weights"] and f"instead of {found['bytes_unpacked']}" in shown
    assert (found["images"], found["data"], found["out"], found["plain"]) == (40, "digits", "s", "p")
    assert "batch-norm statistics of 40 training images of digits" in shown


def test_quiet_prints_nothing_but_errors(tmp_path, monkeypatch, capsys):
    packed_run(tmp_path, monkeypatch, capsys)
    assert cli.main([*PACK, "--max-images", "40", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert Path("s").exists() and Path("p").exists()
    assert cli.main(["pack", "nowhere", "--out", "x", "--quiet"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "nowhere" in printed.err


@pytest.mark.slow
def test_seed_and_number_choose_the_images_and_the_batch_size_does_not_matter(tmp_path, monkeypatch, capsys):
    packed_run(tmp_path, monkeypatch, capsys)

    def biases(*more: str) -> torch.Tensor:
        assert cli.main([*PACK, *more, "--quiet"]) == 0
        return pellucid.load("p").conv1.bias.detach().clone()

    first = biases("--max-images", "40")
    assert torch.equal(biases("--max-images", "40", "--seed", "0"), first)
    torch.testing.assert_close(biases("--max-images", "40", "--batch-size", "16"), first)
    assert (biases("--max-images", "40", "--seed", "1") - first).abs().max() > 1e-4
    assert (biases("--max-images", "1000000") - first).abs().max() > 1e-4  # all there are


def test_random_state_determinism_and_training_modes_stay_as_they_were(tmp_path):
    def modes(model: nn.Module) -> list[bool]:
        return [module.training for module in model.modules()]

    model = models.build("resnet20", 5, 1, 8)
    model.train()
    model.layer2.eval()  # a part that a user has frozen
    images, before = [torch.randn(20, 1, 8, 8) for _ in range(2)], modes(model)
    random, deterministic = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()

    def check(what: str) -> None:
        assert torch.equal(torch.get_rng_state(), random), what
        assert torch.are_deterministic_algorithms_enabled() == deterministic, what

    for options in ({}, {"ranking": "global", "anneal": 3, "redraw": 2}):
        masked = subnet(copy.deepcopy(model), 0.4, seed=5, **options)
        check("subnet")
        for name, module in model.named_modules():
            assert masked.get_submodule(name).training == module.training, name
        before = modes(masked)
        assert len([mask.mask() for _, _, mask in masks(masked)]) == 20
        masked(images[0])
        pellucid.bake(masked)(images[0])
        pellucid.bake(masked, images)
        with pytest.raises(InputError, match="without images"):
            pellucid.bake(masked, [])
        pellucid.pack(masked, tmp_path / "f")
        check("masks, forward, bake and pack")
        assert modes(masked) == before
    before = modes(model)
    replacements = rule(seed=5)(copy.deepcopy(model))
    assert replacements["conv1"].training and not replacements["layer2.0.conv1"].training
    check("the rule")
    with pytest.raises(InputError, match="to mask"):
        subnet(nn.ReLU())
    check("an error")


TRAIN = ["train", "--model", "conv2", "--layers", "subnet", "--anneal", "20", "--redraw", "5", "--epochs", "3"]
TRAIN += ["--batch-size", "100", "--lr", "0.05", "--ranking", "global"]


def state(folder: Path) -> bytes:
    (file,) = (folder / "last.ckpt").glob("*.safetensors")
    return file.read_bytes() + (folder / "best.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_it_ends_in_the_same_bits(tmp_path):
    assert run(*TRAIN, "--out", "whole", cwd=tmp_path).returncode == 0
    process = start(*TRAIN, "--out", "run", "--checkpoint-seconds", "0", cwd=tmp_path)
    pointer = tmp_path / "run" / "last.ckpt" / "checkpoint.json"
    while not pointer.exists() or json.loads(pointer.read_text())["total_steps"] < 7:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = run(*TRAIN, "--out", "run", "--checkpoint-seconds", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert state(tmp_path / "run") == state(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    one = run(*TRAIN, "--out", "one", cwd=tmp_path)
    two = run(*TRAIN, "--out", "two", "--devices", "2", cwd=tmp_path)
    assert one.returncode == two.returncode == 0, two.stderr
    first, second = (pellucid.load(tmp_path / name) for name in ("one", "two"))
    for (_, _, p), (_, _, q) in zip(masks(first), masks(second), strict=True):
        assert p.seed == q.seed and torch.equal(p.steps, q.steps)
        torch.testing.assert_close(p.scores, q.scores, rtol=1e-3, atol=1e-4)
        # Sums in another order move a score by its last bits, and with it, rarely, a weight over the threshold.
        assert (p.mask() != q.mask()).float().mean() < 1e-3
        assert (p.rounds != q.rounds).float().mean() < 1e-3
    pellucid.pack(second, tmp_path / "two.safetensors")  # its weights are those that the seed draws


# --- recipes ---


@pytest.mark.parametrize("name", NETWORKS)
def test_every_recipe_parses_by_its_name_and_builds_its_network(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    data, net, _ = name.split("-")
    assert f"pellucid train --config {name}" in text
    assert "Expected" in text and "Source:" in text and "Not run here" in text
    seen = []

    def command(settings: TrainSettings) -> int:
        """Take settings."""
        seen.append(settings)
        return 0

    assert call(command, "pellucid train", ["--config", name]) == 0
    (settings,) = seen
    assert settings.layers == "subnet" and settings.model.startswith(net)
    assert settings.data.partition(":")[2 if data == "imagenet" else 0] == data
    with torch.device("meta"):
        model = models.build(
            settings.model, 10, 3, settings.image_size or 32, settings.layers, settings.form, **settings.options
        )
    assert all(mask.options.keep == settings.options.get("keep", 0.3) for _, _, mask in masks(model))


# --- the page ---


def test_the_card_tells_what_stays_and_where(tmp_path):
    torch.manual_seed(0)
    model = models.build("conv4", 10, 1, 8, layers="subnet")
    ((_, _, mask), *_) = masks(model)
    with torch.no_grad():  # all of the first layer's weights that stay are of its first filters
        mask.scores.copy_(torch.arange(576, 0, -1).view(64, 1, 3, 3))
    section = card(make_audit(model, load_data("digits")))
    rows = section.data["layers"]
    assert list(rows) == [name for name, _, _ in masks(model)]
    first, second = rows["features.0"], rows["features.2"]
    counts = mask.mask().sum((1, 2, 3)).double()  # 173 of 576, by filter
    p = 173 / 576
    expected = float(((counts - 9 * p) ** 2).mean()) / (9 * p * (1 - p) * (576 - 9) / 575)
    assert first["filters"]["spread"] == pytest.approx(expected, rel=1e-6) and expected > 6
    assert first["filters"]["empty"] == 44 and first["kept"] == 173 and first["share"] == pytest.approx(p)
    for where in ("filters", "inputs", "positions"):  # untrained scores are a random mask
        low, high = second[where]["random"]
        assert low < 1 < high
        assert 0.5 < second[where]["spread"] < 2
    assert "30.0" in section.summary
    assert card(make_audit(models.build("conv2", 10, 1, 8), load_data("digits"))) is None


@pytest.mark.slow
def test_the_card_is_on_the_page(tmp_path):
    settings = TrainSettings(model="resnet20", layers="subnet", epochs=1, limit_batches=4)
    train(settings, tmp_path / "run", quiet=True)
    said = run("pack", "run", "--out", "s", "--plain", "p", "--max-images", "300", cwd=tmp_path)
    assert "batch-norm statistics of 300 training images of digits" in said.stdout, said.stderr
    assert run("evaluate", "p", "--data", "digits", cwd=tmp_path).returncode == 0
    report = pellucid.open(tmp_path / "run", out=tmp_path / "page", gate="subnet.share < 31%")
    assert report.passed
    assert json.loads((tmp_path / "page" / "audit.json").read_text())["subnet"]["share"] == pytest.approx(0.3, abs=1e-3)
    assert "Where the kept weights are" in (tmp_path / "page" / "index.html").read_text()


@pytest.mark.slow
def test_resnet18_folds_and_is_stored(tmp_path):
    torch.manual_seed(0)
    model = trained(models.build("resnet18", 10, 3, 32, layers="subnet"), steps=1, size=32, channels=3)
    x = torch.randn(2, 3, 32, 32)
    assert facts(pellucid.fold(model, x)).difference < 1e-5
    pellucid.pack(model, tmp_path / "f")
    assert (tmp_path / "f").stat().st_size < 1.5e6
    assert torch.equal(pellucid.load(tmp_path / "f")(x), model(x))


@pytest.mark.vision
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_network_of_torchvision(tmp_path):
    torch.manual_seed(0)
    model = models.build("torchvision:resnet18", 10, 3, 64, layers="subnet", keep=0.3)
    trained(model, steps=1, size=64, channels=3)
    x = torch.randn(2, 3, 64, 64)
    for _, _, mask in masks(model):
        assert int(mask.mask().sum()) == twin.kept("0.3", mask.scores.numel())
    assert facts(pellucid.fold(model, x)).difference < 1e-5
    pellucid.pack(model, tmp_path / "f")
    assert torch.equal(pellucid.load(tmp_path / "f")(x), model(x))


def test_an_average_of_weights_keeps_count_of_the_steps(tmp_path):
    """Counts have no average: with one, annealing would be behind in the averaged network."""
    settings = pellucid.TrainSettings(
        model="conv2", layers="subnet", options={"keep": 0.3, "anneal": 4}, epochs=1, limit_batches=6, ema=0.9
    )
    model = pellucid.train(settings, tmp_path / "run", quiet=True).model
    counts = [buffer for name, buffer in model.named_buffers() if name.endswith("steps")]
    assert counts and all(int(count) == 6 for count in counts)
