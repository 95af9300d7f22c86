"""Class-specific filters against loops over single images in float64; the head against a masked dense layer."""

from __future__ import annotations

import copy
import json
import shlex

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid.classfilters.compare_heads import compare_heads
from pellucid.classfilters.edit import remove_class
from pellucid.classfilters.evidence import measure
from pellucid.classfilters.find import decompose
from pellucid.classfilters.fit import fit
from pellucid.classfilters.head import DecomposedHead, head_of
from pellucid.classfilters.install import cut, head_from
from pellucid.classfilters.judge import Judge
from pellucid.classfilters.lasso import lasso_paths
from pellucid.classfilters.last_layer import find_head
from pellucid.classfilters.logistic import fit_features
from pellucid.classfilters.omp import omp
from pellucid.classfilters.responses import responses
from pellucid.classfilters.rules import RULES, choose
from pellucid.classfilters.sets import ClassFilters
from pellucid.classfilters.stored import with_file
from pellucid.cli import main
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.files.tensors import save_tensors
from pellucid.core.measure.evaluate import evaluate
from pellucid.core.measure.pairs import open_data
from pellucid.core.network.checkpoint import load, save
from pellucid.core.source import open_source


def linear_net(weight: np.ndarray, bias: np.ndarray) -> nn.Sequential:
    """Images are responses: a network that is nothing but its last layer."""
    net = nn.Sequential(nn.Identity(), nn.Linear(weight.shape[1], weight.shape[0])).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.from_numpy(weight))
        net[1].bias.copy_(torch.from_numpy(bias))
    return net.eval()


@st.composite
def problems(draw):
    """(responses (N, C) >= 0, labels, weight, bias, k): with ties, constant features, classes of one image."""
    classes, width = draw(st.integers(2, 4)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, draw(st.integers(0, 16)))])
    if draw(st.booleans()):
        labels[labels == 1] = 0
        labels[1] = 1  # a class with one image
    whole = draw(st.booleans())
    a = rng.integers(0, 4, (len(labels), width)) if whole else rng.gamma(1.0, 1.0, (len(labels), width))
    a = a.astype(float)
    if draw(st.booleans()):
        a[:, rng.integers(width)] = draw(st.sampled_from([0.0, 3.0]))
    weight = (rng.integers(-3, 4, (classes, width)) if whole else rng.normal(size=(classes, width))).astype(float)
    return a, labels, weight, rng.normal(size=classes), draw(st.integers(1, width))


# --- slow twins ---


def twin_scores(a, labels, weight, k, rule):
    """(K, C), one image after another."""
    classes, width = weight.shape
    scores = np.zeros((classes, width))
    for c in range(classes):
        images = [a[i] for i in range(len(a)) if labels[i] == c]
        for row in images:
            top = sorted(range(width), key=lambda j: (-row[j], j))[:k]
            for j in range(width):
                if rule == "frequency":
                    scores[c, j] += j in top and row[j] > 0
                elif rule == "mass":
                    scores[c, j] += row[j] / sum(row) if j in top and row[j] > 0 else 0.0
                elif rule in ("evidence", "gradient"):
                    scores[c, j] += weight[c, j] * row[j]
                elif rule == "weight":
                    scores[c, j] += weight[c, j]
        scores[c] /= len(images)
    return scores


def twin_error(a, target, chosen):
    """Mean squared error of the best affine function of the chosen responses, its weights and bias."""
    design = np.column_stack([a[:, list(chosen)], np.ones(len(a))])
    values, *_ = np.linalg.lstsq(design, target, rcond=1e-10)
    return np.mean((design @ values - target) ** 2), values[:-1], values[-1]


def twin_pursuit(a, target, k):
    """Greedy: every candidate is tried by a least-squares fit to all images."""
    chosen, drops = [], []
    error = twin_error(a, target, chosen)[0]
    start = error
    while len(chosen) < k:
        trials = {j: twin_error(a, target, [*chosen, j])[0] for j in range(a.shape[1]) if j not in chosen}
        best = min(trials, key=trials.get)
        if error - trials[best] <= 1e-9 * start + 1e-18:
            break
        chosen.append(best)
        drops.append(error - trials[best])
        error = trials[best]
    return chosen, drops


def twin_lasso(gram, target, penalty):
    """Lasso by coordinate descent, thousands of rounds."""
    values = np.zeros(len(target))
    for _ in range(3000):
        for j in range(len(target)):
            rest = target[j] - gram[j] @ values + gram[j, j] * values[j]
            values[j] = np.sign(rest) * max(abs(rest) - penalty, 0) / gram[j, j]
    return values


# --- the pass and the rules ---


@settings(max_examples=60)
@given(problems(), st.sampled_from(["frequency", "mass", "evidence", "weight", "gradient"]), st.integers(1, 30))
def test_rules_equal_loops_over_images(problem, rule, batch_size):
    a, labels, weight, bias, k = problem
    net = linear_net(weight, bias)
    data = torch.from_numpy(a), torch.from_numpy(labels)
    found = decompose(net, data, k, rule, batch_size=batch_size)
    expected = twin_scores(a, labels, weight, k, rule)
    np.testing.assert_allclose(found.scores.numpy(), expected, rtol=1e-5, atol=1e-6)
    for c, chosen in enumerate(found.indices):
        best = sorted((s for s in expected[c] if s > 1e-12), reverse=True)[:k]
        np.testing.assert_allclose([expected[c, j] for j in chosen], best, rtol=1e-9, atol=1e-9)
        whole = sum(s for s in expected[c] if s > 0)
        np.testing.assert_allclose(found.shares[c], [s / whole for s in best], rtol=1e-6)
    assert found.layer == "1" and found.width == weight.shape[1] and found.rule == rule
    assert found.weights is None


