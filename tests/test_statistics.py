"""The statistics table beside a float64 twin that stacks every activation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pellucid.core.errors import InputError
from pellucid.core.network.statistics import Moments, Statistics, statistics


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten(2), nn.Linear(20, 3)
    )


def twin_moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population covariance of rows (n, C), one row at a time."""
    mean = sum(rows) / len(rows)
    cov = sum(np.outer(row - mean, row - mean) for row in rows) / len(rows)
    return mean, cov


def test_recorded_equals_the_twin_however_the_images_are_batched():
    model, x = net().train(), torch.randn(11, 2, 6, 7)
    table = statistics(model, [x[:4], x[4:5], x[5:]], covariance=True)
    assert list(table) == ["0", "1", "3", "5"]
    assert model.training and not model[0]._forward_pre_hooks
    model.eval()
    with torch.no_grad():
        inputs = {"0": x, "1": model[:1](x), "3": model[:3](x)}
        tokens = model[:5](x)
    for name, value in inputs.items():
        mean, cov = twin_moments(value.double().movedim(1, -1).reshape(-1, value.shape[1]).numpy())
        np.testing.assert_allclose(table[name].mean, mean, atol=1e-6)
        np.testing.assert_allclose(table[name].cov, cov, atol=1e-6)
        np.testing.assert_allclose(table[name].var, np.diag(cov), atol=1e-6)
        assert table[name].count == value.numel() // value.shape[1]
    mean, cov = twin_moments(tokens.double().reshape(-1, 20).numpy())  # a linear layer's features are the last axis
    np.testing.assert_allclose(table["5"].mean, mean, atol=1e-6)
    np.testing.assert_allclose(table["5"].cov, cov, atol=1e-6)


def test_one_tensor_is_one_batch_and_layers_choose():
    model, x = net(), torch.randn(6, 2, 6, 7)
    table = statistics(model, x, layers=["3"])
    assert list(table) == ["3"]
    assert table["3"].cov is None


def test_buffers_follow_training_and_match_recorded_moments():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=None))
    x = torch.randn(64, 2, 5, 5)
    model.train()(x)
    from_buffers, recorded = statistics(model), statistics(model, x)["1"]
    assert list(from_buffers) == ["1"]
    torch.testing.assert_close(from_buffers["1"].mean.double(), recorded.mean, atol=1e-6, rtol=1e-5)
    n = recorded.count  # batch norm keeps the unbiased variance
    torch.testing.assert_close(from_buffers["1"].var.double(), recorded.var * n / (n - 1), atol=1e-5, rtol=1e-5)
    model.train()(x + 1)
    assert not torch.equal(from_buffers["1"].mean, statistics(model)["1"].mean)  # a copy, not a view


class Declaring(nn.Identity):
    def declared_moments(self) -> Moments:
        return Moments(torch.ones(2, 3), torch.ones(2, 3), torch.eye(3).expand(2, 3, 3), of="patches")


def test_a_layer_may_declare_its_own():
    table = statistics(nn.Sequential(nn.BatchNorm2d(2), Declaring()))
    assert list(table) == ["0", "1"]
    assert table["1"].cov.shape == (2, 3, 3)
    assert table["1"].of == "patches"


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6))
def test_merge_is_the_moments_of_the_union(a, b, c, seed):
    rows = np.random.default_rng(seed).normal(3, 5, (a + b, c))

    def moments(part: np.ndarray) -> Moments:
        mean, cov = twin_moments(part)
        return Moments(torch.tensor(mean), torch.tensor(np.diag(cov).copy()), torch.tensor(cov), len(part))

    merged, whole = moments(rows[:a]).merge(moments(rows[a:])), moments(rows)
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.var, whole.var)
    torch.testing.assert_close(merged.cov, whole.cov)
    assert merged.count == a + b


def test_file_round_trip(tmp_path):
    table = statistics(net(), torch.randn(3, 2, 6, 7), covariance=True)
    table.save(tmp_path / "table.safetensors")
    back = Statistics.load(tmp_path / "table.safetensors")
    assert list(back) == list(table)
    for name, moments in table.items():
        assert back[name].count == moments.count
        assert torch.equal(back[name].cov, moments.cov)


def test_errors_name_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"holds no statistics.*statistics\(model, images\)"):
        statistics(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(InputError, match="'0'.*holds no statistics"):
        statistics(net(), layers=["0"])
    with pytest.raises(InputError, match="nearest"):
        statistics(net(), torch.randn(1, 2, 6, 7), layers=["9"])
    with pytest.raises(InputError, match="no images"):
        statistics(net(), [])
    with pytest.raises(InputError, match="no convolution"):
        statistics(nn.ReLU(), torch.ones(1))
    idle = nn.Sequential(nn.Identity())
    idle[0].unused = nn.Linear(2, 2)
    with pytest.raises(InputError, match="did not run"):
        statistics(idle, torch.randn(1, 2))
    with pytest.raises(InputError, match=r"There is no file .*none"):
        Statistics.load(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"\x08\0\0\0\0\0\0\0{}      junk")
    with pytest.raises(InputError, match="not a statistics table"):
        Statistics.load(tmp_path / "bad")
    with pytest.raises(InputError, match="merged"):
        Moments(torch.ones(1), torch.ones(1)).merge(Moments(torch.ones(1), torch.ones(1)))
