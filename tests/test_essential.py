"""Scores of index sets beside loops in float64, written from their formulas."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.classfilters.ablation import essentiality
from pellucid.classfilters.accuracy import accuracy
from pellucid.classfilters.controls import compare, draw_like, random_sets
from pellucid.classfilters.curve import accuracy_curve, bootstrap
from pellucid.classfilters.overlap import confusion_overlap, expected_jaccard, jaccard, mutual_information
from pellucid.classfilters.selectivity import class_selectivity, psi
from pellucid.classfilters.stability import agreement, stability
from pellucid.classfilters.top import top_sets
from pellucid.core.errors import InputError
from pellucid.core.measure.share import wilson
from pellucid.core.seeds import seed_of


@st.composite
def heads(draw):
    """Features, labels (imbalanced, some classes without images), weight, bias and sets of a random head."""
    n, width, classes = draw(st.integers(1, 12)), draw(st.integers(2, 9)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    features = torch.randn(n, width, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        features = features.relu().mul(2).round()  # ties
    labels = torch.randint(draw(st.integers(1, classes)), (n,), generator=generator)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64) if draw(st.booleans()) else None
    indices = st.lists(st.integers(0, width - 1), unique=True)
    sets = draw(st.lists(indices, min_size=classes, max_size=classes))
    return features, labels, weight, bias, sets


def answer(features, weight, bias, sets=None) -> int:
    """The class with the largest logit for one image, by loops."""
    logits = []
    for c, row in enumerate(weight.tolist()):
        chosen = range(len(row)) if sets is None else sets[c]
        logits.append(sum(float(features[j]) * row[j] for j in chosen) + (0.0 if bias is None else float(bias[c])))
    return logits.index(max(logits))


# --- accuracy ---


@given(heads())
@settings(max_examples=60)
def test_accuracy_counts_right_answers_of_the_decomposed_head(head):
    features, labels, weight, bias, sets = head
    for chosen in (None, sets):
        result = accuracy(features, labels, weight, bias, chosen)
        right = [answer(x, weight, bias, chosen) == c for x, c in zip(features, labels.tolist(), strict=True)]
        assert result.overall.correct == sum(right) and result.overall.n == len(right)
        assert result.overall.interval == wilson(sum(right), len(right))
        shares = []
        for c, share in enumerate(result.per_class):
            mine = [hit for hit, label in zip(right, labels.tolist(), strict=True) if label == c]
            assert (share.correct, share.n) == (sum(mine), len(mine))
            assert (share.value is None) == (not mine)
            shares += [statistics.fmean(mine)] if mine else []
        assert result.balanced == pytest.approx(statistics.fmean(shares))
        json.dumps(result.to_json(), allow_nan=False)


def twin(features, labels, weight, bias, sets, noise, by, draws, seed):
    """Right answers of each image (0 to 1), by loops, for influential, others, rest."""
    n, width = features.shape
    right = {name: [0.0] * n for name in ("influential", "others", "rest")}
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed_of(noise, seed, draw))
        if noise == "permutation":
            columns = [features[torch.randperm(n, generator=generator), j] for j in range(width)]
            replacement = torch.stack(columns, 1)
        elif noise == "mean":
            replacement = torch.stack([features[:, j].mean() for j in range(width)]).expand(n, width)
        else:
            replacement = torch.randn(n, width, generator=generator, dtype=features.dtype)
        keys = torch.rand(len(weight), width, generator=torch.Generator().manual_seed(seed_of("others", seed, draw)))
        for i in range(n):
            whose = int(labels[i]) if by == "label" else answer(features[i], weight, bias)
            outside = [j for j in range(width) if j not in sets[whose]]
            drawn = sorted(outside, key=lambda j: float(keys[whose, j]))[: len(sets[whose])]
            for name, hit in (("influential", sets[whose]), ("others", drawn), ("rest", outside)):
                mixed = [float(replacement[i, j] if j in hit else features[i, j]) for j in range(width)]
                right[name][i] += (answer(mixed, weight, bias) == int(labels[i])) / draws
    return right


@given(heads(), st.sampled_from(["gaussian", "permutation", "mean"]), st.sampled_from(["label", "answer"]))
@settings(max_examples=60)
def test_essentiality_is_that_of_loops(head, noise, by):
    features, labels, weight, bias, sets = head
    result = essentiality(features, labels, weight, bias, sets, noise=noise, by=by, draws=2, seed=3)
    expected = twin(features, labels, weight, bias, sets, noise, by, 2, 3)
    for name, right in expected.items():
        found = getattr(result, name)
        assert found.overall.correct == pytest.approx(sum(right))
        for c, share in enumerate(found.per_class):
            assert share.correct == pytest.approx(
                sum(hit for hit, label in zip(right, labels.tolist(), strict=True) if label == c)
            )
        low, high = found.overall.interval
        assert low <= found.overall.value <= high
    assert result.before == accuracy(features, labels, weight, bias)
    json.dumps(result.to_json(), allow_nan=False)


def test_features_are_disturbed_stretch_by_stretch_just_as_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features, weight = torch.randn(50, 6, generator=generator), torch.randn(3, 6, generator=generator)
    labels, sets = torch.arange(50) % 3, [[0, 1], [2], [3, 4, 5]]
    for noise in ("permutation", "mean"):
        whole = essentiality(features, labels, weight, None, sets, noise=noise, draws=3)
        with monkeypatch.context() as patch:
            patch.setattr("pellucid.classfilters.ablation.CHUNK", 42)
            assert essentiality(features, labels, weight, None, sets, noise=noise, draws=3) == whole


def test_essentiality_tells_the_right_sets_from_backward_ones():
    """Class c is decided by filters 2c and 2c + 1; noise there destroys, noise elsewhere does not."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(400) % 4
    features = torch.rand(400, 20, generator=generator)
    weight = torch.full((4, 20), 0.0)
    for c in range(4):
        features[labels == c, 2 * c : 2 * c + 2] += 3
        weight[c, 2 * c : 2 * c + 2] = 1
    good = [[2 * c, 2 * c + 1] for c in range(4)]
    bad = [[10 + c, 15 + c] for c in range(4)]
    for noise, by in itertools.product(("gaussian", "permutation", "mean"), ("label", "answer")):
        # A class's own mean holds a quarter of its evidence, which is enough here: ablate to nothing instead.
        means = torch.zeros(20) if noise == "mean" else None
        found = essentiality(features, labels, weight, None, good, noise=noise, by=by, means=means)
        assert found.before.overall.value == 1.0
        assert found.influential.overall.value < 0.6 < 0.9 < found.others.overall.value
        wrong = essentiality(features, labels, weight, None, bad, noise=noise, by=by)
        assert wrong.influential.overall.value == pytest.approx(1.0)


