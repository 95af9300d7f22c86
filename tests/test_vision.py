"""torchvision and timm behind their one door (extra `vision`)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import cli
from pellucid.core import vision
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.network import described, models
from pellucid.core.network.agreement import distance
from pellucid.core.network.checkpoint import load, save
from pellucid.core.source import open_network
from pellucid.whiten.base import Whitening

installed = importlib.util.find_spec("torchvision") is not None
needs_torchvision = pytest.mark.skipif(not installed, reason="torchvision is not installed")
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
pytestmark = pytest.mark.vision


@pytest.mark.skipif(installed, reason="torchvision is installed")
def test_a_missing_extra_is_named():
    vision.repair()
    with pytest.raises(InputError, match=r"pip install torch==.* \"pellucid\[vision\]\""):
        models.build("torchvision:resnet18")


@needs_torchvision
def test_repair_lets_lightning_and_torchmetrics_import():
    program = "from pellucid.core import vision; vision.repair(); vision.repair()\n"
    program += "import lightning_fabric, torchmetrics, torchvision; from torchvision.transforms import v2"
    subprocess.run([sys.executable, "-c", program], check=True)


@needs_torchvision
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "vgg11", "vgg11_bn", "densenet121", "wide_resnet50_2"])
def test_torchvision_weights_load_strictly_and_give_the_same_logits(name):
    theirs = vision.torchvision().models.get_model(name, weights=None).eval()
    for module in theirs.modules():  # statistics that are not the fresh ones
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = models.build(name, 1000, image_size=224).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


@needs_torchvision
def test_a_torchvision_checkpoint_is_named_with_its_file(tmp_path):
    theirs = vision.torchvision().models.mobilenet_v2(weights=None, num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    found = open_network(f"torchvision:mobilenet_v2={tmp_path / 'm.pth'}")
    assert not found.fresh and facts(found.model).description["num_classes"] == 7


@needs_torchvision
def test_a_torchvision_checkpoint_loads_by_name(tmp_path):
    theirs = vision.torchvision().models.resnet18(weights=None, num_classes=6).eval()
    torch.save(theirs.state_dict(), tmp_path / "r.pth")
    x = torch.randn(1, 3, 64, 64)
    for name in ("resnet18", "torchvision:resnet18"):
        model = load(tmp_path / "r.pth", name)
        assert facts(model).description["num_classes"] == 6
        torch.testing.assert_close(model(x), theirs(x))


@needs_torchvision
@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 64), ("vit_b_16", 32), ("swin_t", 64), ("squeezenet1_0", 64), ("googlenet", 64), ("maxvit_t", 224)],
)
def test_torchvision_networks_take_channels_and_classes(name, size):
    with torch.device("meta"):
        model = models.build(f"torchvision:{name}", 7, 2, size)
        assert model(torch.empty(2, 2, size, size)).shape == (2, 7)
    found = described.describe(model.state_dict(), f"torchvision:{name}")
    assert (found["num_classes"], found["in_channels"]) == (7, 2)


@needs_timm
@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("vit_tiny_patch16_224", 32), ("convnext_atto", 64)])
def test_timm_networks_round_trip(name, size, tmp_path):
    model = models.build(f"timm:{name}", 7, 2, size).eval()
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    x = torch.randn(2, 2, size, size)
    assert torch.equal(again(x), model(x))
    assert facts(again).description == facts(model).description


@needs_timm
def test_unknown_names_list_the_nearest_and_nothing_is_downloaded():
    with pytest.raises(InputError, match="did you mean resnet"):
        models.build("timm:resnet81")
    with pytest.raises(InputError, match="no model 'hf-hub:someone/something'"):
        models.build("timm:hf-hub:someone/something")
    with pytest.raises(InputError, match="no model 'fasterrcnn_resnet50_fpn'"):
        models.build("torchvision:fasterrcnn_resnet50_fpn")


@needs_torchvision
def test_a_size_that_does_not_fit_is_named():
    with pytest.raises(InputError, match=r"vit_b_16 for images of 33x33"):
        models.build("torchvision:vit_b_16", image_size=33)
    with pytest.raises(InputError, match="square"):
        models.build("torchvision:vit_b_16", image_size=(32, 64))


# --- whitening networks from the zoos ---

NORMS = nn.modules.batchnorm._BatchNorm


def seen(model: nn.Module, size: int = 64, channels: int = 3) -> nn.Module:
    """With running statistics that are not the fresh ones, in evaluation mode."""
    with torch.no_grad():
        for _ in range(2):
            model.train()(2 * torch.randn(6, channels, size, size) + 1)
    return model.eval()


@needs_timm
@pytest.mark.parametrize(
    "name",
    [
        "timm:resnet18",
        "timm:efficientnet_b0",
        "timm:mobilenetv2_100",
        "timm:regnetx_002",
        "timm:convnext_atto",
        "timm:resnetv2_50",
        "torchvision:densenet121",
        "torchvision:mobilenet_v3_small",
    ],
)
def test_networks_of_the_zoos_are_converted_trained_folded_and_stored(name, tmp_path):
    torch.manual_seed(0)
    model = seen(models.build(name, 5, 3, 64))
    new = pellucid.convert(model, "deconv", block=16)
    assert not facts(new).changes.left
    assert not any(isinstance(module, NORMS) for module in new.modules())
    assert all(isinstance(m, Whitening) for m in new.modules() if isinstance(m, nn.modules.conv._ConvNd))
    layer_norms = [key for key, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    assert layer_norms == [key for key, module in new.named_modules() if isinstance(module, nn.LayerNorm)]
    x = torch.randn(6, 3, 64, 64)
    new.train()
    loss = F.cross_entropy(new(x), torch.arange(6) % 5)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in new.parameters())
    folded = pellucid.fold(new)
    assert not any(isinstance(module, Whitening | NORMS) for module in folded.modules())
    save(folded, tmp_path / "f")
    assert torch.equal(load(tmp_path / "f")(x), folded(x))
    save(new, tmp_path / "n")
    assert torch.equal(load(tmp_path / "n")(x), new.eval()(x))


@needs_timm
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:resnet18", 64),
        ("timm:efficientnet_b0", 64),
        ("timm:convnext_atto", 64),
        ("torchvision:googlenet", 64),
        # Norms before the convolution, beside it or after a sum, and networks that cannot be traced:
        ("timm:densenet121", 32),
        ("timm:resnetv2_50", 64),
        ("timm:dpn48b", 64),
        ("timm:repvgg_a0", 32),
        ("timm:mobileone_s0", 32),
        ("timm:fastvit_t8", 64),
        ("timm:repvit_m0_9", 64),
        ("timm:repghostnet_050", 32),
        ("timm:mixnet_s", 32),
        ("timm:starnet_s1", 32),
        ("timm:shvit_s1", 128),
        ("timm:efficientvit_b0", 32),
        ("timm:efficientvit_m0", 64),
        ("timm:inception_next_atto", 32),
        pytest.param("timm:vgg11_bn", 32, marks=pytest.mark.slow),
    ],
)
def test_with_images_networks_of_the_zoos_keep_their_function(name, size):
    torch.manual_seed(0)
    model = seen(models.build(name, 5, 3, size), size)
    x = torch.randn(6, 3, size, size)
    new = pellucid.convert(model, "deconv", images=x, block=16)
    other = torch.randn(4, 3, size, size)
    assert distance([model(other)], [new(other)]) < 1e-4
    assert distance([model(other)], [pellucid.fold(model)(other)]) < 1e-5


@needs_timm
@pytest.mark.parametrize("name", ["levit_128s", "efficientformerv2_s0", "repvit_m0_9", "swiftformer_xs", "resnetv2_18"])
def test_every_head_of_the_zoos_is_whitened(name):
    model = models.build(f"timm:{name}", 5, 3, 64)
    given = model.get_classifier()
    given = [given] if isinstance(given, nn.Module) else given  # several heads, or one, perhaps a 1x1 convolution
    inside = {id(module) for part in given for module in part.modules()}
    kinds = nn.Linear | nn.Conv2d
    heads = [key for key, module in model.named_modules() if id(module) in inside and isinstance(module, kinds)]
    new = pellucid.convert(model, "deconv")
    assert heads and all(isinstance(new.get_submodule(key), Whitening) for key in heads)


@needs_timm
def test_a_network_that_keeps_some_norms_is_stored_with_them(tmp_path):
    torch.manual_seed(0)
    model = seen(models.build("timm:repghostnet_050", 5, 3, 32), 32)
    new = pellucid.convert(model, "deconv", images=torch.randn(6, 3, 32, 32), block=16)
    norms = {key for key, module in new.named_modules() if isinstance(module, NORMS)}
    assert norms and norms == set(facts(new).description["options"]["kept_norms"])
    save(new, tmp_path / "n")
    other = torch.randn(4, 3, 32, 32)
    assert torch.equal(load(tmp_path / "n")(other), new(other))


@needs_timm
def test_arithmetic_of_its_own_stays_with_its_norm():
    """TensorFlow's way of padding: such a convolution and the batch norm after it are left, and listed."""
    model = seen(models.build("timm:tf_efficientnet_b0", 5, 3, 64))
    new = pellucid.convert(model, "deconv", block=16)
    own = {key for key, module in model.named_modules() if type(module).__name__ == "Conv2dSame"}
    assert own and own <= set(facts(new).changes.left)
    norms = {key for key, module in new.named_modules() if isinstance(module, NORMS)}
    assert norms == set(facts(new).changes.left) - own
    assert len(norms) == len(own)
    pellucid.fold(new)


