"""What a file does not say of its network is said above every table and on every page."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

import pellucid
from pellucid import cli
from pellucid.core.data.dataset import load_data
from pellucid.core.facts import Normalization, facts
from pellucid.core.flags import SourceSettings
from pellucid.core.measure.fits import normalization
from pellucid.core.source import open_network, open_source
from test_test_images import fill

needs_torchvision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="no torchvision")
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZE = "Images are taken at 8 x 8 pixels, the size that they have in digits; the file does not record its own "
SCALE = "Images are normalised by the mean and standard deviation of the training images of digits; the file does not "
SAID = [f"{SIZE}(--image-size).", f"{SCALE}record its own (--mean, --std)."]


@pytest.fixture
def foreign(tmp_path):
    """A checkpoint of a network for digits that says nothing of its images."""
    torch.manual_seed(0)
    torch.save(pellucid.build("resnet8", 10, 1, 8).state_dict(), tmp_path / "net.pth")
    return [str(tmp_path / "net.pth"), "--model", "resnet8", "--data", "digits"]


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate"],
        ["robust", "--kinds", "gaussian_noise", "--severities", "1", "--max-images", "20"],
        ["decompose", "--out", "{out}"],
        pytest.param(["visualize", "--out", "{out}", "--max-images", "2"], marks=pytest.mark.slow),
        ["fold", "--out", "{out}.safetensors"],
        ["convert", "--layers", "deconv", "--out", "{out}.safetensors"],
    ],
)
def test_it_is_said_in_the_first_lines_and_in_json(foreign, tmp_path, capsys, command):
    words = [command[0], *foreign, *(word.format(out=tmp_path / "out") for word in command[1:])]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.split("\n")[:2] == SAID
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["assumed"] == SAID
    assert cli.main([*words, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_it_is_on_the_front_of_the_page(foreign, tmp_path, capsys):
    assert cli.main(["open", *foreign, "--max-images", "20", "--out", str(tmp_path / "page")]) == 0
    assert capsys.readouterr().out.split("\n")[:2] == SAID
    assert json.loads((tmp_path / "page" / "audit.json").read_text())["assumed"] == SAID
    front = (tmp_path / "page" / "index.html").read_text().partition("<nav")[0]
    assert all(sentence in front for sentence in SAID)


def test_what_is_given_or_recorded_is_not_assumed(foreign, tmp_path):
    given = SourceSettings(data="digits", model="resnet8", image_size=8, mean=[0.3], std=[0.4])
    assert open_source(foreign[0], given).assumed == ()
    assert len(open_source(foreign[0], SourceSettings(data="digits", model="resnet8", image_size=8)).assumed) == 1
    model = open_source(foreign[0], given).model
    pellucid.save(model, tmp_path / "own.safetensors")
    assert open_source(tmp_path / "own.safetensors", data="digits").assumed == ()
    assert open_source("resnet8", data="digits").assumed == ()  # random weights were trained on nothing


def test_a_module_is_told_of_too():
    found = open_source(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), data="digits")
    assert [sentence.replace("the model", "the file") for sentence in found.assumed] == SAID


# ---- networks of libraries


@pytest.mark.vision
@pytest.mark.vision
@needs_torchvision
def test_torchvisions_networks_get_the_input_that_they_expect(tmp_path):
    torch.manual_seed(0)
    torch.save(pellucid.build("torchvision:squeezenet1_1", 3, 3, 64).state_dict(), tmp_path / "net.pth")
    fill(tmp_path / "images", {"a": 1, "b": 1, "c": 1}, (250, 260), ".jpg")
    settings = SourceSettings(data=f"test:{tmp_path / 'images'}", model="torchvision:squeezenet1_1")
    found = open_source(tmp_path / "net.pth", settings)
    assert found.dataset.image_size == (224, 224) and found.dataset.test.streamed
    assert normalization(found.model, found.dataset) == IMAGENET
    size, scale, classes = found.assumed
    assert size.startswith(
        "Images are taken at 224 x 224 pixels (the shorter side to 256, then the centre cut out), the "
    )
    assert "the usual size of torchvision:squeezenet1_1; the file does not record its own (--image-size)" in size
    assert scale.startswith(
        "Images are normalised by ImageNet's mean and standard deviation, as usual for torchvision:"
    )
    assert "taken for the 3 of the data, in their order (--classes FILE)" in classes
    opened = open_network(tmp_path / "net.pth", "torchvision:squeezenet1_1", normalized=True)
    assert facts(opened.model).normalization == IMAGENET and len(opened.assumed) == 2


@pytest.mark.vision
@pytest.mark.vision
@needs_torchvision
def test_an_image_is_cut_as_torchvision_does(tmp_path):
    """Resize(256), CenterCrop(224): the same pixels but for rounding."""
    from PIL import Image

    from pellucid.core import vision

    path = fill(tmp_path, {"a": 1}, (15, 20)) / "a" / "0.png"
    image = Image.open(path).resize((1024, 512), Image.Resampling.BICUBIC)  # smooth
    image.save(path)
    theirs = vision.torchvision().models.get_model_weights("resnet18").IMAGENET1K_V1.transforms()(image)
    ours = load_data(f"test:{tmp_path}", image_size=224).test.fetch(torch.tensor([0]))[0].float() / 255
    assert float((IMAGENET.apply(ours[None])[0] - theirs).abs().mean()) < 0.01


@pytest.mark.vision
@pytest.mark.vision
@needs_torchvision
def test_networks_with_a_transform_of_their_own_get_its_result():
    """torchvision's googlenet with its own weights turns ImageNet's normalisation into 0.5 and 0.5."""
    from pellucid.core import vision

    x = torch.rand(2, 3, 64, 64)
    theirs = vision.torchvision().models.googlenet(transform_input=True, init_weights=False, aux_logits=False)
    expected = theirs._transform_input(IMAGENET.apply(x))
    torch.testing.assert_close(vision.normalization("torchvision:googlenet").apply(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.vision
@pytest.mark.vision
@needs_timm
def test_timms_configuration_is_taken():
    from pellucid.core import vision

    assert vision.normalization("timm:mixer_b16_224") == Normalization((0.5,) * 3, (0.5,) * 3)
    assert vision.normalization("timm:resnet18") == IMAGENET