def test_of_equal_filters_the_first_is_taken():
    a = np.ones((6, 5))
    net = linear_net(np.ones((2, 5)), np.zeros(2))
    data = torch.from_numpy(a), torch.tensor([0, 1] * 3)
    for rule in ("frequency", "mass", "evidence", "weight", "gradient"):
        assert decompose(net, data, 2, rule).indices == ((0, 1), (0, 1))
    assert decompose(net, data, 2, "evidence", budget=3).indices == ((0, 1, 2), ())


@settings(max_examples=30)
@given(problems(), st.integers(1, 30))
def test_pursuit_and_refit_equal_least_squares_on_all_images(problem, batch_size):
    a, labels, weight, bias, k = problem
    net = linear_net(weight, bias)
    found = decompose(net, (torch.from_numpy(a), torch.from_numpy(labels)), k, "omp", batch_size=batch_size)
    assert found.weights is not None and found.bias is not None
    for c, chosen in enumerate(found.indices):
        target = a @ weight[c] + bias[c]
        expected, drops = twin_pursuit(a, target, k)
        got = [found.scores[c, j].item() for j in chosen]
        assert len(got) == len(expected)
        error, values, offset = twin_error(a, target, chosen)
        scale = np.var(target) + 1e-9
        # Ties may be broken otherwise by rounding; what a set explains then still agrees up to the tie.
        if list(chosen) == expected:
            np.testing.assert_allclose(got, drops, rtol=1e-4, atol=1e-6 * scale)
        else:
            assert abs(got[0] - drops[0]) <= 1e-5 * scale
        np.testing.assert_allclose(sum(found.shares[c]), (np.var(target) - error) / scale, atol=1e-4)
        answer = a[:, list(chosen)] @ np.array(found.weights[c]) + found.bias[c]
        np.testing.assert_allclose(np.mean((answer - target) ** 2), error, atol=1e-7 * scale)
        if np.linalg.matrix_rank(np.column_stack([a[:, list(chosen)], np.ones(len(a))])) == len(chosen) + 1:
            np.testing.assert_allclose(found.weights[c], values, atol=1e-6)
            np.testing.assert_allclose(found.bias[c], offset, atol=1e-6)


def some_problem(seed=0, n=200, classes=3, width=9, shift=0.0):
    rng = np.random.default_rng(seed)
    a = rng.gamma(1.0, 1.0, (n, width)) + shift
    weight = rng.normal(size=(classes, width))
    labels = rng.integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    return a, labels, weight, rng.normal(size=classes)


@pytest.mark.parametrize("seed", range(4))
def test_pursuit_chooses_what_trying_every_filter_chooses(seed):
    a, _, weight, _ = some_problem(seed)
    indices, drops = omp(torch.from_numpy(weight), torch.from_numpy(np.cov(a.T, bias=True)), 5)
    for c in range(len(weight)):
        chosen, gains = twin_pursuit(a, a @ weight[c], 5)
        assert indices[c].tolist() == chosen
        np.testing.assert_allclose(drops[c], gains, rtol=1e-8)


def test_pursuit_spends_a_budget_where_the_error_falls_most():
    a, labels, weight, bias = some_problem()
    weight[0] *= 10
    data = torch.from_numpy(a), torch.from_numpy(labels)
    found = decompose(linear_net(weight, bias), data, rule="omp", budget=7)
    paths = [twin_pursuit(a, a @ row, 9) for row in weight]
    best = sorted((-drop, c) for c, (_, drops) in enumerate(paths) for drop in np.minimum.accumulate(drops))[:7]
    counts = [sum(c == entry[1] for entry in best) for c in range(3)]
    assert sum(map(len, found.indices)) == 7 and counts[0] > 2
    for chosen, (path, _) in zip(found.indices, paths, strict=True):
        assert list(chosen) == path[: len(chosen)]
    assert len(found.indices[0]) == max(map(len, found.indices))


@pytest.mark.parametrize("seed", range(3))
def test_lasso_sets_are_those_of_one_penalty(seed):
    a, labels, weight, bias = some_problem(seed)
    cov = np.cov(a.T, bias=True)
    deviation = np.sqrt(np.diag(cov))
    gram, targets = cov / np.outer(deviation, deviation), (weight @ cov) / deviation
    sets, scores = lasso_paths(torch.from_numpy(weight), torch.from_numpy(cov), 8)
    assert sum(map(len, sets)) == 8
    inside = min(float(scores[c, j]) for c, chosen in enumerate(sets) for j in chosen)
    outside = max(float(scores[c, j]) for c, chosen in enumerate(sets) for j in range(9) if j not in chosen)
    assert inside > outside
    for c, chosen in enumerate(sets):
        values = twin_lasso(gram, targets[c], (inside + outside) / 2)
        assert set(chosen) == set(np.flatnonzero(np.abs(values) > 1e-9))
    data = torch.from_numpy(a), torch.from_numpy(labels)
    found = decompose(linear_net(weight, bias), data, rule="l1", budget=8)
    assert found.indices == tuple(map(tuple, sets))
    assert found.weights is not None and sum(map(len, decompose(linear_net(weight, bias), data, 2, "l1").indices)) == 6


def test_lasso_takes_the_whole_budget_and_no_constant_filter():
    a, labels, weight, bias = some_problem(classes=2, width=4)
    a[:, 2] = 1.0
    found = decompose(linear_net(weight, bias), (torch.from_numpy(a), torch.from_numpy(labels)), rule="l1", budget=8)
    assert [sorted(chosen) for chosen in found.indices] == [[0, 1, 3], [0, 1, 3]]


