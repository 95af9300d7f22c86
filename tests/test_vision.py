"""torchvision and timm behind their one door (extra `vision`)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

from pellucid.core import checkpoint, models, vision
from pellucid.core.errors import InputError

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
def test_a_torchvision_checkpoint_loads_by_name(tmp_path):
    theirs = vision.torchvision().models.resnet18(weights=None, num_classes=6).eval()
    torch.save(theirs.state_dict(), tmp_path / "r.pth")
    x = torch.randn(1, 3, 64, 64)
    for name in ("resnet18", "torchvision:resnet18"):
        model = checkpoint.load(tmp_path / "r.pth", name)
        assert model.description["num_classes"] == 6
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
    found = models.describe(model.state_dict(), f"torchvision:{name}")
    assert (found["num_classes"], found["in_channels"]) == (7, 2)


@needs_timm
@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("vit_tiny_patch16_224", 32), ("convnext_atto", 64)])
def test_timm_networks_round_trip(name, size, tmp_path):
    model = models.build(f"timm:{name}", 7, 2, size).eval()
    checkpoint.save(model, tmp_path / "m.safetensors")
    again = checkpoint.load(tmp_path / "m.safetensors")
    x = torch.randn(2, 2, size, size)
    assert torch.equal(again(x), model(x))
    assert again.description == model.description


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