@needs_timm
def test_activation_inside_a_norm_is_kept_and_no_longer_in_place():
    model = models.build("timm:regnetx_002", 5, 3, 64)
    assert model.stem.bn.act.inplace
    new = pellucid.convert(model, "deconv", block=16)
    assert isinstance(new.stem.bn.act, nn.ReLU)
    assert not any(getattr(module, "inplace", False) for module in new.modules())


@needs_timm
@pytest.mark.parametrize("name", ["timm:resnet18", "timm:mobilenetv2_100", "timm:regnetx_002"])
def test_convert_and_fold_from_the_command_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["convert", name, "--layers", "deconv", "--block", "16", "--num-classes", "10", "--in-channels", "1"]
    assert cli.main([*words, "--image-size", "32", "--out", "a.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "FastDeconv2d" in out and "Next: pellucid fold a.safetensors --out a-folded.safetensors" in out
    assert cli.main(["fold", "a.safetensors", "--out", "a-folded.safetensors"]) == 0
    assert "Outputs on 4 random images" in capsys.readouterr().out
    assert cli.main(["evaluate", "a-folded.safetensors", "--data", "digits"]) == 0
    description = facts(load("a-folded.safetensors")).description
    assert (description["model"], description["folded"]) == (name, True)


@needs_torchvision
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_segmentation_heads_are_converted_and_trained(name):
    """A step on generated masks: squares, of a class each, on noise."""
    torch.manual_seed(0)
    build = getattr(vision.torchvision().models.segmentation, name)
    plain = build(weights=None, weights_backbone=None, num_classes=4, aux_loss=True)
    model = pellucid.convert(plain, "deconv", block=8).train()
    assert not any(isinstance(module, NORMS) for module in model.modules())
    assert not facts(model).changes.left
    masks = torch.zeros(4, 65, 65, dtype=torch.long)
    for index, mask in enumerate(masks):
        mask[8 * index : 8 * index + 24, 10:50] = 1 + index % 3
    images = torch.randn(4, 3, 65, 65) + masks[:, None]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    losses = []
    for _ in range(2):
        answer = model(images)
        loss = F.cross_entropy(answer["out"], masks) + 0.5 * F.cross_entropy(answer["aux"], masks)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    folded = pellucid.fold(model, images)
    assert not any(isinstance(module, Whitening) for module in folded.modules())


@needs_torchvision
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "tinynet_e", "cs3darknet_s", "efficientnet_b0"])
def test_sparse_networks_of_timm_are_the_same_after_loading(name, tmp_path):
    torch.manual_seed(0)
    trained, x = pellucid.build(f"timm:{name}", 10, 3, 64), torch.randn(4, 3, 64, 64)
    trained.train()(x)
    net = pellucid.convert(trained, to="csc").eval()
    expected = net(x)
    pellucid.save(net, tmp_path / "n.safetensors")
    assert torch.equal(pellucid.load(tmp_path / "n.safetensors")(x), expected)


@needs_torchvision
@pytest.mark.parametrize("name", ["mnasnet0_5", "regnet_x_400mf"])
def test_networks_whose_constructors_compute_and_whose_layers_have_versions_are_loaded(name, tmp_path):
    torch.manual_seed(0)
    net, x = pellucid.build(f"torchvision:{name}", 10, 3, 64).eval(), torch.randn(2, 3, 64, 64)
    expected = net(x)
    pellucid.save(net, tmp_path / "ours.safetensors")
    torch.save({"model": net.state_dict()}, tmp_path / "theirs.pth")
    assert torch.equal(pellucid.load(tmp_path / "ours.safetensors")(x), expected)
    assert torch.equal(pellucid.load(tmp_path / "theirs.pth", f"torchvision:{name}")(x), expected)
