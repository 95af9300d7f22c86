"""The cards of class filters beside loops over the model's own last layer, and their silence without one."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import pellucid
from pellucid.audit.audit import make_audit
from pellucid.audit.cards.filters import class_filters, filters
from pellucid.audit.reading import balanced_sample, reading
from pellucid.core.data.dataset import load_data


@pytest.fixture(scope="module")
def audit():
    """A small network that has learned digits a little."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    digits = load_data("digits")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x = (digits.train.fetch(torch.arange(len(digits.train))).float() / 255 - digits.mean[0]) / digits.std[0]
    for step in range(60):
        rows = torch.arange(len(x))[step % 6 :: 6]
        nn.functional.cross_entropy(model(x[rows]), digits.train.labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return make_audit(model, digits)


@pytest.fixture(scope="module")
def parts(audit):
    """Features of all training and test images, and the head, in float64."""
    body, head = audit.model[:-1].double(), audit.model[-1]
    seen = []
    for split in (audit.dataset.train, audit.dataset.test):
        images = split.fetch(torch.arange(len(split))).double() / 255
        with torch.no_grad():
            seen.append(body((images - audit.dataset.mean[0]) / audit.dataset.std[0]))
    audit.model.float()
    return *seen, head.weight.detach().double(), head.bias.detach().double()


def evidence(audit, parts):
    train, _, weight, _ = parts
    labels = audit.dataset.train.labels
    return torch.stack([weight[c] * train[labels == c].mean(0) for c in range(10)])


def chosen(scores, k):
    """The k largest positive ones of each row, by sorting."""
    return [sorted((j for j in range(len(row)) if row[j] > 0), key=lambda j: -row[j])[:k] for row in scores.tolist()]


def hits(features, weight, bias, labels, sets=None):
    """(right of each image) of the head, every logit a sum over its set."""
    right = []
    for row, label in zip(features.tolist(), labels.tolist(), strict=True):
        logits = [
            float(bias[c]) + sum(row[j] * float(weight[c, j]) for j in (range(len(row)) if sets is None else sets[c]))
            for c in range(len(weight))
        ]
        right.append(logits.index(max(logits)) == label)
    return right


def test_the_curve_is_that_of_the_training_images_evidence(audit, parts):
    section = filters(audit)
    _, test, weight, bias = parts
    scores = evidence(audit, parts)
    assert list(section.data["curve"]) == ["1", "2", "3", "5", "10"]
    for k in (1, 5):
        right = hits(test, weight, bias, audit.labels, chosen(scores, k))
        row = section.data["curve"][str(k)]
        assert row["accuracy"] == pytest.approx(sum(right) / len(right), abs=1.1 / len(right))
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
        assert row["random_interval"][0] <= row["random"] <= row["random_interval"][1]
    assert section.data["accuracy"] == pytest.approx(audit.evaluation.top1)
    assert section.data["curve"]["5"]["accuracy"] > section.data["curve"]["5"]["random"] + 0.1
    assert section.data["shuffled"] < section.data["others_shuffled"] <= 1
    assert (section.data["layer"], section.data["width"]) == ("7", 32)
    assert "With the 5 filters" in section.summary and "training images" in section.blocks[-1].body


@pytest.mark.parametrize("index", [3, 8])
def test_a_class_shows_its_filters_and_what_their_loss_costs(audit, parts, index):
    train, test, weight, bias = parts
    scores = evidence(audit, parts)
    sets = chosen(scores, 5)
    data = class_filters(audit, index).data
    assert [row["filter"] for row in data["filters"]] == sets[index]
    before, mine = hits(test, weight, bias, audit.labels), (audit.labels == index).tolist()
    positive = scores[index].clamp(min=0)
    for row in data["filters"]:
        number = row["filter"]
        assert row["share"] == pytest.approx(float(positive[number] / positive.sum()), rel=1e-4)
        assert row["shared_with"] == [str(c) for c in range(10) if c != index and number in sets[c]]
        without = test.clone()
        without[:, number] = train[:, number].mean()
        after = hits(without, weight, bias, audit.labels)
        for key, who in (("lost", True), ("lost_others", False)):
            lost = sum(b - a for b, a, m in zip(before, after, mine, strict=True) if m == who)
            assert row[key] == pytest.approx(lost, abs=1)
    matrix = torch.tensor(audit.evaluation.confusion)
    mixed = (matrix[index] + matrix[:, index]).tolist()
    mixed[index] = 0
    partner = mixed.index(max(mixed))
    assert data["mix_up"]["class"] == str(partner)
    assert all(scores[index, j] > 0 and scores[partner, j] > 0 for j in data["mix_up"]["filters"])


def test_pictures_are_the_images_with_the_highest_responses(audit, parts):
    _, test, _, _ = parts
    section = class_filters(audit, 3)
    strip = section.blocks[-1]
    number = section.data["filters"][0]["filter"]
    top = test[:, number].topk(2).indices.tolist()
    assert [picture.alt.split(" (")[0] for picture in strip.pictures[:2]] == [f"Test image {row}" for row in top]
    assert len(strip.pictures) == 10 and strip.pictures[0].image.shape == (8, 8, 1)


def test_they_are_on_the_page_and_in_the_record(audit, tmp_path):
    gate = ["filters.curve.5.accuracy > 0.2", "classes.3.filters.n > 40"]
    report = pellucid.open(audit.model, "digits", tmp_path, gate=gate)
    assert report.passed
    record = json.loads((tmp_path / "audit.json").read_text())
    assert record["filters"]["used"] <= 32 and len(record["classes"]["0"]["filters"]["filters"]) == 5
    page = (tmp_path / "index.html").read_text()
    assert "Class filters" in page and "Accuracy by filters per class" in page


def npz(tmp_path, classes: int, side: int, n: int):
    """Random images whose class is where a bright square is."""
    import numpy as np

    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        labels = np.arange(n) % classes
        images = rng.integers(0, 60, (n, side, side, 3)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            across = side // classes
            image[side // 2 : side // 2 + 6, label * across : label * across + 6] = 255
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None]}
    np.savez(tmp_path / "squares.npz", **arrays)
    return load_data(f"npz:{tmp_path / 'squares.npz'}")


def test_larger_images_are_cut_out_around_the_peak(tmp_path):
    torch.manual_seed(1)
    model = pellucid.build("resnet20", 3, 3, 36)
    section = class_filters(make_audit(model, npz(tmp_path, 3, 36, 30)), 1)
    strip = section.blocks[-1]
    assert "cut to half" in strip.caption
    assert {picture.image.shape for picture in strip.pictures} == {(18, 18, 3)}


def test_a_peak_is_where_the_map_is_largest(tmp_path):
    data = npz(tmp_path, 3, 36, 12)
    brightness = nn.Conv2d(3, 2, 1)
    nn.init.constant_(brightness.weight, 1.0)
    model = nn.Sequential(brightness, nn.AvgPool2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    nn.init.constant_(model[-1].weight, 1.0)
    audit = make_audit(model, data)
    pooled = class_filters(audit, 0).blocks[-1].pictures
    # The square of class c lies at rows 18 to 23, columns 12c to 12c + 5; the cut starts 6 or 7 before it, or at 0.
    for picture in pooled:
        bright = (picture.image == 255).all(2)
        assert int(bright.sum()) == 36
    assert reading(audit).map == "1"


def test_models_without_a_linear_head_are_passed_over():
    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.centres = nn.Parameter(torch.rand(10, 64))

        def forward(self, x):
            return -torch.cdist(x.flatten(1), self.centres)

    audit = make_audit(Distance(), load_data("digits"))
    assert filters(audit) is None and class_filters(audit, 0) is None


@pytest.mark.parametrize("limit", [3, 7, 40, 1000])
def test_a_sample_is_even_over_classes(limit):
    labels = torch.tensor([0] * 30 + [1] * 5 + [2] * 50)
    rows = balanced_sample(labels, limit, seed=1)
    assert len(set(rows.tolist())) == len(rows) == min(limit, 85) and rows.tolist() == sorted(rows.tolist())
    counts = labels[rows].bincount(minlength=3).tolist()
    for count, size in zip(counts, (30, 5, 50), strict=True):
        assert count == size or count >= max(counts) - 1
    assert torch.equal(rows, balanced_sample(labels, limit, seed=1))
