"""The whitening card beside moments computed here, and its silence where there is nothing to say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import pellucid
from pellucid.audit.audit import make_audit
from pellucid.audit.cards.whitening import whitening
from pellucid.core.data.dataset import load_data


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = pellucid.build("conv2", 10, 1, 8, layers="deconv", block=20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    digits = load_data("digits")
    x = (digits.train.fetch(torch.arange(256)).float() / 255 - digits.mean[0]) / digits.std[0]
    for _ in range(5):
        torch.nn.functional.cross_entropy(model(x), digits.train.labels[:256]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def distance(cov: np.ndarray) -> float:
    values = np.linalg.eigvalsh(cov / (np.trace(cov) / len(cov)))
    return float(np.sqrt(np.mean((np.maximum(values, 0) - 1) ** 2)))


def test_distances_are_those_of_the_layers_moments(trained):
    section = whitening(make_audit(trained, load_data("digits")))
    layers = section.data["layers"]
    assert list(layers) == ["features.0", "features.2", "classifier.4"]
    for name, row in layers.items():
        whiten = trained.get_submodule(name).whiten
        before, after = [], []
        for cov, root in zip(whiten.running_cov.double().numpy(), whiten.root.double().numpy(), strict=True):
            real = np.diag(cov) > 0  # 64 channels in blocks of 20: the last block is filled up by zeros
            before.append(distance(cov[np.ix_(real, real)]))
            after.append(distance((root @ cov @ root.T)[np.ix_(real, real)]))
        assert row["before"]["error"] == pytest.approx(np.mean(before), rel=1e-6)
        assert row["after"]["error"] == pytest.approx(np.mean(after), rel=1e-6)
        assert row["after"]["error"] < row["before"]["error"]
        assert row["folds"]
    assert section.data["error_after"] < section.data["error_before"]
    assert "fold into plain layers" in section.summary


def test_it_says_nothing_of_other_networks_and_warns_of_untrained_ones():
    digits = load_data("digits")
    assert whitening(make_audit(pellucid.build("conv2", 10, 1, 8), digits)) is None
    fresh = whitening(make_audit(pellucid.build("conv2", 10, 1, 8, layers="deconv"), digits))
    assert "not been trained" in fresh.blocks[0].body


def test_it_is_on_the_page_and_in_the_record(trained, tmp_path):
    report = pellucid.open(trained, "digits", tmp_path, gate="whitening.error_after < 100")
    record = json.loads((tmp_path / "audit.json").read_text())
    assert record["whitening"]["layers"]["features.0"]["blocks"] == 1
    assert report.passed
    page = (tmp_path / "index.html").read_text()
    assert "Spectra before and after whitening" in page
    assert "mathdefault" not in page
