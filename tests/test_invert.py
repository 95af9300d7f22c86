"""Inversion: its parts beside float64 twins, what it leaves as it was, and images out of really trained networks."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from typing import get_args

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import pellucid
import reference
import reference_invert as twin
from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.network.statistics import Moments, Statistics
from pellucid.inversion import batchnorm, export
from pellucid.inversion.features import moments_of
from pellucid.inversion.flags import Preset
from pellucid.inversion.frozen import frozen
from pellucid.inversion.generator import Generator
from pellucid.inversion.matching import Matching, Watch
from pellucid.inversion.objective import CrossEntropy, Disagreement, Logit
from pellucid.inversion.predictions import predicted_classes
from pellucid.inversion.presets import PRESETS, changed, recipe
from pellucid.inversion.priors import L2, TotalVariation
from pellucid.inversion.schedule import Plateau, Schedule, falls
from pellucid.inversion.space import Space
from pellucid.inversion.start import Fourier, Images, Noise
from pellucid.inversion.targets import class_targets
from pellucid.inversion.views import Crop, Flip, Jitter, ViewSequence
from processes import run
from state import unchanged

NORMAL = {"mean": [0.3], "std": [0.4]}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def trained(layers="plain", name="resnet20", steps=40, size=8, seed=0, **options):
    """A network after real training steps on digits."""
    torch.manual_seed(seed)
    model = pellucid.build(name, 10, 1, size, layers=layers, **options)
    digits = load_data("digits")
    x = (digits.train.fetch(torch.arange(512)).float() / 255 - digits.mean[0]) / digits.std[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for step in range(steps):
        rows = torch.arange(64 * step, 64 * step + 64) % 512
        F.cross_entropy(model(x[rows]), digits.train.labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    declare(model, normalization={"mean": list(digits.mean), "std": list(digits.std)})
    return model


@pytest.fixture(scope="module")
def net():
    return trained()


@pytest.fixture(scope="module")
def whitened():
    return trained("deconv", "conv2", 30, block=20)


# --- batch norm and statistics in one node ---


@pytest.mark.parametrize("shape", [(5, 3, 4, 2), (6, 3), (4, 3, 5), (2, 3, 2, 2, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_the_fused_node_is_batch_norm_and_its_moments(shape, affine):
    x = (3 * randn(*shape) + 1).requires_grad_()
    mean, var, weight, bias = randn(3, seed=1), randn(3, seed=2).square() + 0.1, randn(3, seed=3), randn(3, seed=4)
    given = (mean, var, weight, bias) if affine else (mean, var, None, None)

    def run(x):
        return batchnorm.EvaluateBatchNorm.apply(x, *given, 1e-5)

    y, m, v = run(x)
    torch.testing.assert_close(y, F.batch_norm(x, *given, False, 0.0, 1e-5))
    expected = twin.moments(x.detach())
    torch.testing.assert_close(m, expected[0])
    torch.testing.assert_close(v, expected[1])
    assert torch.autograd.gradcheck(run, (x,))


def test_work_in_place_behind_the_node_does_not_break_it():
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(2, 3)

        def forward(self, x):
            out = self.bn(self.conv(x))
            out += x
            return self.fc(out.relu_().mean((2, 3)))

    model = Block().eval()
    model.bn.running_mean += 0.3
    table, x = pellucid.statistics(model), randn(4, 2, 5, 5, dtype=torch.float32)
    gradients = []
    for fused in (True, False):
        watch = Watch(model, table, Matching(), x)
        seen = x.clone().requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batchnorm, "fusible", lambda module, fused=fused: fused)
            with watch.watching():
                loss = model(seen).square().sum() + watch.take()
        gradients.append(torch.autograd.grad(loss, seen)[0])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_batch_norms_that_are_not_plain_are_watched_by_a_hook():
    class Odd(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2

    far = nn.BatchNorm2d(2)
    far.running_mean += 1e4  # so far off that a difference of squares is noise in float32
    assert batchnorm.fusible(nn.BatchNorm2d(2))
    for module in (Odd(2), far, nn.BatchNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2)):
        assert not batchnorm.fusible(module)


# --- moments of the features that a table has ---


@pytest.mark.parametrize("blocks", ["separate", "pooled"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (
            lambda **o: pellucid.FastDeconv2d(6, 4, (3, 2), (2, 1), (1, 0), block=4, sampling_stride=1, **o),
            (5, 6, 7, 6),
        ),
        (lambda **o: pellucid.FastDeconv2d(5, 4, 3, padding=1, block=2, sampling_stride=1, **o), (4, 5, 6, 6)),
        (lambda **o: pellucid.FastDeconv1d(3, 4, 3, dilation=2, block=2, sampling_stride=1, **o), (6, 3, 9)),
        (lambda **o: pellucid.FastDeconvLinear(7, 4, block=3, **o), (40, 7)),
        (lambda **o: pellucid.ChannelDeconv(6, block=3, sampling_stride=1, **o), (4, 6, 3, 3)),
    ],
)
def test_live_moments_are_those_that_a_layer_would_declare(make, shape, blocks):
    """A layer that has seen one batch, and counts it in full, declares the moments of this very batch."""
    torch.manual_seed(0)
    layer = make(blocks=blocks, momentum=1.0)
    x = randn(*shape, dtype=torch.float32)
    x = x + 0.5 * x.roll(1, 1) + 0.2
    layer.train()(x)
    declared = layer.declared_moments()
    mean, cov = moments_of(x, layer, declared, True)
    torch.testing.assert_close(mean, declared.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cov, declared.cov, atol=1e-5, rtol=1e-4)
    mean, var = moments_of(x, layer, declared, False)
    torch.testing.assert_close(var, declared.var, atol=1e-5, rtol=1e-4)


def test_grouped_convolutions_keep_their_groups_apart():
    torch.manual_seed(0)
    layer = pellucid.FastDeconv2d(6, 4, 3, groups=2, block=2, sampling_stride=1, momentum=1.0)
    x = randn(4, 6, 5, 5, dtype=torch.float32)
    layer.train()(x)
    declared = layer.declared_moments()
    assert declared.mean.shape == (4, 18)  # three channels a group in blocks of two: the last is filled up
    mean, cov = moments_of(x, layer, declared, True)
    torch.testing.assert_close(mean, declared.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cov, declared.cov, atol=1e-5, rtol=1e-4)


def test_live_covariance_is_the_slow_one_and_its_gradient_exact():
    x = randn(3, 2, 4, 4)
    conv = nn.Conv2d(2, 3, 3, padding=1).double()
    rows = reference.patches(x, (3, 3), (1, 1), (1, 1), (1, 1))
    entry = Moments(torch.zeros(1, 18), torch.ones(1, 18), torch.eye(18)[None], of="patches")
    mean, cov = moments_of(x, conv, entry, True)
    torch.testing.assert_close(mean[0], rows.mean(0))
    torch.testing.assert_close(cov[0], reference.covariance(rows))
    assert torch.autograd.gradcheck(lambda x: moments_of(x, conv, entry, True), (x.requires_grad_(),), fast_mode=True)


# --- the statistics term ---


@hypothesis.given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), batch=st.integers(2, 5), scale=st.floats(1e-3, 1e3)
)
@hypothesis.settings(max_examples=25)
def test_the_divergence_is_its_twin_and_has_no_unit(sizes, batch, scale):
    layers = nn.ModuleList(nn.Linear(n, 1) for n in sizes)
    table, inputs, expected = Statistics(), [], 0.0
    for i, n in enumerate(sizes):
        x = scale * (randn(batch, n, seed=i) * 2 + 1)
        mean, var = scale * randn(n, seed=10 + i), scale**2 * (randn(n, seed=20 + i).square() + 0.1)
        table[str(i)] = Moments(mean, var)
        inputs.append(x.float())
        ridge = 1e-3 * var.mean()
        m, v = twin.moments(x)
        expected += twin.gaussian_divergence(m, v + ridge, mean, var + ridge) / len(sizes)
    watch = Watch(layers, table, Matching(), inputs[0])
    with watch.watching():
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)
        assert float(watch.take().detach()) == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("batch", [40, 4])  # in the latter the live covariance is singular
def test_the_full_divergence_is_its_twin(batch):
    layer = nn.Linear(6, 1)
    x, other = randn(batch, 6) + 0.3, randn(50, 6, seed=1) @ randn(6, 6, seed=2)
    cov = reference.covariance(other)
    table = Statistics({"": Moments(other.mean(0), cov.diagonal().clone(), cov)})
    ridge = 1e-3 * cov.diagonal().mean() * torch.eye(6)
    expected = twin.full_divergence(x.mean(0), reference.covariance(x) + ridge, other.mean(0), cov + ridge)
    watch = Watch(layer, table, Matching(), x.float())
    watch.full[""].count = 6.0
    with watch.watching():
        layer(x.float())
        assert float(watch.take().detach()) == pytest.approx(float(expected), rel=1e-3)
        layer(other.float())
        assert float(watch.take().detach()) == pytest.approx(0, abs=1e-4)


def test_the_papers_norms_and_the_first_layers_factor():
    layers = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    x = randn(8, 3, dtype=torch.float32) * 2
    m, v = twin.moments(x.double())
    norms = float(m.norm() + (v - 1).norm())
    for first in (1, 10):
        watch = Watch(layers, pellucid.statistics(layers), Matching(form="norms", first=first), x)
        with watch.watching():
            layers(x)
            assert float(watch.take().detach()) == pytest.approx((first + 1) * norms, rel=1e-3)


def test_a_dead_channel_a_single_image_and_equal_moments_give_finite_gradients():
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    model[0].running_var[1] = 0
    for form in ("gaussian", "norms"):
        for x in (torch.zeros(1, 3, 2, 2), torch.zeros(4, 3, 2, 2), randn(1, 3, 1, 1, dtype=torch.float32)):
            seen = x.clone().requires_grad_()
            watch = Watch(model, pellucid.statistics(model), Matching(form=form), x)
            with watch.watching():
                model(seen)
                term = watch.take()
            assert term.isfinite() and torch.autograd.grad(term, seen)[0].isfinite().all()


def test_a_layer_that_runs_twice_counts_as_one_of_all_it_saw():
    layer = nn.BatchNorm1d(2).eval()
    a, b = randn(6, 2, dtype=torch.float32), randn(6, 2, seed=1, dtype=torch.float32) + 3
    found = []
    for inputs in ((a, b), (torch.cat([a, b]),)):
        watch = Watch(layer, pellucid.statistics(layer), Matching(), a)
        with watch.watching():
            for x in inputs:
                layer(x)
            found.append(float(watch.take().detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# --- objectives, priors, views, starts, schedules ---


def test_objectives_are_their_twins():
    logits, other = randn(5, 4) * 3, randn(5, 4, seed=1) * 3
    targets = randn(5, 4, seed=2).softmax(1)
    by_hand = -sum(t @ (z / 2).log_softmax(0) for z, t in zip(logits, targets, strict=True)) / 5
    torch.testing.assert_close(CrossEntropy(2.0)(logits, targets), by_hand)
    torch.testing.assert_close(Logit()(logits, targets), -sum(z @ t for z, t in zip(logits, targets, strict=True)) / 5)
    expected = 0.5 * (1 - twin.jensen_shannon(logits, other, 3.0))
    assert float(Disagreement(0.5)(logits, other)) == pytest.approx(expected)


def test_priors_are_their_twins_whatever_the_batch():
    x = randn(3, 2, 4, 5)
    assert float(TotalVariation(2.0)(x)) == pytest.approx(2 * twin.total_variation(x), rel=1e-6)
    for prior in (TotalVariation(1.0), TotalVariation(1.0, "l1"), L2(1.0)):
        assert float(prior(torch.cat([x, x]))) == pytest.approx(float(prior(x)))
    flat = torch.zeros(2, 1, 3, 3, requires_grad=True)
    assert torch.autograd.grad(TotalVariation(1.0)(flat) + L2(1.0)(flat), flat)[0].isfinite().all()


def test_views_move_each_image_by_itself_and_their_gradient_is_exact():
    x = randn(3, 2, 5, 4)
    draws = torch.tensor([[0.0, 0.999], [0.5, 0.5], [0.999, 0.2]])
    moved = Jitter(2)(x, draws, 0.0)
    for i, (dy, dx) in enumerate(((-2, 2), (0, 0), (2, -1))):
        assert torch.equal(moved[i], x[i].roll((dy, dx), (1, 2)))
    flipped = Flip(0.5)(x, torch.tensor([[0.2], [0.7], [0.4]]), 0.0)
    assert torch.equal(flipped, torch.stack([x[0].flip(2), x[1], x[2].flip(2)]))
    assert torch.autograd.gradcheck(lambda x: Jitter(2)(x, draws, 0.0), (x.requires_grad_(),))


def test_crops_are_whole_at_the_start_of_a_curriculum_and_small_at_its_end():
    x = randn(4, 1, 16, 16, dtype=torch.float32).cumsum(2)
    draws = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    draws[:, 1] = 0.5  # an even aspect ratio
    whole = Crop(curriculum=True)(x, draws, 0.0)
    torch.testing.assert_close(whole, x, atol=1e-4, rtol=1e-4)
    small = Crop(0.08, curriculum=True)(x, draws, 1.0)
    torch.testing.assert_close(small, Crop(0.08)(x, draws, 0.3))
    assert (small.amax((1, 2, 3)) - small.amin((1, 2, 3)) < x.amax((1, 2, 3)) - x.amin((1, 2, 3))).all()


def test_draws_depend_on_seed_image_and_step_not_on_the_batch():
    views = (Jitter(2), Flip(), Crop())
    whole, part = (ViewSequence(views, torch.tensor(n), 7, 3) for n in ([4, 9, 2], [9]))
    assert torch.equal(whole.draws[:, 1], part.draws[:, 0])
    assert not torch.equal(whole.draws[:, 0], whole.draws[:, 1])
    assert not torch.equal(whole.draws, ViewSequence(views, torch.tensor([4, 9, 2]), 7, 4).draws)


def test_schedules_turn_fall_and_stop():
    assert Schedule(steps=9, half=2 / 3).stages() == [(0, 6, 2), (6, 9, 1)]
    assert Schedule(steps=9).stages() == [(0, 9, 1)]
    cosine = Schedule(warmup=0.1)
    assert cosine.rate(0.05) == pytest.approx(0.5 * cosine.rate(0.05) / 0.5) and cosine.rate(0.999) < 0.01
    assert cosine.rate(0.0) < 1e-6 and cosine.rate(0.1) > 0.9
    plateau = Plateau(2)
    assert [plateau.step(loss) for loss in (1.0, 0.9, 0.9, 0.9, 0.9, 0.5)] == [1.0, 1.0, 1.0, 1.0, 0.1, 0.1]


@pytest.mark.parametrize(
    ("losses", "factors"),
    [
        # Negative and still, and rising: a plateau. These steps looked like progress: -1 < 0.995 * -1 + 0.005.
        ([-1.0, -1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 0.1, 0.1]),
        ([-1.0, -0.999, -0.998, -0.997, -0.996], [1.0, 1.0, 1.0, 0.1, 0.1]),
        ([-1.0, -1.004, -1.002, -1.003, -1.001], [1.0, 1.0, 1.0, 0.1, 0.1]),
        # Falling by more than 0.5 %: none, through 0 as well.
        ([-1.0, -1.01, -1.03, -1.05, -1.07], [1.0] * 5),
        ([0.02, 0.01, 0.0, -0.01, -0.02], [1.0] * 5),
        ([2.0, 1.0, -1.0, -1.0, -1.0, -1.0], [1.0] * 5 + [0.1]),
    ],
)
def test_a_plateau_of_negative_losses_is_one_and_their_fall_is_none(losses, factors):
    plateau = Plateau(2)
    assert [plateau.step(loss) for loss in losses] == pytest.approx(factors)


@pytest.mark.parametrize("by", [0.005, 0.1])
def test_falling_is_judged_as_before_where_losses_are_positive(by):
    for lowest in (math.inf, 3.7, 1.0, 1e-9, 0.0):
        for loss in (3.7, 3.4, 3.33, 0.995, 0.9, 0.0, -1.0):
            assert falls(loss, lowest, by) == (loss < (1 - by) * lowest)
    for lowest in (-1e-9, -0.2, -40.0):  # mirrored: lower by that fraction of its size
        assert falls((1 + 2 * by) * lowest, lowest, by) and not falls((1 + by / 2) * lowest, lowest, by)
        assert not falls((1 - 2 * by) * lowest, lowest, by), "a higher loss"


# --- the whole ---


def quick(model, targets=("balanced", 10), *args, **options):
    return pellucid.invert(model, targets, *args, **{"steps": 4, "quiet": True, **options})


def test_it_returns_images_in_range_of_what_was_asked(net):
    found = quick(net, [3, 1, 4, 1, 5], seed=2)
    assert found.images.shape == (5, 1, 8, 8) and found.images.dtype == torch.float32
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert found.labels.tolist() == [3, 1, 4, 1, 5] and found.numbers.tolist() == [0, 1, 2, 3, 4]
    mean, std = (getattr(facts(net).normalization, key)[0] for key in ("mean", "std"))
    with frozen(net), torch.no_grad():
        torch.testing.assert_close(net((found.images - mean) / std), found.logits)
    assert {"step", "loss", "objective", "statistics", "priors", "own", "verifiers"} == set(found.history[-1])
    assert torch.equal(found.images, quick(net, [3, 1, 4, 1, 5], seed=2).images)
    assert not torch.equal(found.images, quick(net, [3, 1, 4, 1, 5], seed=3).images)


def test_the_network_is_left_as_it_was_even_if_interrupted(net):
    model = copy.deepcopy(net).train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def look():
        modes = [module.training for module in model.modules()]
        hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks), "forward" in vars(m)) for m in model.modules()]
        return modes, hooks, [p.requires_grad for p in model.parameters()], [p.grad is None for p in model.parameters()]

    wanted = look()
    quick(model)
    assert look() == wanted

    def interrupt(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(model, objective=interrupt)
    with pytest.raises(InputError, match="at step 1"):
        quick(model, objective=lambda images: images.sum() * float("nan"))
    assert look() == wanted
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_runs(net, preset):
    found = quick(net, ("random", 4), preset, verifier=net)
    assert found.images.isfinite().all() and 1 <= found.history[-1]["step"] <= 4
    assert ("statistics" in found.history[-1]) == (preset not in ("dream", "prior-only"))
    assert ("disagreement" in found.history[-1]) == (preset == "adaptive")
    assert recipe(preset, (3, 224, 224)).schedule.steps >= 2000  # the ImageNet form


def test_two_resolutions_and_plateaus(net):
    found = quick(net, steps=None, schedule=Schedule(steps=12, half=0.5, decay="plateau", patience=0.1, stop_after=0.9))
    assert found.history[-1]["step"] == 12
    stopped = quick(net, steps=None, schedule=Schedule(steps=40, lr=1e-9, stop_after=0.1), views=())
    assert stopped.history[-1]["step"] == 5


def test_a_search_with_a_negative_loss_stops_when_it_stands_still_and_goes_on_while_it_falls(net):
    high = copy.deepcopy(net)
    head = next(module for module in reversed(list(high.modules())) if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        head.bias += 50  # so that minus the logit is far below 0
    options = {"objective": Logit(), "matching": None, "priors": (), "views": (), "steps": None}
    still = quick(high, schedule=Schedule(steps=40, lr=1e-9, stop_after=0.1), **options)
    assert still.history[-1]["loss"] < -20 and still.history[-1]["step"] == 5
    with torch.no_grad():
        head.bias -= 48
    falling = quick(high, schedule=Schedule(steps=40, lr=0.3, stop_after=0.3, clip=False), **options)
    assert falling.history[0]["loss"] < 0 and falling.history[-1]["step"] == 40


@pytest.mark.parametrize("start", [Noise(0.5), Fourier(), Fourier(phase_only=True)])
def test_starts_are_functions_of_the_image_alone(net, start):
    whole = quick(net, [0, 1, 2], start=start, steps=1, lr=1e-9)
    part = quick(net, [1], start=start, steps=1, lr=1e-9, indices=torch.tensor([1]))
    torch.testing.assert_close(whole.images[1:2], part.images, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14), (2, 5, 1)])
def test_a_generator_draws_what_its_layers_say(shape):
    c, h, w = shape
    start = Generator(codes=5, width=6, speed=3.0)
    space = Space(shape, randn(c, 1, 1, seed=1), randn(c, 1, 1, seed=2).square() + 0.1)
    vector = start.draw(space, torch.arange(4), seed=0).double()
    vector += 0.1 * randn(len(vector), seed=3)  # scales and shifts that are not 1 and 0
    grid = (-(-h // 4), -(-w // 4))
    twin = nn.Sequential(
        nn.Linear(5, 6 * grid[0] * grid[1], bias=False),
        nn.Unflatten(1, (6, *grid)),
        nn.BatchNorm2d(6),
        nn.Upsample((-(-h // 2), -(-w // 2))),
        nn.Conv2d(6, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.2),
        nn.Upsample((h, w)),
        nn.Conv2d(6, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.LeakyReLU(0.2),
        nn.Conv2d(3, c, 3, padding=1, bias=False),
        nn.BatchNorm2d(c),
        nn.Sigmoid(),
    ).double()
    nn.utils.vector_to_parameters(vector[: -4 * 5], twin.parameters())
    expected = (twin(3.0 * vector[-4 * 5 :].view(4, 5)) - space.mean) / space.std
    torch.testing.assert_close(start.decode(vector, space), expected)


def test_codes_are_functions_of_the_image_and_weights_of_the_seed(net):
    start, space = Generator(), Space((3, 8, 8), torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    whole, part = (start.draw(space, torch.tensor(numbers), 0) for numbers in ([4, 7, 9], [7]))
    assert torch.equal(whole[:-384], part[:-128]) and torch.equal(whole[-256:-128], part[-128:])
    assert not torch.equal(whole[:-384], start.draw(space, torch.tensor([4, 7, 9]), 1)[:-384])
    assert not torch.equal(whole[-256:-128], whole[-128:])
    with pytest.raises(InputError, match="0 codes"):
        Generator(codes=0)


@pytest.mark.slow
def test_a_generator_draws_smoother_images_of_the_same_classes(net):
    """Matched to the same statistics as pixels are, its neighbouring pixels differ less."""

    def roughness(found):
        x = found.images - found.images.mean((2, 3), keepdim=True)
        return float((x[..., 1:] - x[..., :-1]).square().mean() / x.square().mean())

    pixels, drawn = (quick(net, ("balanced", 30), name, steps=150) for name in ("gaussian", "generator"))
    assert (drawn.logits.argmax(1) == drawn.labels).float().mean() > 0.9
    assert roughness(drawn) < 0.8 * roughness(pixels)


def test_a_start_from_images_and_soft_targets(net):
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    soft = randn(3, 10, dtype=torch.float32).softmax(1)
    found = quick(net, soft, start=Images(images), steps=1, lr=1e-9)
    torch.testing.assert_close(found.images, images, atol=1e-4, rtol=1e-3)
    assert torch.equal(found.labels, soft.argmax(1))
    with pytest.raises(InputError, match="start holds images"):
        quick(net, [1], start=Images(images))


def test_targets():
    assert class_targets(("balanced", 5), 3, None, 0)[1].argmax(1).tolist() == [0, 1, 2, 0, 1]
    numbers, rows = class_targets(("balanced", 2), 3, torch.tensor([4, 8]), 0)
    assert numbers.tolist() == [4, 8] and rows.argmax(1).tolist() == [1, 2]
    drawn = class_targets(("random", 50), 3, None, 1)[1].argmax(1)
    assert drawn.bincount(minlength=3).min() > 5
    assert torch.equal(drawn[7:9], class_targets(("random", 2), 3, torch.tensor([7, 8]), 1)[1].argmax(1))
    for wrong in ([3], [-1], [], [[0.5, 0.6, 0.2]], [[0.5, 0.5]], ("some", 3), ("random", 0), "cat", [0.5]):
        with pytest.raises(InputError):
            class_targets(wrong, 3, None, 0)


def test_bad_input_is_a_sentence(net):
    conv = pellucid.build("conv2", 10, 1, 8)
    cases = [
        (lambda: quick(conv, normalization=NORMAL), "record them"),
        (lambda: quick(nn.Flatten()), "shape="),
        (lambda: quick(conv), "normalised"),
        (lambda: quick(net, preset="deepinvasion"), "did you mean 'deepinversion'"),
        (lambda: quick(net, preset="adaptive"), "verifier="),
        (lambda: quick(net, shape=(3, 8, 8)), "3 numbers each, one per channel"),
        (lambda: quick(net, shape=(3, 8, 8), normalization={"mean": [0] * 3, "std": [1] * 3}), "cannot take images"),
        (lambda: quick(net, steps=0), "steps"),
        (lambda: quick(net, lr=-1.0), "learning rate"),
        (lambda: quick(net, weight=-1.0), "weight"),
        (lambda: quick(net, colour=1), "'colour'"),
        (lambda: quick(net, statistics=Statistics({"no": Moments(torch.ones(1), torch.ones(1))})), "'no'"),
        (lambda: quick(net, statistics=Statistics({"bn1": Moments(torch.ones(3), torch.ones(3))})), "16"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()


def test_statistics_recorded_through_any_layer_serve_a_network_without_any():
    torch.manual_seed(0)
    model = pellucid.build("conv2", 10, 1, 8)
    declare(model, normalization=NORMAL)
    images = randn(64, 1, 8, 8, dtype=torch.float32)
    table = pellucid.statistics(model, images, layers=["features.0", "features.2"], covariance=True)
    found = quick(model, statistics=table, steps=25)
    assert found.history[-1]["statistics"] < 0.5 * found.history[0]["statistics"]


def test_the_inputs_own_moments_are_an_entry(net):
    from dataclasses import replace

    base = recipe("gaussian", (1, 8, 8))
    gaps = []
    for weight in (0.0, 50.0):
        found = quick(net, ("balanced", 20), replace(base, matching=replace(base.matching, input=weight)), steps=25)
        mean, std = (getattr(facts(net).normalization, key)[0] for key in ("mean", "std"))
        x = (found.images - mean) / std
        gaps.append(abs(float(x.mean())) + abs(float(x.var()) - 1))
    assert gaps[1] < 0.5 * gaps[0]


def test_whitening_layers_are_matched_in_full_and_by_variances(whitened):
    """The covariances that images were matched to are nearer than where variances alone were."""
    from dataclasses import replace

    base = recipe("gaussian", (1, 8, 8))
    table = pellucid.statistics(whitened)
    assert {entry.of for entry in table.values()} == {"patches", "channels"}
    far = {}
    for covariance in (True, False):
        found = quick(whitened, ("balanced", 20), replace(base, matching=Matching(covariance=covariance)), steps=25)
        x = (found.images - facts(whitened).normalization.mean[0]) / facts(whitened).normalization.std[0]
        watch = Watch(whitened, table, Matching(), x)
        with frozen(whitened), watch.watching(), torch.no_grad():
            whitened(x)
            far[covariance] = float(watch.take().detach())
    assert far[True] < 0.9 * far[False]


def test_parametrized_weights_are_made_once(net):
    calls = []

    class Twice(nn.Module):
        def forward(self, w):
            calls.append(1)
            return 2 * w

    model = copy.deepcopy(net)
    torch.nn.utils.parametrize.register_parametrization(model.conv1, "weight", Twice())
    calls.clear()
    quick(model, steps=5)
    assert len(calls) == 1
    model.conv1(torch.zeros(1, 1, 8, 8))
    assert len(calls) == 2


@pytest.mark.slow
def test_trained_networks_give_images_that_another_network_recognises():
    """Own answers right, and those of a network trained from other weights mostly; noise is not."""
    model, other = (trained(steps=400, seed=seed) for seed in (0, 1))
    found = quick(model, ("balanced", 50), steps=200)
    pixels = export.quantized(found.images)
    noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))
    assert (predicted_classes(model, pixels) == found.labels).float().mean() >= 0.9
    assert (predicted_classes(other, pixels) == found.labels).float().mean() > 0.25  # chance is 0.1
    assert (predicted_classes(model, noise) == found.labels).float().mean() < 0.4


@pytest.mark.slow
def test_compiled_steps_are_the_eager_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    options = {"shape": (1, 8, 8), "normalization": NORMAL, "steps": 6}
    eager, compiled = (quick(model, ("balanced", 6), compile=flag, **options) for flag in (False, True))
    torch.testing.assert_close(eager.images, compiled.images, atol=1e-3, rtol=1e-3)


def test_it_and_reconstruct_leave_everything_as_it_was(net):
    with unchanged(net):
        quick(net, ("random", 3), verifier=net)
        pellucid.reconstruct(net, torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), "conv1", steps=2)
        predicted_classes(net, torch.full((2, 1, 8, 8), 0.5))


def test_networks_may_be_named_in_python(net, tmp_path):
    path = tmp_path / "net.safetensors"
    pellucid.save(net, path)
    own = quick(net, [3, 1], verifier=net)
    named = quick(path, [3, 1], verifier=[str(path), net])
    assert torch.equal(own.images, named.images)
    assert named.history[-1]["verifiers"] == 2 * own.history[-1]["verifiers"]
    image = torch.full((1, 1, 8, 8), 0.5)
    back = [pellucid.reconstruct(named, image, "conv1", steps=2).images for named in (net, str(path))]
    assert torch.equal(*back)
    drawn = quick("resnet8", [0], shape=(3, 32, 32), steps=1)  # an architecture has random weights
    assert drawn.images.shape == (1, 3, 32, 32)
    with pytest.raises(InputError, match="nowhere"):
        quick("nowhere.safetensors", [0])


def test_a_recipe_is_changed_by_keyword():
    base = recipe("gaussian", (1, 8, 8))
    assert changed(base) == base
    found = changed(base, steps=7, lr=0.5, weight=2.0, covariance=False, input=3.0, tv=0.25, disagreement=0.75)
    assert (found.schedule.steps, found.schedule.lr) == (7, 0.5)
    assert found.matching == Matching(weight=2.0, covariance=False, input=3.0)
    assert found.priors == (TotalVariation(0.25),) and found.disagreement == Disagreement(0.75)
    assert changed(base, weight=0).matching is None
    assert changed(recipe("dream", (1, 8, 8)), weight=4.0).matching == Matching(weight=4.0)
    assert changed(recipe("hidden", (1, 8, 8)), tv=1.0).priors == (TotalVariation(1.0), L2(1e-5))
    for wrong in ({"input": -1.0}, {"tv": -1.0}, {"disagreement": float("nan")}, {"steps": 0}):
        with pytest.raises(InputError):
            changed(base, **wrong)
    with pytest.raises(InputError, match="leave out --input"):
        changed(recipe("dream", (1, 8, 8)), input=1.0)


def test_the_flag_names_every_preset():
    assert get_args(Preset) == tuple(PRESETS)


# --- reconstruction ---


def test_an_early_layer_gives_its_image_back_and_a_late_one_less(net):
    digits = load_data("digits")
    images = digits.test.fetch(torch.arange(4)).float() / 255
    early = pellucid.reconstruct(net, images, "conv1", steps=80)
    late = pellucid.reconstruct(net, images, "avgpool", steps=80)
    assert (early.error < 0.1 * early.noise).all() and (late.error < late.noise).all()
    assert (early.images - images).abs().mean() < 0.05 < (late.images - images).abs().mean()
    alone = pellucid.reconstruct(net, images[:1], "conv1", steps=80)
    torch.testing.assert_close(alone.images, early.images[:1], atol=1e-2, rtol=1e-2)
    for wrong in (
        lambda: pellucid.reconstruct(net, images, "conv9"),
        lambda: pellucid.reconstruct(net, images[0], "conv1"),
    ):
        with pytest.raises(InputError):
            wrong()


# --- the command ---


def test_the_command_writes_images_a_grid_and_a_record(net, tmp_path):
    pellucid.save(net, tmp_path / "net.safetensors")
    words = (
        "invert",
        "net.safetensors",
        "--out",
        "out",
        "--targets",
        "3",
        "7",
        "--count",
        "4",
        "--steps",
        "3",
        "--batch-size",
        "3",
    )
    done = run(*words, "--verifier", "net.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Real images used: none." in done.stdout and done.stdout.strip().splitlines()[-1].startswith(
        "Next: pellucid"
    )
    record = json.loads((tmp_path / "out" / "invert.json").read_text())
    assert record["files"] == ["3_00000_seed0.png", "7_00001_seed0.png", "3_00002_seed0.png", "7_00003_seed0.png"]
    assert record["labels"] == [3, 7, 3, 7] and record["real_images"] is None and len(record["history"]) == 2
    pixels = []
    for file in record["files"]:
        with Image.open(tmp_path / "out" / file) as image:
            pixels.append(torch.from_numpy(np.array(image)))
    images = torch.stack(pixels)[:, None].float() / 255
    right = int((predicted_classes(net, images) == torch.tensor(record["labels"])).sum())
    assert record["accuracy"]["net.safetensors"]["correct"] == right
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.size == (19, 19)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--targets", "cat"], "'cat'"),
        (["--count", "0"], "--count 0"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--statistics", "no.safetensors"], "There is no file 'no.safetensors'"),
        (["--mean", "0.5"], "--mean and --std"),
        (["--mean", "0.5", "--std", "0.5"], "leave out"),
        (["--num-classes", "3"], "--num-classes"),
        (["--preset", "adaptive"], "verifier"),
        (["--verifier", "resnet20=gone.th"], "gone.th"),
        (["--lr", "0"], "--lr 0.0 is out of range: give a number above 0"),
    ],
)
def test_bad_flags_are_a_sentence_and_write_nothing(net, tmp_path, capsys, monkeypatch, words, part):
    from pellucid.cli import main

    monkeypatch.chdir(tmp_path)
    pellucid.save(net, "net.safetensors")
    assert main(["invert", "net.safetensors", "--out", "out", "--quiet", *words]) == 2
    error = capsys.readouterr().err
    assert part in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.vision
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_zoo_network_inverts_in_both_resolutions(tmp_path):
    words = (
        "invert",
        "torchvision:resnet18",
        "--out",
        "out",
        "--count",
        "2",
        "--steps",
        "3",
        "--preset",
        "deepinversion",
    )
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_json_is_one_object_and_quiet_is_silence(net, tmp_path, capsys, monkeypatch):
    from pellucid.cli import main

    monkeypatch.chdir(tmp_path)
    pellucid.save(net, "net.safetensors")
    words = [
        "invert",
        "net.safetensors",
        "--out",
        "out",
        "--count",
        "3",
        "--steps",
        "2",
        "--tv",
        "0.5",
        "--no-covariance",
    ]
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "out" / "invert.json").read_text())
    row = record["accuracy"]["net.safetensors"]
    assert set(row) == {"correct", "n", "accuracy", "interval", "noise"}
    assert row["n"] == 3 and row["accuracy"] == row["correct"] / 3 and row["interval"][0] <= row["accuracy"]
    assert record["settings"]["tv"] == 0.5 and record["settings"]["covariance"] is False
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
