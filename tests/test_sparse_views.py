"""What `visualize` and the card show, beside numbers computed here."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pellucid
from pellucid.audit.audit import make_audit
from pellucid.audit.cards.sparse import class_atoms, sparse
from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError
from pellucid.core.facts import declare
from pellucid.sparse.layers import CSC2d
from pellucid.views.visualize import _regression, visualize


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    digits = load_data("digits")
    x = digits.test.fetch(torch.arange(60)).float() / 255
    return (x - digits.mean[0]) / digits.std[0]


@pytest.fixture(scope="module")
def trained(images):
    """conv, pool, residual sum, conv: all sparse codes, after real training steps."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = CSC2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.pool = nn.MaxPool2d(3, 1, 1)
            self.second, self.norm2 = CSC2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.third, self.norm3, self.fc = CSC2d(16, 20, 3, padding=1), nn.BatchNorm2d(20), nn.Linear(20, 10)

        def forward(self, x):
            x = self.pool(self.norm(self.first(x)))
            x = (x + self.norm2(self.second(x))).relu()
            return self.fc(self.norm3(self.third(x)).mean((2, 3)))

    model = Net()
    digits = load_data("digits")
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    x = (digits.train.fetch(torch.arange(256)).float() / 255 - digits.mean[0]) / digits.std[0]
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), digits.train.labels[:256]).backward()
        optimizer.step()
    return model


def test_the_first_layers_view_is_its_code_decoded(trained, images):
    view = visualize(trained, images, layer="first").layers["first"]
    trained.eval()
    with torch.no_grad():
        z = trained.first(images)
        made = trained.first.decode(z, (8, 8))
    torch.testing.assert_close(view.reconstruction, made)
    centred = images - images.mean()
    assert view.error == pytest.approx(float((images - made).square().sum() / centred.square().sum()), rel=1e-4)
    assert view.residual_share == pytest.approx(float((images - made).square().sum() / images.square().sum()), rel=1e-4)
    torch.testing.assert_close(view.residual, (images - made).abs()[:, 0], atol=1e-5, rtol=1e-4)
    assert view.density == pytest.approx(float((z != 0).float().mean()))
    assert view.field == 3
    for rank, atom in enumerate(view.order[:5].tolist()):
        entries = z[:, atom].flatten(1)
        best = int(entries.amax(1).argmax())
        assert int(view.images[rank, 0]) == best
        assert entries[best, int(view.places[rank, 0])] == entries.max()
        torch.testing.assert_close(view.atoms[rank], trained.first.atoms[atom])
    assert (view.used[view.order].diff() <= 0).all()


def test_every_layer_leads_down_to_the_pixels_and_knows_the_image(trained, images):
    modes = [module.training for module in trained.modules()]
    seen = visualize(trained, images)
    assert [module.training for module in trained.modules()] == modes
    assert list(seen.layers) == ["first", "second", "third"]
    for name, view in seen.layers.items():
        assert view.reconstruction.shape == images.shape
        assert view.error < view.control - 0.01, name  # more than any other image's code tells
    errors = [view.error for view in seen.layers.values()]
    assert errors == sorted(errors)
    assert [view.field for view in seen.layers.values()] == [3, 5, 7]
    assert seen.layers["third"].atoms.shape == (20, 1, 8, 8)
    two = visualize(trained.train(), images)
    for name, view in seen.layers.items():
        assert torch.equal(view.reconstruction, two.layers[name].reconstruction)
    assert trained.training


def test_batch_norm_is_undone_exactly():
    torch.manual_seed(0)
    z = torch.rand(6, 4, 5, 5)
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight, 0.5, 2)
    norm(z)
    y = norm.eval()(z)
    a, d = _regression(y, z)
    torch.testing.assert_close(a * y + d, z, atol=1e-5, rtol=1e-5)


