"""Pages of networks with many classes, or with more classes than the data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import pellucid
from pellucid.audit.cards import filters as filters_card
from pellucid.core import registry
from pellucid.core.data.dataset import Dataset
from pellucid.core.data.splits import MemorySplit
from pellucid.core.facts import declare
from test_test_images import HALF, fill

MANY = 120


@pytest.fixture(scope="module")
def many():
    """A network of many classes with a linear last layer of few inputs, and images of all classes."""
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(MANY))
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, MANY))
    rng = torch.Generator().manual_seed(0)

    def split(count):
        return MemorySplit(torch.randint(0, 256, (count, 3, 8, 8), generator=rng).byte(), torch.arange(count) % MANY)

    data = Dataset("x", names, 3, (8, 8), split(MANY), split(0), split(2 * MANY), (0.5,) * 3, (0.25,) * 3, False, "f")
    return declare(model.eval(), normalization=HALF), data


def test_what_grows_with_the_square_of_the_classes_is_left_out_and_said(many, tmp_path):
    audit = pellucid.open(*many, tmp_path).audit
    assert audit["confusion"]["matrix"] is None and len(audit["confusion"]["pairs"]) == 100
    matrix, sharing = audit["left_out"]
    assert (
        "confusion matrix, of 120 classes" in matrix and "all but the first 5, where they are more than 20" in sharing
    )
    page = (tmp_path / "index.html").read_text()
    assert matrix in page and sharing in page
    rows = {name: card["filters"]["filters"] for name, card in audit["classes"].items()}
    users: dict[int, list[str]] = {}
    for name, own in rows.items():
        for row in own:
            users.setdefault(row["filter"], []).append(name)
    assert max(map(len, users.values())) > filters_card.NAMED
    for name, own in rows.items():
        for row in own:
            others = [one for one in users[row["filter"]] if one != name]
            assert row["shared_with_count"] == len(others)
            assert row["shared_with"] == (others if len(others) <= filters_card.NAMED else others[: filters_card.FEW])
    size = len((tmp_path / "audit.json").read_text())
    assert size < MANY * 3000  # bytes: linear in the classes


def test_plugins_are_looked_up_once_and_not_for_each_class(many, tmp_path, monkeypatch):
    calls = []
    load = registry.load_guests
    monkeypatch.setattr(registry, "load_guests", lambda: calls.append(1) or load())
    pellucid.open(*many, tmp_path)
    assert len(calls) < 30


def test_confusions_of_a_class_agree_with_a_plain_count(many, tmp_path):
    model, data = many
    audit = pellucid.open(model, data, tmp_path).audit
    with torch.no_grad():
        x = (data.test.fetch(torch.arange(len(data.test))).float() / 255 - 0.5) / 0.25
        found = model(x).argmax(1).tolist()
    labels = data.test.labels.tolist()
    for index, name in enumerate(data.classes):
        own = audit["classes"].get(name, {}).get("answers")
        both = {
            other: [
                sum(y == index and z == other for y, z in zip(labels, found, strict=True)),
                sum(y == other and z == index for y, z in zip(labels, found, strict=True)),
            ]
            for other in range(MANY)
            if other != index
        }
        wanted = sorted((o for o in both if sum(both[o])), key=lambda o: -sum(both[o]))[:3]
        assert own["answered"] == found.count(index)
        assert own["mixed_up_with"] == [
            {"class": data.classes[o], "taken_for_it": both[o][0], "it_taken_for_this": both[o][1]} for o in wanted
        ]


def test_a_page_has_cards_of_the_classes_that_are_present(tmp_path):
    torch.manual_seed(0)
    names = ("ant", "bee", "cat", "dog", "elk")
    model = declare(pellucid.build("resnet8", 5, 3, 8).eval(), classes=names, normalization=HALF)
    fill(tmp_path / "images", {"dog": 4, "bee": 3})
    report = pellucid.open(model, f"test:{tmp_path / 'images'}", tmp_path / "page")
    assert list(report.audit["classes"]) == ["bee", "dog"]
    assert report.audit["data"]["present"] == 2 and report.audit["data"]["classes"] == list(names)
    assert (report.audit["accuracy"]["n"], report.audit["accuracy"]["outputs"]) == (7, 5)
    assert report.audit["accuracy"]["control"]["chance"] == 0.2
    assert report.audit["assumed"] == ["Classes are matched by name; 2 of 5 have images."]
    page = report.path.read_text()
    assert page.count("<article") == 2 and "2 of 5 classes" in page.partition("<nav")[0]
    assert "of 7 test images, of 2 of 5 classes, are classified correctly" in report.findings[0]
    assert "Filters are chosen on training images, and these data have none" in page
    assert json.loads((tmp_path / "page" / "audit.json").read_text())["filters"] == {}


def test_a_sample_of_images_keeps_the_classes_of_the_data(many, tmp_path):
    """Classes without a test image in the sample have training images, and their filters are shown."""
    model, data = many
    few = replace(data, test=data.test.take(torch.arange(5)))
    assert len(pellucid.open(model, few, tmp_path).audit["classes"]) == MANY


def test_the_matrix_shows_the_classes_that_occur(many, tmp_path):
    model, data = many
    test = data.test.take(torch.arange(100, 110))
    pellucid.open(model, replace(data, test=test), tmp_path)
    images = (test.images.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        predicted = model(images).argmax(1)
    n = len({*test.labels.tolist(), *predicted.tolist()})
    assert f"Of 120 classes, the {n} that occur are shown" in (tmp_path / "index.html").read_text()
