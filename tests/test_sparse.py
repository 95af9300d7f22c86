"""Sparse coding layers against slow twins, scikit-learn's Lasso, and what holds after real training steps."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image
from sklearn.linear_model import ElasticNet, Lasso
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pellucid
import reference_sparse as reference
from pellucid.core.errors import InputError
from pellucid.sparse.adapt import residual
from pellucid.sparse.fista import SCHEDULES
from pellucid.sparse.layers import CSC1d, CSC2d, CSC3d
from processes import ENVIRONMENT

KINDS = {1: CSC1d, 2: CSC2d, 3: CSC3d}
ONES = (1, 1)


def images(n: int = 2, c: int = 3, size: tuple[int, ...] = (7, 6), seed: int = 0) -> Tensor:
    x = torch.randn(n, c, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x + 0.5 * x.roll(1, -1) + 0.3


def layer_of(*arguments, seed: int = 0, **options) -> CSC2d:
    torch.manual_seed(seed)
    return CSC2d(*arguments, **options).double()


def dense(layer, size: tuple[int, ...]) -> Tensor:
    """The layer's D* as a matrix."""
    return reference.matrix(layer.atoms.detach(), size, layer.stride, layer.padding, layer.dilation)


# --- the dictionary ---


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_analysis_and_synthesis_are_one_matrix_and_its_transpose(data):
    rank = data.draw(st.integers(1, 3))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    stride = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [data.draw(st.integers(1, 2)) for _ in range(rank)]
    padding = [data.draw(st.integers(0, (k - 1) // 2 * d)) for k, d in zip(kernel, dilation, strict=True)]
    size = tuple(d * (k - 1) + 1 + data.draw(st.integers(0, 3)) for d, k in zip(dilation, kernel, strict=True))
    layer = KINDS[rank](2, 3, kernel, stride, padding, dilation).double()
    d, x = dense(layer, size), images(2, 2, size, seed=rank)
    dictionary = layer.dictionary()
    z = dictionary.analyse(x)
    torch.testing.assert_close(z.flatten(1), x.flatten(1) @ d)
    z = z.abs() + 0.1
    torch.testing.assert_close(layer.decode(z, size).flatten(1), z.flatten(1) @ d.T)
    assert layer.decode(z).shape[2:] == dictionary.size(tuple(z.shape[2:]))
    norm = torch.linalg.matrix_norm(d, 2) ** 2
    assert norm <= dictionary.bound() * (1 + 1e-9)
    found, _ = dictionary.norm(torch.randn(1, *z.shape[1:], dtype=torch.float64), 200)
    assert found <= torch.linalg.matrix_norm(dense(layer, dictionary.size(tuple(z.shape[2:]))), 2) ** 2 * (1 + 1e-9)


def test_the_bound_of_the_norm_holds_for_large_images():
    for arguments in ((1, 2, 3), (3, 8, 5, 2, 2), (4, 4, 3, 3, 1, 2), (2, 6, 4, 2, 0, 3)):
        layer = layer_of(*arguments)
        norm, _ = layer.dictionary().norm(torch.rand(1, arguments[1], 40, 40, dtype=torch.float64), 100)
        bound = layer.dictionary().bound()
        assert norm <= bound
        assert bound < 60 * norm


# --- the code ---


@pytest.mark.parametrize("size", [(6, 5), pytest.param((8, 8), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_steps": 4, "mu": 0.3},
        {"n_steps": 3, "nonnegative": False},
        {"n_dict": 2, "n_steps": 3},
        {"square_noise": False, "n_steps": 3},
        {"stride": 2, "n_steps": 3},
    ],
    ids=str,
)
def test_published_codes_gradients_and_step_sizes(options, size):
    """Over training steps of SGD, with its momentum and weight decay, and in evaluation after them."""
    options = dict(options)
    stride = options.pop("stride", 1)
    if stride == 2 and size == (6, 5):
        size = (6, 8)  # the published layer is for even sizes there
    torch.manual_seed(1)
    layer = CSC2d.as_published(3, 4, 3, stride, 1, **options).double()
    x = images(2, 3, size)
    places = layer.dictionary().analyse(layer._images(x)).shape
    first = torch.randn(1, *places[1:], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    layer.direction = first
    twin = reference.Published(layer.weight, first, size, (stride,) * 2, (1, 1), **options)
    optimizers = [torch.optim.SGD([w], 0.05, momentum=0.9, weight_decay=0.01) for w in (layer.weight, twin.weight)]
    for step in range(3):
        found, expected = [x.clone().requires_grad_() for x in (images(2, 3, size, step),) * 2]
        z = layer(found)
        t = twin.update_stepsize()
        z_twin = twin.forward(expected)
        assert abs(0.9 / float(layer.norm) / t - 1) < 1e-5
        torch.testing.assert_close(z.flatten(1), z_twin, atol=1e-5, rtol=1e-5)
        towards = torch.randn(z.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for optimizer, code in zip(optimizers, (z, z_twin), strict=True):
            optimizer.zero_grad()
            (code * towards.view_as(code)).sum().backward()
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.weight.grad, twin.weight.grad, atol=1e-5, rtol=1e-5)
        for optimizer in optimizers:
            optimizer.step()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    z = layer.eval()(x)
    torch.testing.assert_close(z.flatten(1), twin.forward(x), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_the_default_code_is_the_published_one_at_the_same_weights_and_norm():
    layer, published = layer_of(3, 5, 3, padding=1, n_steps=4), None
    torch.manual_seed(0)
    published = CSC2d.as_published(3, 5, 3, padding=1, n_steps=4).double()
    x = images()
    expected = published(x)
    layer.norm.copy_(published.norm)
    torch.testing.assert_close(layer.eval()(x), expected)


@settings(max_examples=5, deadline=None)
@given(
    lam=st.floats(0.01, 1), mu=st.sampled_from([0.0, 0.2]), nonnegative=st.booleans(), stride=st.integers(1, 2),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_solve_is_the_least_objective_and_the_gap_is_true(lam, mu, nonnegative, stride, seed):
    layer = layer_of(2, 3, 3, stride, 1, seed=seed, lam=lam, mu=mu, nonnegative=nonnegative)
    x = images(2, 2, (5, 4), seed)
    found = layer.solve(x, tol=1e-10, max_steps=20000)
    rough = layer.solve(x, tol=0, max_steps=3)
    d = dense(layer, (5, 4))
    for i, image in enumerate(x.flatten(1)):
        least = reference.objective(
            d, image, reference.ista(d, image, lam, mu, nonnegative=nonnegative, steps=2000), lam, mu
        )
        value = reference.objective(d, image, found.code[i].flatten(), lam, mu)
        torch.testing.assert_close(found.objective[i], value)
        assert value - least <= found.gap[i] + 1e-9
        assert found.gap[i] <= 1e-10 * image.square().sum() + 1e-12
        assert rough.objective[i] - least <= rough.gap[i] + 1e-12
        assert found.sparsity[i] == (found.code[i] == 0).double().mean()
    torch.testing.assert_close(found.residual, layer.residual(x, found.code))
    assert rough.steps == 3


@pytest.mark.parametrize(("mu", "nonnegative"), [(0.0, True), (0.0, False), (0.3, True)])
def test_solve_agrees_with_scikit_learn(mu, nonnegative):
    lam = 0.4
    layer = layer_of(3, 6, 3, padding=1, lam=lam, mu=mu, nonnegative=nonnegative)
    x = images(3, 3, (7, 6))
    d = dense(layer, (7, 6)).numpy()
    found = layer.solve(x, tol=1e-9, max_steps=20000)
    for i, image in enumerate(x.flatten(1)):
        kind, more = (ElasticNet, {"l1_ratio": lam / (lam + mu)}) if mu else (Lasso, {})
        model = kind((lam + mu) / len(d), fit_intercept=False, positive=nonnegative, tol=1e-12, max_iter=100000, **more)
        code = torch.from_numpy(model.fit(d, image.numpy()).coef_)
        least = reference.objective(torch.from_numpy(d), image, code, lam, mu)
        assert abs(float(found.objective[i] - least)) < 1e-6 * float(least)
        torch.testing.assert_close(layer.objective(x, found.code)[i], found.objective[i])


def test_solve_runs_to_its_tolerance_in_single_precision_and_never_fails_on_nothing():
    layer = CSC2d(3, 6, 3, padding=1)
    x = images().float()
    found = layer.solve(x, tol=1e-4)
    assert (found.gap <= 1e-4 * x.square().flatten(1).sum(1) / 2).all()
    assert found.steps < 1000
    nothing = layer.solve(torch.zeros_like(x))
    assert nothing.code.abs().max() == 0 and nothing.gap.max() == 0 and nothing.sparsity.min() == 1
    assert layer.solve(x[:0]).code.shape[0] == 0
    layer.lam = 0.0
    assert layer.solve(x, max_steps=20).gap.isfinite().all()
    layer.square_noise = False
    with pytest.raises(InputError, match="square_noise=True"):
        layer.solve(x)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_many_steps_end_at_the_solution(schedule):
    layer = layer_of(2, 4, 3, padding=1, lam=0.3, mu=0.2, schedule=schedule).eval()
    layer.measure(100)
    x = images(2, 2)
    found = layer.solve(x, tol=1e-10, max_steps=20000)
    layer.n_steps = 300
    torch.testing.assert_close(layer(x), found.code, atol=1e-3, rtol=1e-3)


def photographs(n: int = 4, side: int = 16) -> Tensor:
    """Patches of a photograph, with mean 0 and variance 1."""
    picture = torch.from_numpy(load_sample_image("china.jpg").astype(np.float64)).permute(2, 0, 1)
    patches = [picture[:, 40 * i : 40 * i + side, 60 * i : 60 * i + side] for i in range(n)]
    x = torch.stack(patches)
    return (x - x.mean()) / x.std()


@torch.no_grad()
def test_better_schedules_have_half_the_published_gap_for_the_same_convolutions():
    layer = layer_of(3, 64, 3, padding=1).eval()
    layer.measure(100)
    x = photographs()
    least = layer.solve(x, tol=1e-3, max_steps=600)
    lowest = least.objective - least.gap
    gaps = {}
    for schedule in SCHEDULES:
        for n in (2, 4):
            layer.schedule, layer.n_steps = schedule, n
            gaps[schedule, n] = float((layer.objective(x, layer(x)) - lowest).mean())
    for n in (2, 4):
        assert gaps["barzilai-borwein", n] < 0.5 * gaps["published", n], gaps
    assert max(gaps["long", 2], gaps["greedy", 2]) < 0.5 * gaps["published", 2]
    assert all(gaps[schedule, 4] < gaps[schedule, 2] for schedule in ("published", "long", "barzilai-borwein"))


def test_settings_hold_from_the_next_call_and_image_by_image():
    layer, x = layer_of(3, 5, 3, padding=1).eval(), images(4)
    lams = torch.tensor([0.1, 0.3, 0.05, 2.0])
    apart = []
    for i, lam in enumerate(lams):
        layer.lam = float(lam)
        apart.append((layer(x[i : i + 1]), layer.objective(x[i : i + 1], layer(x[i : i + 1]))))
    layer.lam = lams
    torch.testing.assert_close(layer(x), torch.cat([z for z, _ in apart]))
    torch.testing.assert_close(layer.objective(x, layer(x)), torch.cat([value for _, value in apart]))
    together = layer.solve(x, max_steps=50, tol=0)
    assert (together.sparsity[3] > together.sparsity[2]).all()
    with pytest.raises(InputError, match=r"\(4,\) for 2 images"):
        layer(x[:2])
    layer.lam = torch.tensor(0.3)
    torch.testing.assert_close(layer(x)[1:2], apart[1][0])
    for name, value in (("mu", 0.5), ("n_steps", 5), ("schedule", "long"), ("lam", 0.0)):
        before = layer(x)
        setattr(layer, name, value)
        assert not torch.equal(layer(x), before)


def test_several_dictionaries_share_a_code():
    layer = layer_of(2, 5, 3, padding=1, n_dict=3, n_steps=3).eval()
    x = images(2, 2)
    z = layer(x)
    wide = layer_of(6, 5, 3, padding=1, n_steps=3).eval()
    wide.load_state_dict(layer.state_dict())
    torch.testing.assert_close(z, wide(torch.cat([x] * 3, 1)))
    torch.testing.assert_close(layer.decode(z, (7, 6)), wide.decode(z, (7, 6)).reshape(2, 3, 2, 7, 6).mean(1))
    assert layer.residual(x, z).shape == (2, 6, 7, 6)


# --- cost ---


def test_n_steps_take_2n_minus_1_convolutions():
    layer, x = CSC2d(3, 8, 3, padding=1).eval(), images().float()
    one = 2 * 3 * 8 * 9 * 2 * 7 * 6
    for schedule in SCHEDULES:
        for n in (1, 2, 5):
            layer.n_steps, layer.schedule = n, schedule
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                layer(x)
            assert counter.get_total_flops() == (2 * n - 1) * one, schedule


def test_implicit_gradients_are_those_of_long_unrolling_in_constant_memory():
    layer = layer_of(2, 3, 3, lam=0.3, mu=0.05, schedule="long").eval()
    layer.measure(100)
    x = images(2, 2, (6, 5)).requires_grad_()
    towards = None

    def run(differentiate: str, n_steps: int) -> tuple[list[Tensor], int]:
        nonlocal towards
        layer.differentiate, layer.n_steps = differentiate, n_steps
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            z = layer(x)
        towards = torch.randn_like(z) if towards is None else towards
        return list(torch.autograd.grad((z * towards).sum(), (x, layer.weight))), sum(saved)

    unrolled, _ = run("unrolled", 2000)
    found, memory = run("implicit", 2000)
    assert run("implicit", 20)[1] == memory < run("unrolled", 20)[1]
    for a, b in zip(found, unrolled, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)
    layer.lam = torch.tensor([0.3, 0.4], dtype=torch.float64, requires_grad=True)
    slopes = []
    for kind in ("unrolled", "implicit"):
        layer.differentiate, layer.n_steps = kind, 2000
        slopes.append(torch.autograd.grad((layer(x) * towards).sum(), layer.lam)[0])
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-7, rtol=1e-6)


# --- training ---


def test_after_training_steps_atoms_are_of_norm_1_and_the_step_size_follows():
    torch.manual_seed(0)
    layer = CSC2d(3, 16, 3, padding=1, schedule="long", n_steps=6)
    model = nn.Sequential(layer, nn.BatchNorm2d(16), nn.Flatten(), nn.LazyLinear(3))
    x = photographs(8, 16).float()
    model(x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(8) % 3 if step % 2 else torch.arange(8) % 2).backward()
        held = layer.weight.detach().clone()
        with torch.no_grad():
            model(x)
        assert torch.equal(held, layer.weight)  # the forward pass does not write weights
        optimizer.step()
    with torch.no_grad():
        for _ in range(12):
            model(x)
    assert (layer.weight.flatten(1).norm(dim=1) - 1).abs().max() > 1e-3
    torch.testing.assert_close(layer.atoms.flatten(1).norm(dim=1), torch.ones(16))
    norm, _ = layer.dictionary().norm(torch.rand(1, 16, 16, 16), 300)
    assert 0.9 * norm < layer.norm < 1.02 * norm
    model.eval()
    values = []
    for n in range(1, 9):
        layer.n_steps = n
        values.append(layer.objective(x, layer(x)))
    assert all((b <= a * (1 + 1e-5)).all() for a, b in itertools.pairwise(values))


def test_a_norm_that_is_not_finite_leaves_no_trace():
    layer, x = CSC2d(3, 4, 3, padding=1).train(), images().float()
    layer(x)
    before = layer.norm.clone()
    good = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.fill_(torch.nan)
    layer(x)
    assert torch.equal(layer.norm, before) and layer.direction.isfinite().all()
    with torch.no_grad():
        layer.weight.copy_(good)
    assert layer(x).isfinite().all()


def test_the_norm_is_found_from_any_start():
    layer = CSC2d(4, 6, 3, padding=1)
    norm, _ = layer.dictionary().norm(torch.rand(1, 6, 12, 12), 300)
    for wrong in (1e-3, 1e3):
        layer.norm.fill_(wrong)
        for step in range(260):
            layer(images(1, 4, (14, 14), step).float())
        assert 0.97 * norm < layer.norm < 1.001 * norm


def test_reading_a_layer_does_not_train_it():
    layer = layer_of(3, 4, 3, padding=1).train()
    x = images(2, 3)
    layer(x)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    random = torch.get_rng_state()
    assert residual(layer, x).shape == (2,)
    layer.solve(x, max_steps=10)
    assert layer.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_weights_by_hand_need_a_measure():
    layer = CSC2d(3, 8, 3, padding=1)
    with torch.no_grad():
        layer.weight.fill_(1.0)  # all atoms the same: the largest norm there is
    assert float(layer.measure(50)) > 8 * 0.9 * 3
    assert layer.measure(50) <= layer.dictionary().bound() * 1.001


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lam": -1.0}, "lam=-1.0"),
        ({"mu": float("nan")}, "mu=nan"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"n_dict": 0}, "n_dict=0"),
        ({"padding": "same"}, "padding='same'"),
        ({"schedule": "slow"}, "schedule='slow' must be published"),
        ({"differentiate": "no"}, "differentiate='no'"),
        ({"square_noise": False, "schedule": "greedy"}, "square_noise=False"),
    ],
)
def test_bad_options_are_a_sentence(options, said):
    with pytest.raises(InputError, match=said):
        CSC2d(3, 4, 3, **options)


def test_functional_fista_is_the_layer():
    layer, x = layer_of(3, 5, 3, padding=1, n_steps=4, mu=0.1, stride=2).eval(), images()
    z = pellucid.functional.fista(x, layer.atoms, 0.1, mu=0.1, n_steps=4, stride=2, padding=1, norm=layer.norm)
    torch.testing.assert_close(z, layer(x))
    long = pellucid.functional.fista(x, layer.atoms, 0.1, mu=0.1, n_steps=3000, stride=2, padding=1, schedule="long")
    torch.testing.assert_close(long, layer.solve(x, 1e-12, 20000).code, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="n_steps=0"):
        pellucid.functional.fista(x, layer.atoms, 0.1, n_steps=0)
    with pytest.raises(InputError, match="schedule='fast'"):
        pellucid.functional.fista(x, layer.atoms, 0.1, schedule="fast")


# --- several processes ---

WORKER = """
import sys
import torch
import torch.distributed as dist
from pellucid.sparse.layers import CSC2d

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(CSC2d(3, 6, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(384, 2))

def batch(step):
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(step))

wrapped, alone = torch.nn.parallel.DistributedDataParallel(network()), network()
optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in (wrapped, alone)]
for step in range(6):
    x = batch(step)
    for model, optimizer, seen in zip((wrapped, alone), optimizers, (x[rank::2], x)):
        optimizer.zero_grad()
        model(seen).square().sum(1).mean().backward()
        optimizer.step()
for (name, ours), theirs in zip(wrapped.module.state_dict().items(), alone.state_dict().values()):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=name)
others = [torch.zeros(()) for _ in range(2)]
dist.all_gather(others, wrapped.module[0].norm)
assert torch.equal(*others)
print("equal")
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        done = [worker.communicate(timeout=200) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for out, errors in done:
        assert out.strip() == "equal", errors