def test_pictures_are_written(trained, images, tmp_path):
    names = visualize(trained, images[:10]).save(tmp_path / "seen")
    assert sorted(names) == sorted(file.name for file in (tmp_path / "seen").iterdir())
    for name in names:
        if name.endswith(".png"):
            pixels = np.asarray(Image.open(tmp_path / "seen" / name))
            assert pixels.std() > 10, name
    numbers = json.loads((tmp_path / "seen" / "visualize.json").read_text())
    assert set(numbers["layers"]) == {"first", "second", "third"} and numbers["images"] == 10


def test_what_cannot_be_shown_is_a_sentence(trained, images):
    with pytest.raises(InputError, match="how its input is normalised"):
        visualize(nn.Sequential(nn.Conv2d(1, 2, 3)), images)
    with pytest.raises(InputError, match="first, second, third"):
        visualize(trained, images, layer="fc")
    with pytest.raises(InputError, match="two or more"):
        visualize(trained, images[:1])
    signal = pellucid.CSC1d(2, 4, 5)
    view = visualize(signal, torch.randn(3, 2, 30)).layers[""]
    assert view.reconstruction.shape == (3, 2, 30)
    with pytest.raises(InputError, match="two axes"):
        visualize(signal, torch.randn(3, 2, 30)).save("nowhere")
    gap = nn.Sequential(CSC2d(1, 4, 3), nn.Conv2d(4, 6, 1), CSC2d(6, 5, 3))
    assert visualize(gap, images).layers["2"].reconstruction is None


# --- the card ---


def test_the_cards_numbers_are_those_of_the_codes(trained):
    audit = make_audit(trained, load_data("digits"))
    section = sparse(audit)
    images = audit.images(torch.arange(450))
    x = (images - audit.normalization.mean[0]) / audit.normalization.std[0]
    with torch.no_grad():
        z = trained.eval().first(x)
        residual = trained.first.residual(x, z)
    row = section.data["layers"]["first"]
    assert row["density"] == pytest.approx(float((z != 0).double().mean()), rel=1e-4)
    assert row["residual"] == pytest.approx(float(residual.square().sum() / x.square().sum()), rel=1e-4)
    assert list(section.data["layers"]) == ["first", "second", "third"] and section.data["n"] == 450
    of_three = class_atoms(audit, 3)
    mean = z.abs().mean((2, 3))
    ratio = mean[audit.labels == 3].mean(0) / mean[audit.labels != 3].mean(0)
    assert of_three.data["ratio"] == pytest.approx([float(ratio[k]) for k in of_three.data["atoms"]], abs=2e-3)
    assert of_three.data["ratio"] == sorted(of_three.data["ratio"], reverse=True)


def test_it_is_silent_about_other_networks():
    audit = make_audit(pellucid.build("conv2", 10, 1, 8), load_data("digits"))
    assert sparse(audit) is None and class_atoms(audit, 0) is None


@pytest.mark.slow
def test_it_is_on_the_page(trained, tmp_path):
    report = pellucid.open(trained, "digits", tmp_path, gate="sparse.layers.first.density < 1")
    assert report.passed
    page = (tmp_path / "index.html").read_text()
    assert "Sparse codes" in page and "Atoms of first" in page


def test_without_dictionaries_images_are_searched_for(images, tmp_path):
    """The first layer keeps more than the last, and both more of an image than another image's has."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(16, 4, 1)),
        nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
    )
    declare(model, normalization={"mean": [0.3], "std": [0.4]})
    model(images[:2])
    model.train()
    seen = visualize(model, images[:10])
    assert list(seen.layers) == ["0", "1"] and model.training  # the last part's output has no places
    first, second = seen.layers["0"], seen.layers["1"]
    assert first.reconstruction.shape == (8, *images.shape[1:])
    assert first.error < 0.2 < second.error < second.control
    assert first.error < first.control
    assert len(list((tmp_path / "seen").glob("*.png"))) == 0
    names = seen.save(tmp_path / "seen")
    assert {"overview.png", "0-reconstruction.png", "1-uses.png"} <= set(names)
    with pytest.raises(InputError, match="no output with positions"):
        visualize(model, images, layer="2.1")