def test_seeds_decide_draws_and_given_means_are_used():
    generator = torch.Generator().manual_seed(2)
    features, weight = torch.randn(80, 8, generator=generator), torch.randn(4, 8, generator=generator)
    labels, sets = torch.arange(80) % 4, [[0, 1, 2], [3, 4], [5, 6, 7], [0, 7]]
    runs = [essentiality(features, labels, weight, None, sets, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    away = essentiality(features, labels, weight, None, sets, noise="mean", means=torch.full((8,), 50.0))
    by_hand = features.clone()
    for row, label in zip(by_hand, labels.tolist(), strict=True):
        row[sets[label]] = 50.0
    assert away.influential.overall.correct == ((by_hand @ weight.T).argmax(1) == labels).sum()


# --- curve ---


def test_the_curve_is_accuracy_by_k_beside_random_sets():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(300, 12, generator=generator)
    weight, bias = torch.randn(5, 12, generator=generator), torch.randn(5, generator=generator)
    labels = (features @ weight.T + bias).argmax(1)
    scores = weight.abs()
    sets = {k: top_sets(scores, k) for k in (12, 1, 6)}
    curve = accuracy_curve(features, labels, weight, bias, sets, draws=4, resamples=200)
    assert [point.k for point in curve] == [1, 6, 12]
    for point in curve:
        direct = accuracy(features, labels, weight, bias, sets[point.k])
        assert point.accuracy == pytest.approx(direct.overall.value) and point.per_class == direct.per_class
        assert point.filters == point.k
        for value, (low, high) in ((point.accuracy, point.interval), (point.random, point.random_interval)):
            assert low <= value <= high
    assert curve[-1].accuracy == curve[-1].random == 1.0  # all filters: the labels are the head's own answers
    assert curve[1].accuracy > curve[1].random_interval[1]
    again = accuracy_curve(features, labels, weight, bias, sets, draws=4, resamples=200)
    assert again == curve
    zero = {6: (torch.zeros(5, 12), torch.eye(5)[2])}
    fitted = accuracy_curve(features, labels, weight, bias, sets, fitted=zero, draws=1, resamples=2)
    assert fitted[1].accuracy == pytest.approx(float((labels == 2).double().mean()))


def test_top_sets_take_the_largest_and_the_earlier_of_equals():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_sets(scores, 3) == ((1, 2, 3), (0, 1, 2))
    assert top_sets(scores, 3, positive=True) == ((1, 2, 3), ())
    assert top_sets(scores, 1, budget=5) == ((1, 2, 3, 0), (0,))
    assert top_sets(scores, 1, budget=5, positive=True) == ((1, 2, 3, 0), ())


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6), st.booleans())
@settings(max_examples=40)
def test_top_sets_are_those_of_sorted_lists(seed, classes, width, positive):
    scores = torch.randint(-2, 3, (classes, width), generator=torch.Generator().manual_seed(seed)).double()
    entries = sorted(((-value, c, j) for c, row in enumerate(scores.tolist()) for j, value in enumerate(row)))
    kept = [entry for entry in entries if entry[0] < 0 or not positive]
    for k in range(1, width + 1):
        expected = tuple(tuple(j for _, c, j in kept if c == number)[:k] for number in range(classes))
        assert top_sets(scores, k, positive=positive) == expected
    for budget in range(1, classes * width + 1):
        spent = [entry for entry in entries[:budget] if entry in kept]
        expected = tuple(tuple(j for _, c, j in spent if c == number) for number in range(classes))
        assert top_sets(scores, 1, budget=budget, positive=positive) == expected


