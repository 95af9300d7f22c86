"""Evaluation beside per-image loops, and Wilson's interval beside scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError
from pellucid.core.facts import declare
from pellucid.core.measure.evaluate import Score, evaluate, predict
from pellucid.core.measure.fits import check_fits
from pellucid.core.measure.share import wilson


@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(n, share, level):
    from scipy.stats import binomtest

    k = round(share * n)
    low, high = wilson(k, n, level)
    theirs = binomtest(k, n).proportion_ci(level, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= low <= k / n <= high <= 1


def test_wilson_of_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def plain_twin(logits: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    """Every number by a loop over images, in float64."""
    k = logits.shape[1]
    confusion = np.zeros((k, k), int)
    loss = top5 = 0.0
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        guess = int(np.argmax(row))
        confusion[label, guess] += 1
        loss -= math.log(p[label])
        top5 += label in np.argsort(-row)[:5]
        bins[min(14, math.ceil(p[guess] * 15) - 1)].append((p[guess], guess == label))
    n = len(labels)
    ece = sum(abs(sum(c for c, _ in b) - sum(r for _, r in b)) / n for b in bins)
    return {"confusion": confusion.tolist(), "loss": loss / n, "top5": top5 / n, "ece": ece}


@pytest.mark.parametrize("classes", [2, 5, 7])
def test_score_equals_the_twin(classes):
    logits, labels = 3 * torch.randn(103, classes), torch.randint(0, classes, (103,))
    labels[labels == 1] = 0  # a class without images
    score = Score(tuple(map(str, range(classes))))
    for part in (slice(0, 40), slice(40, 41), slice(41, None)):
        score.add(logits[part], labels[part])
    result, twin = score.result(), plain_twin(logits.numpy(), labels.numpy())
    assert result.confusion == twin["confusion"]
    assert result.loss == pytest.approx(twin["loss"], rel=1e-5)
    assert result.ece == pytest.approx(twin["ece"], abs=1e-5)
    assert result.top5 == (pytest.approx(twin["top5"]) if classes > 5 else None)
    assert result.n == 103
    assert result.top1 == np.trace(np.array(twin["confusion"])) / 103
    assert result.classes == tuple(map(str, range(classes)))
    empty = result.per_class[1]
    assert (empty.n, empty.value, empty.interval) == (0, None, (0.0, 1.0))
    shares = [(share.correct, share.n) for share in result.per_class]
    confusion = np.array(twin["confusion"])
    assert shares == [*zip(np.diag(confusion).tolist(), confusion.sum(1).tolist(), strict=True)]


def linear(dataset) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(dataset.channels * math.prod(dataset.image_size), len(dataset.classes))
    )


def test_evaluate_reads_every_image_once_and_leaves_the_model_as_it_was():
    digits = load_data("digits")
    model = linear(digits).train()
    results = [evaluate(model, digits, "test", batch_size=size) for size in (7, 450, 1000)]
    assert model.training
    assert all(r.confusion == results[0].confusion for r in results)
    assert results[0].n == 450
    assert [share.n for share in results[0].per_class] == torch.bincount(digits.test.labels).tolist()
    assert results[0].to_json()["top1"] == results[0].top1


class Sent(nn.Sequential):
    """Notes where it is sent."""

    def to(self, *args, **kwargs):
        self.__dict__.setdefault("sent", []).append(args)
        return super().to(*args, **kwargs)


def test_a_model_is_evaluated_where_it_is_unless_a_device_is_named():
    digits = load_data("digits")
    model = Sent(linear(digits))
    found = evaluate(model, "digits")
    assert "sent" not in vars(model) and found.n == 450
    assert evaluate(model, digits, device="cpu").confusion == found.confusion
    assert [args[0] for args in model.sent] == ["cpu"]


def test_a_models_own_normalisation_wins():
    digits = load_data("digits")
    model = linear(digits)
    plain = evaluate(model, digits, "val")
    declare(model, normalization={"mean": [0.0], "std": [0.1]})
    x = digits.val.fetch(torch.arange(len(digits.val))).float() / 255
    logits = model((x - 0.0) / 0.1)
    assert evaluate(model, digits, "val").loss == pytest.approx(
        nn.functional.cross_entropy(logits, digits.val.labels).item(), rel=1e-4
    )
    assert evaluate(model, digits, "val").loss != plain.loss


def test_predict_is_in_evaluation_mode_only_meanwhile():
    digits = load_data("digits")
    model = nn.Sequential(linear(digits), nn.Dropout(0.5)).train()
    from pellucid.core.data.batches import batches

    stream = batches(digits.val, 64, mean=digits.mean, std=digits.std)
    for _, logits in predict(model, stream):
        assert not model.training
        assert not logits.requires_grad
        break
    assert model.training


def test_models_that_do_not_fit_are_refused():
    digits = load_data("digits")
    with pytest.raises(InputError, match=r"cannot take images of 1 channels and 8x8"):
        check_fits(nn.Conv2d(3, 10, 3), digits)
    with pytest.raises(InputError, match=r"\(1, 7\).*10 classes"):
        check_fits(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), digits)
    with pytest.raises(InputError, match="tuple"):
        evaluate(type("Two", (nn.Module,), {"forward": lambda self, x: (x, x)})(), digits)
    model = linear(digits)
    declare(model, classes=("cat", "dog"))
    with pytest.raises(InputError, match="trained on the classes cat, dog"):
        check_fits(model, digits)