class Small(nn.Module):
    """Two convolutions with an in-place activation, and a head."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 5, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.two = nn.Conv2d(5, 6, 3)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.act(self.two(self.act(self.one(x)))).mean((2, 3)))


def test_gradient_of_an_inner_layer_equals_single_images():
    torch.manual_seed(0)
    net, x, labels = Small().double().train(), torch.randn(13, 2, 6, 5).double(), torch.arange(13) % 3
    found = decompose(net, (x, labels), 2, "gradient", "one", batch_size=4)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for image, label in zip(x, labels, strict=True):
        response = net.one(image[None]).detach().requires_grad_()
        logit = net.head(F.relu(net.two(F.relu(response))).mean((2, 3)))[0, label]
        (slope,) = torch.autograd.grad(logit, response)
        expected[label] += (response * slope).sum((0, 2, 3)).detach()
    expected /= torch.bincount(labels)[:, None]
    torch.testing.assert_close(found.scores.double(), expected, rtol=1e-5, atol=1e-6)
    assert found.layer == "one" and found.width == 5
    assert net.training and all(parameter.grad is None for parameter in net.parameters())
    assert not net.one._forward_hooks
    with pytest.raises(InputError, match="last layer"):
        found.apply(net)


def test_responses_of_an_inner_layer_are_means_over_positions():
    torch.manual_seed(0)
    net, x, labels = Small().double(), torch.randn(9, 2, 6, 5).double(), torch.arange(9) % 3
    seen = measure(net, (x, labels), "two")
    with torch.no_grad():
        expected = net.two(F.relu(net.one(x))).mean((2, 3))
    for c in range(3):
        torch.testing.assert_close(seen.mean[c], expected[labels == c].mean(0))
    with pytest.raises(InputError, match="responses down to"):
        decompose(net, (x, labels), 2, "frequency", "two")
    with pytest.raises(InputError, match="more than once"):
        measure(net, (x, labels), "act")
    with pytest.raises(InputError, match="inner layer"):
        decompose(net, (x, labels), 2, "evidence", "two")
    assert decompose(net, (x, labels), 2, "evidence", "head").indices == decompose(net, (x, labels), 2).indices


@settings(max_examples=20)
@given(problems(), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_the_pass_does_not_depend_on_batches(problem, sizes):
    a, labels, weight, bias, k = problem
    a = a + 1e4
    net = linear_net(weight, bias)
    x, y = torch.from_numpy(a), torch.from_numpy(labels)
    cuts = [part for part in np.split(np.arange(len(a)), np.cumsum(sizes)) if len(part)]
    batched = measure(net, ((x[part], y[part]) for part in cuts), tops=(k,), covariance=True)
    whole = measure(net, (x, y), tops=(k,), covariance=True, batch_size=1000)
    torch.testing.assert_close(batched.mean, whole.mean, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(batched.cov, whole.cov, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(whole.cov, np.cov(a.T, bias=True).reshape(whole.cov.shape), atol=1e-7)
    torch.testing.assert_close(batched.total, whole.total, rtol=1e-12, atol=1e-9)
    assert torch.equal(batched.frequency[k], whole.frequency[k]) and torch.equal(batched.counts, whole.counts)


def test_random_sets_come_from_the_seed():
    a, labels, weight, bias = some_problem()
    seen = measure(linear_net(weight, bias), (torch.from_numpy(a), torch.from_numpy(labels)))
    one, same, other = (choose(seen, 4, "random", seed=seed) for seed in (1, 1, 2))
    assert one.indices == same.indices != other.indices
    assert all(len(chosen) == 4 for chosen in one.indices)


# --- what a user can get wrong ---


def test_rules_that_need_responses_of_zero_or_more_refuse_others():
    a, labels, weight, bias = some_problem(shift=-1.0)
    net, data = linear_net(weight, bias), (torch.from_numpy(a), torch.from_numpy(labels))
    for rule in RULES:
        if rule in ("frequency", "mass"):
            with pytest.raises(InputError, match="responses down to -"):
                decompose(net, data, 3, rule)
        else:
            assert len(decompose(net, data, 3, rule).indices) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"k": 0}, "k=0 is out of range"),
        ({"k": 10}, "9 filters"),
        ({"k": 10, "rule": "frequency"}, "9 filters"),
        ({"rule": "best"}, "no rule 'best'"),
        ({"budget": 0}, "budget of 0"),
        ({"budget": 28}, "1 to 27"),
        ({"layer": "nope"}, "no layer 'nope'"),
        ({"batch_size": 0}, "batch size"),
    ],
)
def test_bad_numbers_and_names_are_named(arguments, said):
    a, labels, weight, bias = some_problem()
    with pytest.raises(InputError, match=said):
        decompose(linear_net(weight, bias), (torch.from_numpy(a), torch.from_numpy(labels)), **arguments)


def test_bad_data_are_named():
    a, labels, weight, bias = some_problem()
    net, x, y = linear_net(weight, bias), torch.from_numpy(a), torch.from_numpy(labels)
    for data, said in [
        ((x, torch.where(y == 1, 0, y)), "Class '1' has no image"),
        ((x, y + 1), "Label 3 is out of range"),
        ((x, y - 1), "Label -1 is out of range"),
        ((x, y.double()), "whole number"),
        ((x, y[1:]), "one label per image"),
        ((x[:0], y[:0]), "no images"),
        (3, "cannot be a int"),
        ([x], "must yield"),
        ((x * float("nan"), y), "NaN or infinity"),
    ]:
        with pytest.raises(InputError, match=said):
            decompose(net, data)


def test_one_image_a_class_is_enough():
    a, _, weight, bias = some_problem(n=3)
    for rule in RULES:
        found = decompose(linear_net(weight, bias), (torch.from_numpy(a), torch.arange(3)), 2, rule)
        assert all(len(chosen) <= 2 for chosen in found.indices)


# --- which layer is the last ---


class Strange(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Conv2d(1, 4, 3)
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)
        self.conv = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = self.body(x)
        pooled = x.mean((2, 3))
        if self.kind == "auxiliary":
            return (self.one(pooled), self.two(pooled)) if self.training else self.one(pooled)
        if self.kind == "two":
            return (self.one(pooled) + self.two(pooled)) / 2
        if self.kind == "tuple":
            return self.one(pooled), self.two(pooled)
        if self.kind == "log":
            return F.log_softmax(self.two(pooled), 1)
        if self.kind == "pointwise":
            return self.conv(x).mean((2, 3))
        if self.kind == "pooled first":
            return self.conv(x.mean((2, 3), keepdim=True)).flatten(1)
        return F.relu(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("kind", "name"), [("auxiliary", "one"), ("log", "two"), ("pointwise", "conv"), ("pooled first", "conv")]
)
def test_the_head_is_found_by_its_outputs(kind, name):
    torch.manual_seed(0)
    net, x, labels = Strange(kind), torch.randn(12, 1, 6, 6), torch.arange(12) % 3
    assert find_head(net, x).name == name
    found = decompose(net, (x, labels), 4, "omp")
    new = found.apply(net)
    torch.testing.assert_close(new(x), net.eval()(x), rtol=1e-4, atol=1e-5)  # all four filters: nothing is lost
    assert isinstance(new.get_submodule(name), DecomposedHead)


@pytest.mark.parametrize(
    ("layers", "options"),
    [("deconv", {}), ("deconv", {"head": "channel"}), ("deconv", {"blocks": "pooled"}), ("subnet", {"keep": 0.5})],
)
@pytest.mark.parametrize("rule", ["evidence", "omp"])
def test_a_whitened_or_masked_head_is_decomposed_as_its_folded_self(layers, options, rule):
    torch.manual_seed(0)
    net = pellucid.build("resnet20", num_classes=3, in_channels=1, image_size=8, layers=layers, **options)
    x, labels = torch.randn(24, 1, 8, 8), torch.arange(24) % 3
    for _ in range(2):
        net(x)  # statistics of its own
    folded = pellucid.fold(net.eval())
    found, expected = (decompose(model, (x, labels), 4, rule) for model in (net, folded))
    assert found.indices == expected.indices and found.layer == expected.layer == "fc"
    new = found.apply(net)
    torch.testing.assert_close(new(x), expected.apply(folded)(x), rtol=1e-5, atol=1e-5)
    assert ((new.fc.dense() != 0).sum(1) <= 4).all()
    every = decompose(net, (x, labels), 64, "omp").apply(net)  # all filters: nothing is lost
    torch.testing.assert_close(every(x), net(x), rtol=1e-3, atol=1e-4)
    accuracy = [found.essential(net, (x, labels)), expected.essential(folded, (x, labels))]
    assert accuracy[0].to_json() == accuracy[1].to_json()
    before = F.cross_entropy(new(x), labels).item()
    assert F.cross_entropy(fit(new, (x, labels))(x), labels).item() < before
    fit(new, (x, labels), "network", batch_size=24)
    # A class is removed from the plain layer that the head folds to.
    edit = remove_class(net, 1, (x, labels))
    assert (edit.model(x).argmax(1) != 1).all() and type(edit.model.fc) is nn.Linear


@pytest.mark.parametrize(("kind", "said"), [("two", "'one', 'two'"), ("tuple", "a tuple"), ("relu", "'conv'")])
def test_a_head_that_is_not_one_layer_is_named(kind, said):
    x = torch.randn(12, 1, 6, 6)
    with pytest.raises(InputError, match=said):
        decompose(Strange(kind), (x, torch.arange(12) % 3))


# --- sets and their files ---


def some_filters(**changes):
    a, labels, weight, bias = some_problem()
    return decompose(linear_net(weight, bias), (torch.from_numpy(a), torch.from_numpy(labels)), **changes)


@pytest.mark.parametrize("rule", ["evidence", "omp"])
def test_files_bring_sets_back(tmp_path, rule):
    found = some_filters(rule=rule, budget=8)
    found.save(tmp_path / "filters.json")
    back = ClassFilters.load(tmp_path / "filters.json")
    assert torch.equal(back.scores, found.scores)
    for name in ("indices", "shares", "rule", "layer", "width", "classes", "weights", "bias"):
        assert getattr(back, name) == getattr(found, name)


def test_the_papers_files_are_read_and_written(tmp_path):
    found = some_filters(k=3)
    found.save(tmp_path / "published.json", published=True)
    assert json.loads((tmp_path / "published.json").read_text()) == {str(c): list(found.indices[c]) for c in range(3)}
    back = ClassFilters.load(tmp_path / "published.json", classes=("a", "b", "c"))
    assert back.indices == found.indices and back.classes == ("a", "b", "c")
    a, _, weight, bias = some_problem()
    net = linear_net(weight, bias)
    assert torch.equal(back.apply(net)(torch.from_numpy(a)), found.apply(net)(torch.from_numpy(a)))
    numbered = ClassFilters.from_json({str(c): [c] for c in range(11)})  # "10" comes after "9", not after "1"
    assert numbered.indices[10] == (10,) and numbered.width == 11


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "expected a table, found a list"),
        ("{", "is not JSON"),
        ("{}", "empty"),
        ('{"0": [1, 1]}', "different"),
        ('{"0": [-1]}', "different"),
        ('{"0": [0.5]}', "no class filters"),
        ('{"1": [0]}', "no class filters"),
        ('{"pellucid": "class filters", "format": 9}', "another version"),
        ('{"pellucid": "class filters", "format": 1}', "no class filters"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, said):
    path = tmp_path / "damaged.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        ClassFilters.load(path)
    with pytest.raises(InputError, match=r"There is no file .*missing\.json"):
        ClassFilters.load(tmp_path / "missing.json")
    for numbers in ("[1000000000]", "[[1]]", "[1e400]", f"[{10**400}]"):  # before anything is allocated
        path.write_text(f'{{"0": {numbers}}}')
        with pytest.raises(InputError, match=r"beyond any layer|no class filters|not finite"):
            ClassFilters.load(path)


@settings(max_examples=30)
@given(problems())
def test_overlap_equals_sets(problem):
    a, labels, weight, bias, k = problem
    found = decompose(linear_net(weight, bias), (torch.from_numpy(a), torch.from_numpy(labels)), k)
    for x, one in enumerate(found.indices):
        for y, two in enumerate(found.indices):
            either = set(one) | set(two)
            expected = len(set(one) & set(two)) / len(either) if either else 1.0
            assert found.overlap()[x, y].item() == pytest.approx(expected)


# --- the head ---


def some_head(k=3, bias=True, spatial=False):
    head = DecomposedHead(7, 4, k, bias, spatial=spatial, indices=[[0, 6, 2], [5], [], [3, 1, 4]])
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spatial", [True, False])
def test_head_equals_the_masked_dense_layer_exactly(bias, spatial):
    head = some_head(bias=bias, spatial=spatial)
    weight = torch.zeros(4, 7)
    for c, chosen in enumerate([[0, 6, 2], [5], [], [3, 1, 4]]):
        for place, j in enumerate(chosen):
            weight[c, j] = head.weight[c, place]
    assert torch.equal(head.dense(), weight) and head.counts.tolist() == [3, 1, 0, 3]
    if spatial:
        x = torch.randn(5, 7, 3, 2)
        expected = F.conv2d(x, weight[:, :, None, None], head.bias)
    else:
        x = torch.randn(5, 7)
        expected = F.linear(x, weight, head.bias)
    assert torch.equal(head(x), expected)
    assert torch.equal(head.to_linear()(x), expected)
    picked = head.subset([3, 0])
    torch.testing.assert_close(picked(x), expected[:, [3, 0]])


def test_head_trains_its_own_filters_only():
    head = some_head()
    before = head.weight.detach().clone()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    F.cross_entropy(head(torch.randn(20, 7)), torch.randint(4, (20,))).backward()
    optimizer.step()
    assert torch.equal(head.weight[1, 1:], before[1, 1:]) and torch.equal(head.weight[2], before[2])
    assert (head.weight[0] != before[0]).all() and head.weight[1, 0] != before[1, 0]
    assert (head.dense() != 0).sum() == 7


def test_sets_are_in_the_state_dict_and_looked_at():
    head, other = some_head(), DecomposedHead(7, 4, 3)
    assert torch.equal(other(torch.randn(2, 7)), torch.zeros(2, 4))
    other.load_state_dict(head.state_dict())
    x = torch.randn(5, 7)
    assert torch.equal(head(x), other(x))
    for value in (-1, 8, 6):  # below, beyond, twice
        state = {key: tensor.clone() for key, tensor in head.state_dict().items()}
        state["indices"][0, 0] = value
        with pytest.raises(RuntimeError, match="inputs|input appears twice"):
            other.load_state_dict(state)
    for arguments in ((7, 4, 0), (7, 4, 8), (0, 4, 1)):
        with pytest.raises(InputError, match="cannot have k"):
            DecomposedHead(*arguments)
    with pytest.raises(InputError, match="appears twice"):
        DecomposedHead(7, 1, 2, indices=[[1, 1]])


@pytest.mark.parametrize("refit", [False, True])
def test_a_decomposed_model_is_saved_loaded_and_folded(tmp_path, refit):
    torch.manual_seed(0)
    net = pellucid.build("resnet20", 10).eval()
    x, labels = torch.randn(20, 3, 16, 16), torch.arange(20) % 10
    found = pellucid.decompose(net, (x, labels), k=4, refit=refit)
    new = found.apply(net)
    with torch.no_grad():
        features, _, head = responses(net, [(x, labels)])
        weight, bias = torch.zeros(10, 64), torch.tensor(found.bias) if refit else net.fc.bias
        for c, chosen in enumerate(found.indices):
            weight[c, list(chosen)] = torch.tensor(found.weights[c]) if refit else net.fc.weight[c, list(chosen)]
        torch.testing.assert_close(new(x), features @ weight.T + bias)
        assert head.name == "fc" and isinstance(net.fc, nn.Linear)
        save(new, tmp_path / "m.safetensors")
        back = load(tmp_path / "m.safetensors")
        assert torch.equal(back(x), new(x)) and facts(back).description == facts(new).description
        torch.testing.assert_close(pellucid.fold(new, x)(x), new(x), rtol=1e-3, atol=1e-4)
        few = cut(new, [found.classes[c] for c in (3, 5)])
        save(few, tmp_path / "few.safetensors")
        torch.testing.assert_close(load(tmp_path / "few.safetensors")(x), new(x)[:, [3, 5]])
    again = decompose(back, (x, labels), 4)  # of what was decomposed before
    assert all(set(a) <= set(b) for a, b in zip(again.indices, found.indices, strict=True))


def test_a_damaged_decomposed_file_is_refused(tmp_path):
    net = pellucid.build("resnet20", 10, layers="decomposed", k=2)
    state = net.state_dict()
    state["fc.indices"] = torch.full((10, 2), 10**12)
    save_tensors(state, tmp_path / "m.safetensors", description=facts(net).description)
    with pytest.raises(InputError, match="does not load"):
        load(tmp_path / "m.safetensors")


# --- fits ---


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from(["lbfgs", "adamw"]), st.booleans(), st.sampled_from([0.0, 0.1]))
def test_a_fit_is_never_worse_on_its_own_objective(seed, solver, soft, decay):
    generator = torch.Generator().manual_seed(seed)
    head = some_head()
    x = torch.randn(30, 7, generator=generator)
    targets = torch.randint(4, (30,), generator=generator)
    if soft:
        targets = torch.randn(30, 4, generator=generator).softmax(1)
    before = F.cross_entropy(head(x), targets).item()
    start, end = fit_features(head, x, targets, solver=solver, steps=5, decay=decay)
    assert start == pytest.approx(before, rel=1e-5) and end <= start
    assert F.cross_entropy(head(x), targets).item() <= before + 1e-6
    if solver == "lbfgs":
        assert (head.dense() != 0).sum() == 7


def test_lbfgs_finds_the_minimum():
    torch.manual_seed(0)
    head, x, labels = some_head(), torch.randn(300, 7), torch.randint(4, (300,))
    fit_features(head, x, labels)
    loss = F.cross_entropy(head(x), labels)
    slopes = torch.autograd.grad(loss, list(head.parameters()))
    assert max(slope.abs().max() for slope in slopes) < 1e-4


def test_both_fits_of_a_model():
    torch.manual_seed(0)
    net, x = Small(), torch.randn(60, 2, 6, 6)
    labels = net(x).argmax(1)
    labels[:3] = torch.arange(3)
    new = decompose(net, (x, labels), 2).apply(net)
    body = new.one.weight.clone()
    loss = F.cross_entropy(new(x), labels).item()
    fit(new, (x, labels))
    assert torch.equal(new.one.weight, body) and F.cross_entropy(new(x), labels).item() < loss
    fit(new, (x, labels), teacher=net)
    loss = F.cross_entropy(new(x), net(x).softmax(1)).item()
    fit(new, (x, labels), "network", teacher=net, steps=5, lr=1e-3)
    assert not torch.equal(new.one.weight, body) and F.cross_entropy(new(x), net(x).softmax(1)).item() < loss
    for arguments, said in [
        ({"how": "all"}, "no fit"),
        ({"solver": "sgd"}, "no solver"),
        ({"decay": -1.0}, "decay"),
        ({"steps": 0}, "steps=0"),
    ]:
        with pytest.raises(InputError, match=said):
            fit(new, (x, labels), **arguments)
    with pytest.raises(InputError, match="no decomposed head"):
        fit(net, (x, labels))


def test_a_fit_of_the_network_takes_the_published_steps():
    """Batches as they come: Adam at 1e-4 without decay, in training mode, from the weights that are there."""
    torch.manual_seed(0)
    net, x, labels = Small().eval(), torch.randn(90, 2, 6, 6), torch.arange(90) % 3
    net.one = nn.Sequential(net.one, nn.BatchNorm2d(5)).eval()
    pairs = [(x[:40], labels[:40]), (x[40:], labels[40:])]
    new, expected = (decompose(net, pairs, 2).apply(net) for _ in range(2))
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-4)
    expected.train()
    for images, targets in pairs * 3:
        optimizer.zero_grad()
        F.cross_entropy(expected(images), targets).backward()
        optimizer.step()
    state = torch.get_rng_state()
    assert fit(new, pairs, "network", steps=3) is new and not new.training
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(new.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(p, net.state_dict()[name]) for name, p in new.named_parameters() if "head" not in name)
    with pytest.raises(InputError, match="no image to train on in pass 2"):
        fit(new, (pair for pair in pairs), "network", steps=2)
    with pytest.raises(InputError, match="Label 3 is out of range"):
        fit(new, (x, labels + 1), "network")


def test_a_fit_of_the_network_on_a_data_set_is_drawn_from_the_seed():
    torch.manual_seed(0)
    net = pellucid.build("conv2", 10, in_channels=1, image_size=8).eval()
    filters = decompose(net, "digits", 5)
    teacher = pellucid.build("conv2", 10, in_channels=1, image_size=8).train()
    fitted = [filters.apply(net) for _ in range(3)]
    state = torch.get_rng_state()
    for new, seed in zip(fitted, (0, 0, 1), strict=True):
        fit(new, "digits", "network", teacher=teacher, seed=seed, steps=2, lr=1e-3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in teacher.modules())
    one, same, other = (new.state_dict() for new in fitted)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    digits = pellucid.load_data("digits")
    labelled = fit(filters.apply(net), digits, "network", steps=2, lr=1e-3)
    assert evaluate(labelled, digits).top1 > evaluate(filters.apply(net), digits).top1 + 0.2


def test_compared_heads_equal_whole_models():
    torch.manual_seed(0)
    net, x, labels = Small().eval(), torch.randn(40, 2, 6, 6), torch.arange(40) % 3
    new = decompose(net, (x, labels), 2).apply(net)
    right = compare_heads(net, {"a": head_of(new)}, (x, labels), batch_size=7)
    assert torch.equal(right["a"], new(x).argmax(1) == labels)
    assert torch.equal(right["model"], net(x).argmax(1) == labels)
    part = {"a": head_of(new).subset([2, 0])}
    right = compare_heads(net, part, (x, labels), outputs=[2, 0])
    kept = labels != 1
    assert torch.equal(right["a"], new(x)[kept][:, [2, 0]].argmax(1) == (labels[kept] == 0).long())


# --- what a call leaves behind ---


class Moved(Small):
    """Notes where it is sent."""

    def to(self, *args, **kwargs):
        self.__dict__.setdefault("sent", []).append(args[0])
        return super().to(*args, **kwargs)


def test_a_model_is_left_as_it_was():
    torch.manual_seed(0)
    net, x, labels = Moved().train(), torch.randn(30, 2, 6, 6), torch.arange(30) % 3
    net.two.eval()
    net.one.weight.requires_grad_(False)
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    for rule in RULES:
        found = decompose(net, (x, labels), 2, rule if rule not in ("frequency", "mass") else "evidence", device="cpu")
        found.essential(net, (x, labels), draws=1)
        found.apply(net)
        net.sent.clear()
    with pytest.raises(InputError, match="more than once"):
        decompose(net, (x, labels), 2, "gradient", "act", device="cpu")
    assert net.sent == ["cpu", torch.device("cpu")]  # there and back, also after an error
    pellucid.remove_class(net, 1, (x, labels), 2, selected_on=(x.flip(0), labels.flip(0)))
    pellucid.reweight(net, 0, 1, 2.0, (x, labels))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not net.one.weight.requires_grad and all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_comes_back_from_the_device():
    net, x, labels = Small(), torch.randn(30, 2, 6, 6), torch.arange(30) % 3
    there = decompose(net, (x, labels), 2, "omp", device="cuda")
    assert all(parameter.device.type == "cpu" for parameter in net.parameters())
    assert there.indices == decompose(net, (x, labels), 2, "omp").indices


def counted(monkeypatch) -> list[str]:
    """The types of the networks that are copied from now on."""
    copied = []
    deepcopy = copy.deepcopy

    def watched(value, memo=None, *rest):
        # A memo that holds copies already is that of a copy that has begun, of which this is a part.
        if isinstance(value, nn.Module) and not memo and not isinstance(value, DecomposedHead):
            copied.append(type(value).__name__)
        return deepcopy(value, memo, *rest)

    monkeypatch.setattr(copy, "deepcopy", watched)
    return copied


def test_no_network_is_copied_for_its_head(monkeypatch):
    torch.manual_seed(0)
    net = pellucid.build("conv2", 10, in_channels=1, image_size=8).eval()
    source = open_source(net, data="digits")
    seen = measure(net, source.dataset, covariance=True)
    copied = counted(monkeypatch)
    judge = Judge(source, seen, None, "train", 0, 256, 0)
    for rule in ("evidence", "omp"):
        rows = judge.rows(choose(seen, 3, rule), None)
        assert [row["what"].split(",")[0] for row in rows] == ["full model", rule, "random"] and not copied
    judge.network(choose(seen, 3), "head", soft_labels=True)
    assert len(copied) == 1  # the result


def test_a_head_alone_is_that_of_the_decomposed_model(tmp_path):
    torch.manual_seed(0)
    net, x, labels = Small().eval(), torch.randn(30, 2, 6, 6), torch.arange(30) % 3
    for rule in ("evidence", "omp"):
        filters = decompose(net, (x, labels), 2, rule)
        alone, inside = head_from(net, filters), head_of(filters.apply(net))
        assert all(torch.equal(one, inside.state_dict()[name]) for name, one in alone.state_dict().items())
        assert not alone.training and isinstance(net.head, nn.Linear)
    published = ClassFilters.from_json({"0": [1], "1": [0, 2], "2": []})  # says nothing of filters 3 to 5
    assert head_from(net, published).in_features == 6
    with pytest.raises(InputError, match="do not fit the layer 'one'"):
        head_from(net, decompose(net, (x, labels), 2, "gradient", "one"))


def test_every_row_counts_the_filters_that_it_uses():
    """Where a rule keeps fewer filters than it was asked for, random sets do too."""
    torch.manual_seed(0)
    net = pellucid.build("conv2", 10, in_channels=1, image_size=8).eval()
    source = open_source(net, data="digits")
    seen = measure(net, source.dataset)
    filters = choose(seen, seen.width)
    used = sum(map(len, filters.indices)) / 10
    full, own, random = Judge(source, seen, None, "train", 0, 256, 0).rows(filters, None)
    assert used < seen.width == full["filters"] and own["filters"] == random["filters"] == used
    low, high = random["interval"]
    assert low <= random["accuracy"] <= high and low < full["accuracy"]


# --- the command ---


def test_the_command_gives_of_a_whitened_network_what_it_gives_of_the_folded_one(tmp_path, capsys):
    torch.manual_seed(0)
    net = pellucid.build("resnet8", 10, 1, 8, layers="deconv", block=8)
    digits = pellucid.load_data("digits")
    declare(net, classes=digits.classes, normalization=digits.normalization)
    net(torch.randn(32, 1, 8, 8))
    files = {"whitened": net.eval(), "folded": pellucid.fold(net)}
    results = []
    for name, model in files.items():
        save(model, tmp_path / f"{name}.safetensors")
        words = ["decompose", str(tmp_path / f"{name}.safetensors"), "--data", "digits", "--out", str(tmp_path / name)]
        assert main([*words, "--rule", "omp", "--k", "3", "--fit", "head", "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    one, two = results
    assert [row["filters"] for row in one["classes"]] == [row["filters"] for row in two["classes"]]
    for a, b in zip(one["accuracy"], two["accuracy"], strict=True):
        assert a["what"] == b["what"] and a["accuracy"] == pytest.approx(b["accuracy"], abs=0.01)
    assert one["accuracy"][0]["accuracy"] == pytest.approx(evaluate(net, digits).top1)
    fitted = str(tmp_path / "whitened" / "decomposed.safetensors")
    assert main(["evaluate", fitted, "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(one["accuracy"][3]["accuracy"])
    sets = str(tmp_path / "whitened" / "filters.json")
    words = ["evaluate", str(tmp_path / "whitened.safetensors"), "--data", "digits", "--decomposed", sets, "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(one["accuracy"][1]["accuracy"])


def test_the_command_writes_sets_model_and_controls(tmp_path, capsys):
    torch.manual_seed(0)
    net = pellucid.build("conv2", 10, in_channels=1, image_size=8)
    save(net, tmp_path / "m.safetensors")
    words = ["decompose", str(tmp_path / "m.safetensors"), "--data", "digits", "--out", str(tmp_path / "out")]
    assert main([*words, "--rule", "omp", "--k", "3", "--fit", "head"]) == 0
    said = capsys.readouterr().out
    assert "random, mean and range of 10" in said and "full model" in said
    assert said.splitlines()[-1].startswith("Next: pellucid evaluate")
    assert main(shlex.split(said.splitlines()[-1])[2:]) == 0
    capsys.readouterr()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [row["n"] for row in result["accuracy"]] == [450] * 5 and result["filters"] == 30
    filters = ClassFilters.load(tmp_path / "out" / "filters.json")
    assert filters.rule == "omp" and filters.classes == tuple("0123456789")
    assert main(["evaluate", str(tmp_path / "out" / "decomposed.safetensors"), "--data", "digits", "--json"]) == 0
    top1 = json.loads(capsys.readouterr().out)["top1"]
    assert top1 == pytest.approx(result["accuracy"][3]["accuracy"])

    assert [row["what"] for row in result["accuracy"]] == [
        "full model", "omp, refit", "random, mean and range of 10", "omp, head fitted", "random (1 draw), head fitted",
    ]  # fmt: skip
    assert [row["filters"] for row in result["accuracy"]] == [256, 3, 3, 3, 3]
    assert [tuple(row["filters"]) for row in result["classes"]] == list(filters.indices)
    assert [tuple(row["shares"]) for row in result["classes"]] == list(filters.shares)

    assert main([*words, "--classes", "3", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["accuracy"]) == 3
    assert main([*words, "--fit", "network", "--soft-labels", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "out" / "result.json").read_text())["accuracy"][-1]["what"].endswith("network fitted")
    assert main([*words, "--classes", "3", "1", "--quiet"]) == 0
    assert load(tmp_path / "out" / "decomposed.safetensors")(torch.zeros(2, 1, 8, 8)).shape == (2, 2)

    inner = next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    assert main([*words, "--layer", inner, "--rule", "gradient", "--out", str(tmp_path / "inner")]) == 0
    assert not (tmp_path / "inner" / "decomposed.safetensors").exists()
    for more in (
        ["--layer", inner],
        ["--classes", "3", "x"],
        ["--k", "0"],
        ["--layer", inner, "--fit", "head"],
        ["--soft-labels"],
    ):
        assert main([*words, *more]) == 2
        assert capsys.readouterr().err.startswith("pellucid: ")


def test_data_come_in_every_form():
    torch.manual_seed(0)
    net = pellucid.build("conv2", 10, in_channels=1, image_size=8).eval()
    dataset = pellucid.load_data("digits")
    by_name, whole = decompose(net, "digits"), decompose(net, dataset, batch_size=100)
    pairs = list(open_data(net, dataset, batch_size=300))
    assert by_name.indices == whole.indices == decompose(net, pairs).indices
    assert by_name.classes == dataset.classes
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*(torch.cat(parts) for parts in zip(*pairs, strict=True))), batch_size=64
    )
    assert decompose(net, loader).indices == by_name.indices
    with pytest.raises(InputError, match="no split"):
        decompose(net, "digits", split="all")


def test_evaluate_takes_a_file_of_filters(tmp_path, capsys):
    torch.manual_seed(0)
    net = pellucid.build("conv2", 10, in_channels=1, image_size=8)
    model, out = str(tmp_path / "m.safetensors"), tmp_path / "out"
    save(net, model)
    assert main(["decompose", model, "--data", "digits", "--out", str(out), "--rule", "omp", "--k", "3", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["accuracy"][1]["accuracy"]
    filters = ClassFilters.load(out / "filters.json")
    filters.save(tmp_path / "papers.json", published=True)

    def top1(file) -> float:
        assert main(["evaluate", model, "--data", "digits", "--decomposed", str(file), "--json"]) == 0
        return json.loads(capsys.readouterr().out)["top1"]

    assert top1(out / "filters.json") == top1(out / "decomposed.safetensors") == pytest.approx(expected)
    # The papers' form holds sets without weights: those of the model itself.
    assert (
        top1(tmp_path / "papers.json")
        == evaluate(with_file(load(model), tmp_path / "papers.json"), pellucid.load_data("digits")).top1
    )
    dense = load(model)
    kept = torch.zeros(10, 256)
    for row, chosen in zip(kept, filters.indices, strict=True):
        row[list(chosen)] = 1
    with torch.no_grad():
        dense.classifier[4].weight.mul_(kept)
    assert top1(tmp_path / "papers.json") == evaluate(dense, pellucid.load_data("digits")).top1

    with torch.no_grad():
        net.features[0].weight.add_(0.1)
    other = tmp_path / "other.safetensors"
    save(net, other)
    for words, said in (
        ([str(other), "--decomposed", str(out / "decomposed.safetensors")], "differs from the model in 'features.0"),
        ([model, "--decomposed", str(other)], "no decomposed head"),
        ([model, "--decomposed", "nowhere.json"], "nowhere.json"),
    ):
        assert main(["evaluate", *words, "--data", "digits"]) == 2
        assert said in capsys.readouterr().err


def test_an_architecture_is_decomposed_with_random_weights(tmp_path, capsys):
    words = ["decompose", "resnet20", "--data", "digits", "--k", "2"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert "resnet20 (random weights): filters of fc" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--out", str(tmp_path / "b"), "--seed", "1"]) == 0
    assert main([*words, "--out", str(tmp_path / "c")]) == 0
    one, other, again = (ClassFilters.load(tmp_path / name / "filters.json") for name in "abc")
    assert one.scores.equal(again.scores) and not one.scores.equal(other.scores)
    stored = load(tmp_path / "a" / "decomposed.safetensors")
    assert one.classes == tuple("0123456789") and facts(stored).classes == one.classes