# --- controls ---


def test_random_sets_have_the_sizes_of_those_that_they_stand_for():
    generator = torch.Generator().manual_seed(8)
    features, weight = torch.randn(200, 9, generator=generator), torch.randn(4, 9, generator=generator)
    labels = (features @ weight.T).argmax(1)
    sets, other = [[8, 1, 0], [], [3], list(range(9))], [[0], [1], [2], [3]]
    seen = {}

    def score(named):
        seen.update(named)
        return {name: torch.as_tensor(predicted(features, weight, one) == labels) for name, one in named.items()}

    found = compare(score, sets, 9, others={"other": other}, draws=6, seed=1)
    assert list(seen) == ["chosen", "other", *(f"random {draw}" for draw in range(6))]
    assert found.drawn == draw_like(sets, 9, draws=6, seed=1) == tuple(seen[f"random {draw}"] for draw in range(6))
    assert len(set(found.drawn)) == 6 and found.drawn != draw_like(sets, 9, draws=6, seed=2)
    for drawn in found.drawn:
        assert [len(one) for one in drawn] == [3, 0, 1, 9] and all(len(set(one)) == len(one) for one in drawn)
    assert found.chosen.filters == found.random.filters == 13 / 4 and found.others["other"].filters == 1
    for row, which in ((found.chosen, [sets]), (found.random, found.drawn), (found.others["other"], [other])):
        each = [float((predicted(features, weight, one) == labels).double().mean()) for one in which]
        assert row.share.value == pytest.approx(statistics.fmean(each)) and row.share.n == 200
        assert row.range == pytest.approx((min(each), max(each)))


def predicted(features, weight, sets):
    """Predictions of a head that reads only `sets`, by a loop over its classes."""
    logits = [features[:, list(one)] @ weight[c, list(one)] for c, one in enumerate(sets)]
    return torch.stack(logits, 1).argmax(1)


def test_the_bootstrap_has_its_known_spread():
    """Of 0 and 1 over n images, a mean over resamples is binomial; rows that differ add their own spread."""
    right = (torch.arange(400) < 300).double()[None]
    low, high = bootstrap(right, resamples=2000, seed=1)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.006) and high == pytest.approx(0.75 + half, abs=0.006)
    rows = torch.tensor([[0.0], [1.0]]).expand(2, 400)
    assert bootstrap(rows, resamples=500) == (0.0, 1.0)
    assert bootstrap(torch.ones(3, 9)) == (1.0, 1.0)


# --- sets beside sets ---

SETS = st.integers(2, 9).flatmap(
    lambda width: st.tuples(
        st.just(width), st.lists(st.lists(st.integers(0, width - 1), unique=True), min_size=2, max_size=6)
    )
)


