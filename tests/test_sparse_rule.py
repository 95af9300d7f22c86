"""The rules csc and csc-all, recipes, and both on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import pellucid
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.network import models
from pellucid.sparse.layers import CSC, CSC1d, CSC2d
from pellucid.sparse.rectifiers import NoShortcut
from pellucid.sparse.rule import csc
from processes import run, sentence

RECIPES = Path(pellucid.__file__).parent / "recipes"


def layers(model: nn.Module, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet34", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["small", pytest.param("imagenet", marks=pytest.mark.slow)])
def test_sdnet_has_the_papers_layers(name, form):
    with torch.device("meta"):
        plain = models.build(name, 10, 3, 64, form=form)
        first = models.build(name, 10, 3, 64, "csc", form, lam=0.2)
        every = models.build(name, 10, 3, 64, "csc-all", form)
        bare = models.build(name, 10, 3, 64, "csc-all", form, shortcuts=False)
    convolutions = [n for n in layers(plain, nn.Conv2d) if plain.get_submodule(n).kernel_size != (1, 1)]
    assert layers(first, CSC) == ["conv1"]
    assert first.conv1.lam == 0.2 and first.conv1.kernel_size == plain.conv1.kernel_size
    assert layers(every, CSC) == layers(bare, CSC) == convolutions
    assert layers(first, nn.ReLU) == layers(plain, nn.ReLU)[1:]
    # Of a block's two only that of its sum is left, and nothing where there is no sum.
    assert layers(every, nn.ReLU) == [n for n in layers(plain, nn.ReLU) if n.endswith("relu2")]
    assert layers(bare, nn.ReLU) == []
    assert len(layers(bare, NoShortcut)) == len(convolutions) // 2
    for model in (first, every):
        assert layers(model, nn.BatchNorm2d) == layers(plain, nn.BatchNorm2d)
        assert type(model.maxpool) is (nn.MaxPool2d if form == "imagenet" else nn.Identity)
        shortcuts = [n for n in layers(model, nn.Conv2d) if n.endswith("downsample.0")]
        assert len(shortcuts) == 3 and not any(isinstance(model.get_submodule(n), CSC) for n in shortcuts)


def test_networks_without_shortcuts_do_without():
    torch.manual_seed(0)
    model = models.build("resnet20", 5, 1, 8, "csc-all", shortcuts=False).eval()
    x = torch.randn(2, 1, 8, 8)
    block = model.layer1[0]
    seen = model.bn1(model.conv1(x))
    torch.testing.assert_close(block(seen), block.bn2(block.conv2(block.bn1(block.conv1(seen)))))
    with pytest.raises(InputError, match="shortcuts=False"):
        models.build("vgg11", 5, 1, 8, "csc-all", shortcuts=False)


def test_weights_become_the_dictionary_of_any_network():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv1d(2, 6, 5, 2, padding=2), nn.ReLU(), nn.Conv1d(6, 6, 3, groups=2), nn.ReLU(),
        nn.Conv1d(6, 4, 3, padding="same"), nn.Conv1d(4, 4, 3, dilation=2), nn.BatchNorm1d(4), nn.ReLU(),
    )  # fmt: skip
    model = pellucid.convert(plain, "csc-all", n_steps=3)
    assert [type(model[i]) for i in (0, 2, 4, 5)] == [CSC1d, nn.Conv1d, nn.Conv1d, CSC1d]
    assert [type(model[i]) for i in (1, 3, 7)] == [nn.Identity, nn.ReLU, nn.Identity]
    assert set(facts(model).changes.left) == {"2", "4"}
    weight = plain[0].weight.detach()
    torch.testing.assert_close(model[0].atoms, weight / weight.flatten(1).norm(dim=1).reshape(-1, 1, 1))
    assert model[0].bias is None and model[0].n_steps == 3 and model[5].dilation == (2,)
    assert model(torch.randn(3, 2, 40)).shape == (3, 4, 14)
    copied = pellucid.convert(plain, "csc", n_dict=2)
    torch.testing.assert_close(copied[0].atoms[:, :2], copied[0].atoms[:, 2:])
    assert type(copied[5]) is nn.Conv1d
    with pytest.raises(InputError, match="without images"):
        pellucid.convert(plain, "csc", images=torch.randn(2, 2, 40))


def test_a_relu_that_does_more_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.last = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.act(self.last(self.act(self.conv(x))))

    model = pellucid.convert(Shared(), "csc")
    assert isinstance(model.conv, CSC2d) and isinstance(model.act, nn.ReLU)
    assert "more than codes" in facts(model).changes.left["act"]


@torch.no_grad()
def test_norms_start_near_the_truth():
    torch.manual_seed(0)
    smooth = nn.Sequential(nn.Conv2d(3, 32, 5, padding=2))
    nn.init.uniform_(smooth[0].weight)  # no random signs: the norm is far above that of random atoms
    for model in (models.build("resnet20", 10, 3, 32, "csc-all"), pellucid.convert(smooth, "csc")):
        for layer in (module for module in model.modules() if isinstance(module, CSC)):
            norm, _ = layer.dictionary().norm(torch.rand(1, layer.out_channels, 16, 16), 100)
            assert 0.4 < float(layer.norm / norm) < 1.4


def test_models_are_saved_with_their_rule(tmp_path):
    model = models.build("resnet20", 10, 1, 8, "csc-all", lam=0.05, shortcuts=False).eval()
    pellucid.save(model, tmp_path / "m.safetensors")
    loaded = pellucid.load(tmp_path / "m.safetensors")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(x), model(x))
    assert loaded.conv1.lam == 0.05 and isinstance(loaded.layer1[0].downsample, NoShortcut)
    assert pellucid.fold(model, x).conv1.lam == 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in RECIPES.glob("*sdnet*.yaml")))
def test_recipes_build_their_networks(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    assert f"pellucid train --config {name}" in text
    assert "Expected" in text and "Source: Dai et al." in text and "Not run here" in text
    values = yaml.safe_load(text)
    pellucid.TrainSettings(**values)
    with torch.device("meta"):
        size, options = values.get("image_size", 32), values["options"]
        model = models.build(values["model"], 10, 3, size, values["layers"], values["form"], **options)
    every = name.endswith(("-all", "-bare"))
    assert (len(layers(model, CSC)) == 17) == every
    assert bool(layers(model, NoShortcut)) == name.endswith("-bare")
    assert all(module.lam == 0.1 and module.n_steps == 2 for module in model.modules() if isinstance(module, CSC))


@pytest.mark.slow
def test_train_evaluate_visualize_from_the_command_line(tmp_path):
    words = ["train", "--data", "digits", "--model", "resnet18", "--layers", "csc", "--lam", "0.2", "--epochs", "1"]
    done = run(*words, "--limit-batches", "2", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())["options"] == {"lam": 0.2}
    assert run("evaluate", "run", "--json", cwd=tmp_path).returncode == 0
    done = run("visualize", "run", "--out", "seen", "--max-images", "20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Next: pellucid open run" in done.stdout
    names = {"overview.png", "visualize.json", "conv1-reconstruction.png", "conv1-atoms.png", "conv1-uses.png"}
    assert {file.name for file in (tmp_path / "seen").iterdir()} == names
    numbers = json.loads((tmp_path / "seen" / "visualize.json").read_text())["layers"]["conv1"]
    assert numbers["error"] < 0.5 < numbers["control"]
    words = ["resnet20", "--data", "digits", "--layer", "layer1", "--max-images", "4", "--out", "plain"]
    done = run("visualize", *words, cwd=tmp_path)  # without a dictionary, images are searched for
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "plain" / "visualize.json").read_text())["layers"]["layer1"]
    assert numbers["error"] < 0.5 < numbers["control"]
    for words, said in (
        (["run", "--out", "seen/overview.png"], "is a file"),
        (["run", "--out", "x", "--max-images", "1"], "--max-images 1"),
        (["run", "--out", "x", "--layer", "fc"], "conv1"),
        (["run", "nowhere", "--out", "x"], "nowhere"),
        (["run", "digits", "--data", "digits", "--out", "x"], "--data"),
    ):
        assert said in sentence(run("visualize", *words, cwd=tmp_path))
        assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_audio_example_recovers_what_was_put_in(tmp_path):
    import subprocess
    import sys

    script = Path(__file__).parents[1] / "examples" / "tones.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=True)
    scores = {line[:40].strip(): float(line[40:]) for line in done.stdout.splitlines() if line.startswith("  ")}
    assert scores["solved code"] > 0.75
    assert scores["solved code"] > scores["code after 20 steps"] > scores["code after 2 steps"]
    assert scores["code after 2 steps"] > scores["correlation with each atom (control)"]
    assert scores["sparse coding network"] > scores["always the commonest"] + 0.1


def test_batch_norm_begins_with_the_moments_of_codes():
    """So that a network in evaluation tells images apart from the first steps on, as it does in training."""
    torch.manual_seed(0)
    model = models.build("resnet20", 10, 3, 16, layers="csc-all")
    x = torch.randn(32, 3, 16, 16)
    with pellucid.tap(model, ["conv1", "layer1.0.conv2"]) as taps, torch.no_grad():
        model.eval()(x)
    for norm, code in ((model.bn1, taps["conv1"].output), (model.layer1[0].bn2, taps["layer1.0.conv2"].output)):
        assert 0.1 < float(norm.running_var.mean()) / float(code.var()) < 10  # from 1 it would be about 100
        assert 0.3 < float(norm.running_mean.mean()) / float(code.mean()) < 3 and norm.num_batches_tracked == 0
    trained = models.build("resnet20", 10, 3, 16)
    trained.train()(x)
    kept = trained.bn1.running_var.clone()
    converted = pellucid.convert(trained, "csc")
    assert torch.equal(converted.bn1.running_var, kept)  # what training has found is not thrown away


class NormAndActivation(nn.BatchNorm2d):
    """A batch norm with an activation of its own, as timm has them."""

    def __init__(self, num_features: int, act_layer: type[nn.Module] = nn.ReLU) -> None:
        super().__init__(num_features)
        self.act = act_layer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(super().forward(x))


def test_a_norm_keeps_its_own_activation_and_its_parameters():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), NormAndActivation(8, nn.SiLU), nn.Conv2d(8, 4, 3))
    weight = net[1].weight
    pellucid.swap(net, csc())
    assert isinstance(net[0], CSC) and isinstance(net[1].act, nn.SiLU) and net[1].weight is weight
    assert 0 < float(net[1].running_var[0]) < 0.5  # it begins with the moments of codes


def test_running_moments_are_kept_where_a_checkpoint_has_no_counter():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(1, 2)
    kept = net[1].running_mean.clone()
    pellucid.swap(net, csc())
    assert isinstance(net[0], CSC) and torch.equal(net[1].running_mean, kept)
