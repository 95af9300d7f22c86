"""Edits of the last layer: what the copy answers, image by image, and the accuracy that is reported of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pellucid.classfilters.edit import remove_class, reweight, selective_filters
from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError


def network(bias: bool = True, conv: bool = False) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if conv:
        return nn.Sequential(*body, nn.Conv2d(6, 4, 1, bias=bias), *pool)
    return nn.Sequential(*body, *pool, nn.Linear(6, 4, bias=bias))


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(60, 2, 5, 5, generator=generator)
    labels = torch.arange(60) % 3  # class 3 has no image
    images += labels[:, None, None, None] * 0.7
    return images, labels


@pytest.fixture(scope="module")
def others():
    """Images of the same kind, to select filters on."""
    images = torch.randn(45, 2, 5, 5, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(45) % 3
    return images + labels[:, None, None, None] * 0.7, (labels + 1) % 3


@torch.no_grad()
def right(model, images, labels, who) -> int:
    return sum(int(model(image[None]).argmax()) == int(c) for image, c, w in zip(images, labels, who, strict=True) if w)


@pytest.mark.parametrize(("bias", "conv"), [(True, False), (False, False), (True, True), (False, True)])
def test_removing_a_class_is_measured_on_the_copy(data, others, bias, conv):
    images, labels = data
    model = network(bias, conv).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mine = labels == 1
    for filters in (None, [0, 4], 2):
        edit = remove_class(model, 1, data, filters, selected_on=others)
        assert not edit.model.training and edit.class_after.correct == 0
        with torch.no_grad():
            assert (edit.model(images).argmax(1) != 1).all() and edit.model(images).isfinite().all()
        assert (edit.class_before.n, edit.others_before.n) == (20, 40)
        assert edit.class_before.correct == right(model, images, labels, mine)
        assert edit.others_before.correct == right(model, images, labels, ~mine)
        assert edit.others_after.correct == right(edit.model, images, labels, ~mine)
        assert edit.to_json()["others_after"]["n"] == 40
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "the model stays as it is"


def test_removed_filters_are_held_at_their_mean_over_other_images_for_every_class(data, others):
    images, labels = data
    model = network().eval()
    with torch.no_grad():
        features = model[:-1](images)
        held = features.clone()
        elsewhere = model[:-1](others[0])
        held[:, [0, 4]] = elsewhere[:, [0, 4]].mean(0)
        expected = model[-1](held)
        found = remove_class(model, 2, data, [4, 0, 0], selected_on=others).model(images)
        assert torch.allclose(found[:, [0, 1, 3]], expected[:, [0, 1, 3]], atol=1e-5)
        given = remove_class(model, 2, data, [0], means=torch.full((6,), 9.0)).model(images)
        held = features.clone()
        held[:, 0] = 9.0
        assert torch.allclose(given[:, 0], model[-1](held)[:, 0], atol=1e-5)
    selective = selective_filters(elsewhere, others[1], model[-1].weight.detach(), 2, 2)
    assert selective != selective_filters(features, labels, model[-1].weight.detach(), 2, 2), "or this shows nothing"
    one, other = (remove_class(model, 2, data, chosen, selected_on=others).model(images) for chosen in (2, selective))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give them with selected_on="),
        ({"selected_on": "data"}, "selected on the images that accuracy is then measured on"),
    ],
)
@pytest.mark.parametrize("filters", [2, [0, 4]])
def test_filters_are_not_selected_on_the_images_that_accuracy_is_measured_on(data, given, words, filters):
    with pytest.raises(InputError, match=words):
        remove_class(network(), 1, data, filters, **dict.fromkeys(given, data))
    remove_class(network(), 1, data, [0, 4], means=torch.zeros(6))  # nothing is selected or taken


def test_filters_of_a_data_set_are_selected_on_its_training_images():
    from pellucid.classfilters.responses import responses
    from pellucid.core.measure.pairs import open_data

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
    read = load_data("digits")
    found = {part: responses(model, open_data(model, read, part))[0].mean(0) for part in ("train", "test")}
    one = remove_class(model, 3, read, [1, 5])
    other = remove_class(model, 3, read, [1, 5], means=found["train"])
    assert one.to_json() == other.to_json() and one.class_before.n == int((read.test.labels == 3).sum())
    wrong = remove_class(model, 3, read, [1, 5], means=found["test"])
    assert torch.allclose(one.model[-1].bias, other.model[-1].bias, atol=1e-6)
    assert not torch.allclose(one.model[-1].bias, wrong.model[-1].bias, atol=1e-6)
    for given in ({}, {"selected_on": "digits"}):
        with pytest.raises(InputError, match="split='test', or selected_on="):
            remove_class(model, 3, "digits", [1, 5], split="train", **given)


def test_a_loader_does_as_well_as_tensors(data):
    model = network()
    loader = DataLoader(TensorDataset(*data), batch_size=7)
    one, other = remove_class(model, 0, data), remove_class(model, 0, loader)
    assert one.to_json() == other.to_json()
    assert model.training, "the model stays as it is"


@pytest.mark.parametrize("factor", [0.0, 1.0, -3.0, 10.0])
def test_reweighting_changes_one_logit_by_one_filter(data, factor):
    images, labels = data
    model = network().eval()
    edit = reweight(model, 3, 2, factor, data)
    with torch.no_grad():
        features, before, after = model[:-1](images), model(images), edit.model(images)
    moved = before.clone()
    moved[:, 2] += (factor - 1) * features[:, 3] * model[-1].weight[2, 3].detach()
    assert torch.allclose(after, moved, atol=1e-5)
    assert edit.class_after.correct == right(edit.model, images, labels, labels == 2)
    assert edit.others_after.correct == right(edit.model, images, labels, labels != 2)
    if factor == 1.0:
        assert edit.class_after == edit.class_before and edit.others_after == edit.others_before


def test_selective_filters_by_loops(data):
    _, labels = data
    generator = torch.Generator().manual_seed(2)
    features, weight = torch.rand(60, 9, generator=generator).double(), torch.randn(4, 9, generator=generator).double()
    scores = []
    for j in range(9):
        means = [sum(float(v) for v, c in zip(features[:, j], labels, strict=True) if c == k) / 20 for k in range(3)]
        products = [float(weight[k, j]) * means[k] for k in range(3)]  # class 3 has no image and no say
        scores.append(products[1] - (products[0] + products[2]) / 2)
    expected = sorted(range(9), key=lambda j: -scores[j])[:4]
    assert selective_filters(features, labels, weight, 1, 4) == tuple(expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model, data: remove_class(model, 4, data), "no class 4: choose from 0 to 3"),
        (lambda model, data: remove_class(model, -1, data), "no class -1"),
        (lambda model, data: remove_class(model, 0, data, [6], selected_on=[data]), "no filter 6"),
        (lambda model, data: remove_class(model, 0, data, 7, selected_on=[data]), "k=7"),
        (lambda model, data: remove_class(model, 3, data, 2, selected_on=[data]), "need images"),
        (lambda model, data: remove_class(model, 0, data, [1], means=torch.zeros(2)), "means"),
        (lambda model, data: reweight(model, 9, 0, 2.0, data), "no filter 9"),
        (lambda model, data: reweight(model, 0, 9, 2.0, data), "no class 9"),
        (lambda model, data: reweight(model, 0, 0, float("nan"), data), "factor=nan"),
    ],
)
def test_what_is_not_there_is_refused(data, call, words):
    with pytest.raises(InputError, match=words):
        call(network(), data)