@given(SETS)
@settings(max_examples=60)
def test_mutual_information_is_that_of_scikit_learn(case):
    from sklearn.metrics import mutual_info_score

    width, sets = case
    vectors = [[int(j in chosen) for j in range(width)] for chosen in sets]
    table = [[mutual_info_score(a, b) for b in vectors] for a in vectors]
    found = mutual_information(sets, width)
    assert found.mean == pytest.approx(np.mean(table), abs=1e-12)
    assert found.itself == pytest.approx(np.mean(np.diag(table)), abs=1e-12)
    off = [table[a][b] for a in range(len(sets)) for b in range(len(sets)) if a != b]
    assert found.others == pytest.approx(np.mean(off), abs=1e-12)


def test_mutual_information_by_its_formula_to_twelve_digits():
    sets = random_sets([5] * 10, 64, seed=4)
    total = 0.0
    for a, b in itertools.product(sets, sets):
        for u, v in itertools.product((0, 1), (0, 1)):
            both = sum((j in a) == u and (j in b) == v for j in range(64)) / 64
            one, other = sum((j in a) == u for j in range(64)) / 64, sum((j in b) == v for j in range(64)) / 64
            total += both * math.log(both / (one * other)) if both else 0.0
    found = mutual_information(sets, 64)
    assert abs(found.mean - total / 100) < 1e-13
    entropy = -(5 / 64 * math.log(5 / 64) + 59 / 64 * math.log(59 / 64))
    assert found.itself == pytest.approx(entropy, abs=1e-13)
    assert f"{found.itself:.6f}" == "0.274166"


@given(SETS)
@settings(max_examples=60)
def test_jaccard_and_its_chance_level(case):
    width, sets = case
    found = jaccard(sets, width)
    values = []
    for a, b in itertools.product(range(len(sets)), repeat=2):
        one, other = set(sets[a]), set(sets[b])
        value = len(one & other) / len(one | other) if one | other else 1.0
        assert float(found.pairs[a, b]) == pytest.approx(value)
        values += [value] if a != b else []
    assert found.mean == pytest.approx(statistics.fmean(values))
    chance = [expected_jaccard(len(a), len(b), width) for a, b in itertools.permutations(sets, 2)]
    assert found.chance == pytest.approx(statistics.fmean(chance))


@pytest.mark.parametrize(("a", "b", "width"), [(1, 1, 4), (2, 3, 5), (4, 2, 6), (0, 2, 3), (0, 0, 3), (5, 5, 5)])
def test_the_chance_level_is_the_mean_over_all_sets(a, b, width):
    values = []
    for one in itertools.combinations(range(width), a):
        for other in itertools.combinations(range(width), b):
            either = set(one) | set(other)
            values.append(len(set(one) & set(other)) / len(either) if either else 1.0)
    assert expected_jaccard(a, b, width) == pytest.approx(statistics.fmean(values), abs=1e-14)


# --- selectivity ---


@given(heads(), st.floats(0.05, 1.0), st.booleans())
@settings(max_examples=60)
def test_psi_counts_the_filters_that_hold_a_share(head, share, mean):
    features, labels, weight, _, _ = head
    responses, classes = features.abs(), len(weight)
    found = psi(responses, labels, classes, share=share, mean=mean)
    for c in range(classes):
        counts = []
        for row, label in zip(responses.tolist(), labels.tolist(), strict=True):
            if label == c and sum(row) > 0:
                held, ordered = 0.0, sorted(row, reverse=True)
                for m, value in enumerate(ordered, 1):
                    held += value
                    if held >= share * sum(row) * (1 - 1e-12):
                        counts.append(m)
                        break
        width = responses.shape[1]
        if not counts:
            assert math.isnan(found[c])
        elif abs(share - 1) > 1e-9:
            middle = statistics.fmean(counts) if mean else statistics.median(counts)
            assert float(found[c]) == pytest.approx((width - middle) / width)


