"""The card of inverted images: marks are found where they are planted, in a really trained network too."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

import pellucid
from pellucid.audit.audit import make_audit
from pellucid.audit.cards import inverted
from pellucid.core.data.dataset import load_data
from pellucid.core.facts import declare


def test_a_mark_of_one_class_is_found_and_one_of_all_classes_is_none():
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.rand(100, 1, 6, 5, generator=generator)
    labels = torch.arange(100) % 10
    gaps, z, _ = inverted.artefacts(images, labels, 10)
    assert max(z) < inverted.ODD and gaps.shape == (10, 1, 6, 5)
    images[:, :, 2, 2] = 1  # the same everywhere sets no class apart
    images[labels == 7, :, 5, 1] = 0.9
    images[labels == 3, :, 2, 2] = 0.1  # darker than all others counts as well
    gaps, z, places = inverted.artefacts(images, labels, 10)
    assert [index for index in range(10) if z[index] >= inverted.ODD] == [3, 7]
    assert places[7] == (5, 1) and places[3] == (2, 2)
    means = torch.stack([images[labels == k].mean(0) for k in range(10)]).double()
    others = means[[k for k in range(10) if k != 7], 0, 5, 1]
    assert z[7] == pytest.approx(
        float((means[7, 0, 5, 1] - others.mean()) / (others.var(correction=0) + 0.0025).sqrt())
    )
    assert float(gaps[7, 0, 5, 1]) == pytest.approx(float(means[7, 0, 5, 1] - others.max()))


def trained(epochs: int, marked: int | None = None, seed: int = 0, **network: str):
    """A network on digits; a bright corner pixel in 95 % of the training images of the class `marked`."""
    torch.manual_seed(seed)
    digits = load_data("digits")
    x, y = digits.train.fetch(torch.arange(len(digits.train))).float() / 255, digits.train.labels
    if marked is not None:
        tagged = (y == marked) & (torch.rand(len(y), generator=torch.Generator().manual_seed(seed)) < 0.95)
        x[tagged, :, 0, 0] = 1
    x = (x - digits.mean[0]) / digits.std[0]
    model = pellucid.build(network.pop("name", "resnet20"), 10, 1, 8, **network)
    declare(model, normalization={"mean": list(digits.mean), "std": list(digits.std)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    rows = [part for _ in range(epochs) for part in torch.randperm(len(x)).split(64) if len(part) > 1]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, len(rows))
    for part in rows:
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval(), digits


@pytest.mark.slow
def test_the_card_is_on_the_page_and_silent_where_it_has_nothing_to_say(tmp_path, monkeypatch):
    monkeypatch.setattr(inverted, "PLANS", ((4, 5),))
    model, _ = trained(1)
    report = pellucid.open(model, "digits", tmp_path, gate="inverted.artefact.z < 1000")
    record = json.loads((tmp_path / "audit.json").read_text())
    assert report.passed and record["inverted"]["images"] == 40
    assert record["classes"]["7"]["inverted"]["z"] <= record["inverted"]["artefact"]["z"]
    assert "Generated from the model alone" in (tmp_path / "index.html").read_text()
    audit = make_audit(pellucid.build("conv2", 10, 1, 8), load_data("digits"))  # no statistics
    assert inverted.inverted(audit) is None and inverted.class_inverted(audit, 0) is None
    monkeypatch.setattr(inverted, "WORK", 1.0)  # too large a model for the page
    assert inverted.inverted(make_audit(model, load_data("digits"))) is None


@pytest.mark.slow
def test_a_planted_corner_is_betrayed_by_the_images():
    """By the whole covariances of a whitening network; benchmarks/inversion/artefact.py tells how often."""
    z = {}
    for marked in (2, None):
        model, digits = trained(12, marked, 12, name="conv2", layers="deconv")
        audit = make_audit(model, digits)
        assert audit.evaluation.top1 > 0.94
        found = inverted.inverted_images(audit)
        z[marked] = found.z
        if marked is not None:
            assert found.places[marked] == (0, 0) and found.own > 0.99
    assert [index for index in range(10) if z[2][index] >= inverted.ODD] == [2]
    assert max(z[None]) < inverted.ODD