def test_psi_of_one_and_of_equal_filters():
    labels = torch.tensor([0, 0, 1, 2])
    responses = torch.tensor([[0.0, 5, 0, 0], [2, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    found = psi(responses, labels, 4)
    assert found[:2].tolist() == [0.75, 0.5] and found[2:].isnan().all()
    assert psi(responses, labels, 4, share=1.0)[1] == 0.0


@given(heads())
@settings(max_examples=60)
def test_class_selectivity_is_of_class_means(head):
    features, labels, weight, _, _ = head
    responses, present = features.abs(), sorted(set(labels.tolist()))
    if len(present) < 2:
        with pytest.raises(InputError, match="at least two"):
            class_selectivity(responses, labels, len(weight))
        return
    found = class_selectivity(responses, labels, len(weight))
    for j in range(responses.shape[1]):
        means = sorted(
            statistics.fmean(v for v, c in zip(responses[:, j].tolist(), labels.tolist(), strict=True) if c == which)
            for which in present
        )
        largest, rest = means[-1], statistics.fmean(means[:-1])
        expected = (largest - rest) / (largest + rest) if largest + rest else 0.0
        assert float(found[j]) == pytest.approx(expected, abs=1e-12)


def test_more_images_of_a_class_change_no_index_and_gradients_flow():
    generator = torch.Generator().manual_seed(5)
    responses, labels = torch.rand(30, 7, generator=generator).double(), torch.arange(30) % 3
    more = torch.cat([responses, *[responses[labels == 1]] * 9])
    more_labels = torch.cat([labels, torch.ones(90, dtype=torch.int64)])
    one, other = (class_selectivity(r, c, 3) for r, c in ((responses, labels), (more, more_labels)))
    assert torch.allclose(one, other, atol=1e-12)
    assert torch.equal(psi(responses, labels, 3), psi(more, more_labels, 3))
    leaf = torch.cat([responses, torch.zeros(30, 1, dtype=torch.float64)], 1).requires_grad_()
    class_selectivity(leaf, labels, 3).mean().backward()
    assert leaf.grad.isfinite().all() and leaf.grad[:, :7].abs().sum() > 0


# --- stability, and overlap beside confusion ---


def test_stability_compares_halves_and_samples():
    generator = torch.Generator().manual_seed(6)
    labels = torch.arange(120) % 3
    features = torch.randn(120, 10, generator=generator) + torch.randn(3, 10, generator=generator)[labels]
    seen = []

    def select(rows):
        seen.append(rows)
        means = torch.stack([features[rows][labels[rows] == c].sum(0) for c in range(3)])
        return top_sets(means, 3)

    rows = stability(select, 120, 10, sizes=[10, 60, 120], draws=5, seed=1)
    assert [(row.images, row.against) for row in rows] == [(60, "half"), (10, "all"), (60, "all"), (120, "all")]
    for one, other in zip(seen[1:11:2], seen[2:11:2], strict=True):
        assert not set(one.tolist()) & set(other.tolist()) and len(one) == len(other) == 60
    assert rows[1].mean < rows[2].mean < rows[3].mean == 1.0
    for row in rows:
        assert row.interval[0] <= row.mean <= row.interval[1]
        assert row.chance == pytest.approx(expected_jaccard(3, 3, 10)) and row.mean > row.chance
    assert rows == stability(select, 120, 10, sizes=[10, 60, 120], draws=5, seed=1)


@given(st.integers(3, 7), st.integers(0, 10**6))
@settings(max_examples=40)
def test_association_is_spearmans_over_pairs(classes, seed):
    from scipy.stats import spearmanr  # it comes with scikit-learn

    generator = torch.Generator().manual_seed(seed)
    overlap = torch.randint(4, (classes, classes), generator=generator).double() / 3
    overlap = (overlap + overlap.T) / 2
    confusion = torch.randint(6, (classes, classes), generator=generator) + torch.eye(classes).long()
    found = confusion_overlap(overlap, confusion, permutations=19)
    x, y = [], []
    for a, b in itertools.combinations(range(classes), 2):
        x.append(float(overlap[a, b]))
        counts = [int(value) for value in (confusion[a, b], confusion[a].sum(), confusion[b, a], confusion[b].sum())]
        y.append(float(Fraction(counts[0], counts[1]) + Fraction(counts[2], counts[3])))  # true ties stay ties
    assert found.pairs == len(x)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found.rho is None and found.p is None
    else:
        assert found.rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-6)
        assert 1 / 20 <= found.p <= 1


def test_a_class_without_images_has_no_pairs_and_a_true_relation_has_a_small_p():
    generator = torch.Generator().manual_seed(7)
    likeness = torch.rand(9, 9, generator=generator).double()
    likeness = likeness + likeness.T
    confusion = (1000 * likeness).long()
    confusion.fill_diagonal_(5000)
    confusion[4] = 0
    found = confusion_overlap(likeness, confusion, permutations=199)
    assert found.pairs == 28 and found.rho > 0.9 and found.p == 1 / 200
    unrelated = torch.rand(9, 9, generator=generator).double()
    assert confusion_overlap(unrelated + unrelated.T, confusion, permutations=199).p > 0.05


# --- refusals ---

FEATURES, LABELS, WEIGHT = torch.rand(4, 3), torch.tensor([0, 1, 1, 0]), torch.rand(2, 3)
SETS_ = [[0], [1, 2]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: accuracy(FEATURES[:, :2], LABELS, WEIGHT), "do not fit: give"),
        (lambda: accuracy(FEATURES, LABELS[:2], WEIGHT), "Labels"),
        (lambda: accuracy(FEATURES, LABELS.float(), WEIGHT), "int64"),
        (lambda: accuracy(FEATURES[:0], LABELS[:0], WEIGHT), "at least one"),
        (lambda: accuracy(FEATURES, LABELS + 1, WEIGHT), "1 to 2"),
        (lambda: accuracy(FEATURES, LABELS, WEIGHT, torch.rand(3)), "bias"),
        (lambda: accuracy(FEATURES, LABELS, WEIGHT, sets=[[0]]), "1 sets of filters for 2"),
        (lambda: accuracy(FEATURES, LABELS, WEIGHT, sets=[[0], [3]]), r"\[3\] of class 1"),
        (lambda: accuracy(FEATURES, LABELS, WEIGHT, sets=[[0, 0], [1]]), r"\[0, 0\] of class 0"),
        (lambda: essentiality(FEATURES, LABELS, WEIGHT, None, SETS_, noise="loud"), "'loud'"),
        (lambda: essentiality(FEATURES, LABELS, WEIGHT, None, SETS_, by="luck"), "'luck'"),
        (lambda: essentiality(FEATURES, LABELS, WEIGHT, None, SETS_, draws=0), "draws=0"),
        (lambda: essentiality(FEATURES, LABELS, WEIGHT, None, SETS_, means=torch.rand(2)), "means"),
        (lambda: top_sets(WEIGHT, 4), "k=4"),
        (lambda: draw_like(SETS_, 3, draws=0), "draws=0"),
        (lambda: accuracy_curve(FEATURES, LABELS, WEIGHT, None, {1: SETS_}, resamples=0), "resamples=0"),
        (lambda: mutual_information([[0]], 3), "at least two"),
        (lambda: jaccard([[0], [7]], 3), r"\[7\]"),
        (lambda: expected_jaccard(4, 1, 3), "4 and 1"),
        (lambda: psi(-FEATURES, LABELS, 2), "negative"),
        (lambda: psi(FEATURES, LABELS, 2, share=0), "share=0"),
        (lambda: class_selectivity(FEATURES - 2, LABELS, 2), "ReLU"),
        (lambda: class_selectivity(FEATURES, LABELS, 1), "0 to 0"),
        (lambda: stability(lambda rows: SETS_, 1, 3), "1 images"),
        (lambda: stability(lambda rows: SETS_, 4, 3, sizes=[5]), "5 images"),
        (lambda: agreement([[0]], [[0], [1]]), "same classes"),
        (lambda: confusion_overlap(torch.rand(3, 3), torch.ones(2, 2)), "classes, classes"),
        (lambda: confusion_overlap(torch.rand(2, 2), torch.ones(2, 2)), "at least three"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_class_filters_measure_their_own_essentiality():
    import pellucid
    from pellucid.classfilters.responses import responses
    from pellucid.core.measure.pairs import open_data

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    filters = pellucid.decompose(model, "digits", k=3)
    found = filters.essential(model, "digits", noise="permutation", seed=2)
    features, labels, head = responses(model, open_data(model, "digits", "test"))
    twin = essentiality(features, labels, head.weight, head.bias, filters.indices, noise="permutation", seed=2)
    assert found == twin
    few = filters.essential(model, "digits", noise="permutation", draws=3, seed=2)
    assert few.draws == 3 and few != found
    assert few == essentiality(
        features, labels, head.weight, head.bias, filters.indices, noise="permutation", draws=3, seed=2
    )
    with pytest.raises(InputError, match="draws=0"):
        filters.essential(model, "digits", draws=0)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    with pytest.raises(InputError, match="32 filters"):
        filters.essential(other, "digits")
