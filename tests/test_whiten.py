"""Whitening beside its float64 twins, after real training steps, resumed, frozen, and in two processes."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pellucid
import reference
from pellucid.core.errors import InputError
from pellucid.core.network.plain import border
from pellucid.whiten import isqrt as roots
from pellucid.whiten import quintic, state
from pellucid.whiten.blocks import Blocks
from pellucid.whiten.channels import ChannelDeconv
from pellucid.whiten.convolution import FastDeconv1d, FastDeconv2d, FastDeconv3d
from pellucid.whiten.linear import FastDeconvLinear
from pellucid.whiten.options import DEFAULTS, HEAD
from pellucid.whiten.state import EVERY_STEP
from pellucid.whiten.transposed import FastDeconvTranspose2d
from processes import ENVIRONMENT


def spd(features: int, condition: float, scale: float, seed: int, batch: int = 2) -> Tensor:
    """Covariances (batch, F, F) in float64 with eigenvalues from `scale` down to scale / condition."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(batch, features, features, generator=generator, dtype=torch.float64)).Q
    values = scale * condition ** -torch.linspace(0, 1, features, dtype=torch.float64)
    return (q * values) @ q.mT


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def with_response(cov: Tensor, n: int) -> Tensor:
    """What n published Newton steps make of float64 covariances, by their eigenvalues."""
    values, vectors = torch.linalg.eigh(cov)
    s = (values / cov.norm(dim=(-2, -1))[:, None]).sqrt()
    gain = s
    for _ in range(n):
        gain = 1.5 * gain - 0.5 * gain**3
    return (vectors * (gain / values.sqrt()).unsqueeze(-2)) @ vectors.mT


# --- inverse square roots ---


@settings(max_examples=25)
@given(
    st.integers(1, 24),
    st.floats(1, 1e4),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e12]),
    st.integers(1, 7),
    st.integers(0, 99),
)
def test_newton_and_eigh_have_the_published_response(features, condition, scale, n, seed):
    cov = spd(features, condition, scale, seed)
    expected = with_response(cov, n)
    published = torch.stack([reference.newton_schulz(each, n) for each in cov])
    assert relative(published, expected) < 1e-9
    assert relative(roots.newton(cov, n), expected) < 1e-9
    assert relative(roots.eigh(cov, n), expected) < 1e-9
    assert relative(roots.newton(cov.float(), n), expected) < 2e-4
    assert relative(roots.eigh(cov.float(), n), expected) < 2e-4


@settings(max_examples=25)
@given(
    st.integers(1, 24), st.floats(1, 1e6), st.sampled_from([1e-12, 1.0, 1e12]), st.integers(3, 6), st.integers(0, 99)
)
def test_the_other_methods_are_the_ridge(features, condition, scale, n, seed):
    cov = spd(features, condition, scale, seed)
    delta = cov.norm(dim=(-2, -1)) / 1.5 ** (2 * n)
    exact = torch.stack([reference.isqrt(each, d) for each, d in zip(cov, delta.tolist(), strict=True)])
    assert relative(roots.polynomial(cov, n), exact) < 3e-3
    assert relative(roots.polynomial(cov.float(), n), exact) < 4e-3
    eye = torch.eye(features, dtype=torch.float64)
    low = roots.cholesky(cov, n)
    torch.testing.assert_close(low, low.tril())
    torch.testing.assert_close(low @ (cov + delta[:, None, None] * eye) @ low.mT, eye.expand_as(cov), atol=1e-6, rtol=0)
    warm = eye.float().repeat(2, 1, 1)
    for _ in range(EVERY_STEP):
        warm = roots.newton_warm(cov.float(), warm, n)
    assert relative(warm, exact) < 5e-4


def test_a_warm_root_follows_a_dominated_covariance_for_long():
    cov = spd(32, 1e3, 1e-3, 0, batch=1).float()
    cov = cov + torch.ones(32, 32) / 32  # one direction far above the others
    warm = torch.eye(32)[None]
    for _ in range(600):
        warm = roots.newton_warm(cov, warm, 5)
    exact = reference.isqrt(cov[0].double(), cov[0].double().norm().item() / 1.5**10)
    assert relative(warm[0], exact) < 1e-5


@pytest.mark.parametrize("method", roots.METHODS)
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_singular_matrices_have_finite_roots(method, scale):
    thin = torch.randn(3, 6, 2) * scale**0.5
    made = roots.isqrt(thin @ thin.mT, method, 5, torch.eye(6).repeat(3, 1, 1))
    assert made.isfinite().all() and (made.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_the_polynomial_needs_fewer_products_and_its_steps_are_the_best():
    steps = quintic.schedule(0.13)
    assert len(steps) == 3  # nine products, where five Newton steps take twelve
    (a, b, c), error = quintic.best_quintic(0.13)
    s = torch.linspace(0.13, 1, 4001, dtype=torch.float64)
    off = a * s + b * s**3 + c * s**5 - 1
    assert off.abs().max().item() == pytest.approx(error, rel=1e-5)
    peaks = [off[0], off[1:-1].max(), off[1:-1].min(), off[-1]]  # the error alternates between its extremes
    assert all(abs(p.item()) == pytest.approx(error, rel=1e-5) for p in peaks)


def test_bad_roots_are_refused():
    with pytest.raises(InputError, match="Unknown method 'sqrt': choose one of newton"):
        roots.isqrt(torch.eye(2), "sqrt")
    with pytest.raises(InputError, match="give root="):
        roots.isqrt(torch.eye(2), "newton-warm")


# --- the published arithmetic ---

PUBLISHED = {
    "one block": ({"channels": 4, "out": 5, "kernel": 3, "padding": 1}, (3, 9, 8)),
    "interleaved": ({"channels": 12, "out": 4, "kernel": 3, "padding": 1, "block": 4}, (3, 8, 7)),
    "not divisible": ({"channels": 6, "out": 4, "kernel": 3, "block": 4}, (3, 8, 7)),
    "groups": ({"channels": 6, "out": 4, "kernel": 3, "padding": 1, "groups": 2}, (3, 8, 7)),
    "depthwise": ({"channels": 4, "out": 8, "kernel": 3, "padding": 1, "groups": 4}, (3, 8, 7)),
    "1x1 padded": ({"channels": 5, "out": 4, "kernel": 1, "padding": 1}, (4, 8, 7)),
    "1x1 groups": ({"channels": 6, "out": 4, "kernel": 1, "padding": 1, "stride": 2, "groups": 2}, (6, 8, 7)),
    "1x1 interleaved": ({"channels": 8, "out": 4, "kernel": 1, "stride": 2, "block": 4}, (6, 8, 7)),
    "stride": ({"channels": 4, "out": 5, "kernel": 3, "stride": 2, "padding": 1}, (4, 11, 13)),
    "dilation": ({"channels": 4, "out": 5, "kernel": 3, "padding": 2, "dilation": 2, "sampling_stride": 2}, (3, 9, 8)),
    "many steps": ({"channels": 3, "out": 5, "kernel": 2, "n_iter": 12, "eps": 1e-2, "momentum": 0.3}, (3, 9, 8)),
    "no bias": ({"channels": 3, "out": 5, "kernel": 3, "bias": False}, (3, 9, 8)),
}


def compare(layer: nn.Module, twin, draw, steps: int = 3) -> None:
    """Outputs, gradients of weight, bias and input, and running values of float32 `layer` and float64 `twin`."""
    for step in range(steps):
        x = draw(step)
        x32, x64 = x.float().requires_grad_(), x.float().double().requires_grad_()
        y, expected = layer.train()(x32), twin(x64, True)
        torch.testing.assert_close(y.double(), expected.detach(), atol=1e-5, rtol=1e-5)
        towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(step))
        layer.zero_grad()
        (y * towards).sum().backward()
        (expected * towards.double()).sum().backward()
        pairs = [(x32.grad, x64.grad)]
        for name in ("weight", "bias"):
            if getattr(layer, name, None) is not None:
                pairs.append((getattr(layer, name).grad, getattr(twin, name).grad))
                getattr(twin, name).grad = None
        for ours, theirs in pairs:
            assert (ours.double() - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp_min(1)
        x = draw(100 + step)
        with torch.no_grad():
            y, expected = layer.eval()(x.float()), twin(x.float().double(), False)
            torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)


def images(*shape: int):
    """Correlated images with a mean, the same for the same step."""

    def draw(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return 1.5 * x + 0.7 * x.roll(1, 1) + torch.linspace(-1, 2, shape[1]).reshape(-1, *[1] * (len(shape) - 2))

    return draw


@pytest.mark.parametrize("case", PUBLISHED)
def test_as_published_equals_the_twin(case):
    options, (n, *size) = PUBLISHED[case]
    options = dict(options)
    channels, out, kernel = (options.pop(key) for key in ("channels", "out", "kernel"))
    torch.manual_seed(0)
    layer = FastDeconv2d.as_published(channels, out, kernel, **options)
    options.pop("bias", None)
    twin = reference.FastDeconv(layer.weight, layer.bias, **options)
    compare(layer, twin, images(n, channels, *size))
    torch.testing.assert_close(layer.whiten.running_mean.double(), twin.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.whiten.root.double(), twin.root, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("features", "block"), [(10, 512), (12, 4), (10, 4)])
def test_the_published_linear_layer_equals_the_twin(features, block):
    layer = FastDeconvLinear.as_published(features, 4, block=block)
    twin = reference.Delinear(layer.weight, layer.bias, block=block)
    compare(layer, twin, images(16, features))
    torch.testing.assert_close(layer.whiten.running_mean.double(), twin.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.whiten.root.double(), twin.root, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [8, 4, 3])
@pytest.mark.parametrize("shape", [(24, 8), (4, 8, 7, 5)])
def test_the_published_channel_layer_equals_the_twin(block, shape):
    layer = ChannelDeconv.as_published(8, block=block, eps=1e-2)
    twin = reference.ChannelDeconv(block, eps=1e-2)
    draw = images(*shape)
    compare(layer, twin, draw)
    mean, root, *rest = twin.state
    torch.testing.assert_close(layer.whiten.running_mean[0].double(), mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.whiten.root[0].double(), root, atol=1e-5, rtol=1e-5)
    if rest:
        torch.testing.assert_close(torch.stack([layer.rest_mean, layer.rest_var]).double(), torch.stack(rest))
    weight, bias = layer.folded()
    x = draw(7).float()
    plain = (weight @ x.reshape(shape[0], 8, -1) + bias[:, None]).reshape(shape)
    torch.testing.assert_close(layer(x), plain, atol=1e-5, rtol=1e-5)


def test_the_published_root_freezes():
    layer = FastDeconv2d.as_published(3, 4, 3, freeze_after=2)
    draw = images(4, 3, 8, 7)
    for step in range(2):
        layer(draw(step).float())
    before = copy.deepcopy(layer.state_dict())
    y = layer(draw(2).float())
    torch.testing.assert_close(y, layer.eval()(draw(2).float()))
    after = layer.state_dict()
    assert after.pop("whiten.steps") == 3 and before.pop("whiten.steps") == 2
    assert all(torch.equal(after[key], before[key]) for key in after)


def test_the_published_channel_layer_freezes_whole():
    layer = ChannelDeconv.as_published(5, block=3, freeze_after=2)
    draw = images(4, 5, 6, 7)
    for step in range(3):
        x = draw(step).float()
        y = layer(x)
    torch.testing.assert_close(y, layer.eval()(x))
    fresh = ChannelDeconv.as_published(5, block=3)
    fresh(torch.full_like(x, torch.inf))
    assert all(value.isfinite().all() for value in fresh.state_dict().values())


# --- the default arithmetic ---


def trained(layer: nn.Module, draw, steps: int, rate: float = 0.05) -> nn.Module:
    """`layer` after real steps of SGD towards random targets."""
    optimizer = torch.optim.SGD(layer.parameters(), rate)
    for step in range(steps):
        y = layer.train()(draw(step).float())
        target = torch.randn(y.shape, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (y - target).square().mean().backward()
        optimizer.step()
    return layer


@pytest.mark.parametrize("method", roots.METHODS)
@pytest.mark.parametrize("groups", [1, 2])
def test_whitened_patches_have_the_identity_as_covariance(method, groups):
    torch.manual_seed(0)
    options = {"method": method, "n_iter": 20, "block": 2, "sampling_stride": 1, "refresh": 2}
    layer = trained(FastDeconv2d(6, 4, 3, padding=1, groups=groups, **options), images(24, 6, 8, 7), 60)
    mean, root = layer.whiten.at_eval()
    rows = reference.patches(images(24, 6, 8, 7)(999)[:6], (3, 3), (1, 1), (1, 1), (1, 1))
    for g, block in enumerate(layer.blocks.fold(rows.T.reshape(6, 9, -1))):
        white = root[g].double() @ (block - mean[g].double()[:, None])
        real = block.abs().sum(1) > 0  # features that fill up the last block are 0
        assert real.sum() in (9, 18)
        off = torch.cov(white[real], correction=0) - torch.eye(int(real.sum()))
        assert off.abs().max() < 0.35 and off.square().mean().sqrt() < 0.08  # six images of another draw
        assert white.mean(1).abs().max() < 0.3


@pytest.mark.parametrize("options", [{}, {"padding_mode": "reflect"}, {"stride": 2}, {"dilation": 2}])
def test_mean_and_covariance_are_of_padded_patches(options):
    """In training and evaluation alike; the channels' means would be another number at every border."""
    torch.manual_seed(0)
    layer = FastDeconv2d(4, 3, 3, padding=2, block=3, sampling_stride=1, **options)
    x = images(5, 4, 9, 8)(0)
    y = layer(x.float())
    sides = {"padding_mode": "zeros", "stride": 1, "dilation": 1} | options
    padded = nn.functional.pad(x, (2, 2, 2, 2), mode="reflect" if "padding_mode" in options else "constant")
    rows = reference.patches(padded, (3, 3), (sides["stride"],) * 2, (0, 0), (sides["dilation"],) * 2)
    mean, cov = layer.whiten.running_mean.double(), layer.whiten.running_cov.double()
    assert layer.blocks == Blocks(4, 1, 2, 2, 9)
    for g in range(2):
        block = rows[:, 18 * g : 18 * (g + 1)]
        torch.testing.assert_close(mean[g], block.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(cov[g], reference.covariance(block), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.eval()(x.float()), y, atol=1e-5, rtol=1e-5)  # one batch: the same mean and root
    bias = layer.bias.double()[:, None, None]
    torch.testing.assert_close((y.double() - bias).mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5, rtol=0)


def test_blocks_share_out_what_does_not_divide():
    assert Blocks.cut(65, 1, 64, 9) == Blocks(65, 1, 2, 33, 9)
    assert Blocks.cut(12, 3, 64, 1) == Blocks(12, 3, 1, 4, 1)
    blocks = Blocks.cut(14, 2, 3, 2)
    x = torch.randn(14, 2, 5)
    assert blocks.fold(x).shape == (6, 6, 5)
    assert torch.equal(blocks.unfold(blocks.fold(x)), x)
    weight, mean, root = torch.randn(4, 7, 2), torch.randn(6, 6), torch.randn(6, 6, 6)
    made, shift = blocks.times(weight, mean, root)
    for o in range(4):
        at = blocks.fold(torch.cat([w * (o // 2 == g) for g, w in enumerate([weight[o]] * 2)]))  # (6, F)
        rows = (at.unsqueeze(1) @ root).squeeze(1)
        expected = blocks.unfold(rows)[7 * (o // 2) : 7 * (o // 2 + 1)]
        torch.testing.assert_close(made[o], expected)
        torch.testing.assert_close(shift[o], (rows * mean).sum())


@pytest.mark.parametrize(("momentum", "refresh"), [(0.1, 1), (0.4, 3), (1.0, 1)])
def test_running_values_are_debiased(momentum, refresh):
    layer = FastDeconvLinear(4, 2, momentum=momentum, refresh=refresh)
    draw, steps = images(12, 4), EVERY_STEP + 7
    batches = [draw(step).float() for step in range(steps)]
    for x in batches:
        layer(x)
    means = [x.double().mean(0) for x in batches]
    covs = [
        torch.cov(x.double().T, correction=0) for t, x in enumerate(batches, 1) if t <= EVERY_STEP or t % refresh == 0
    ]
    assert layer.whiten.updates == len(covs) and layer.whiten.steps == steps
    torch.testing.assert_close(layer.whiten.running_mean[0].double(), reference.debiased(means, momentum))
    torch.testing.assert_close(layer.whiten.running_cov[0].double(), reference.debiased(covs, momentum))


def test_roots_are_made_when_they_are_due(monkeypatch):
    layer = FastDeconv2d(3, 4, 3, refresh=4, freeze_after=EVERY_STEP + 9)
    solved, sampled = [], []
    solve, covariance = state.isqrt, state.covariance
    monkeypatch.setattr(state, "isqrt", lambda *a: solved.append(int(layer.whiten.steps)) or solve(*a))
    monkeypatch.setattr(state, "covariance", lambda *a: sampled.append(1) or covariance(*a))
    draw = images(2, 3, 6, 5)
    for step in range(EVERY_STEP + 20):
        if step == EVERY_STEP + 9:
            before = copy.deepcopy(layer.state_dict())
        layer(draw(step).float())
    assert solved == [*range(1, EVERY_STEP + 1), EVERY_STEP + 2, EVERY_STEP + 6]
    assert len(sampled) == len(solved)
    after = layer.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in after if key != "whiten.steps")
    x = draw(0).float()
    frozen = layer(x)
    torch.testing.assert_close(frozen, layer.eval()(x), rtol=0, atol=0)


def test_a_kept_root_is_not_copied_every_step_and_never_stale():
    layer = FastDeconvLinear(4, 2, refresh=5)
    draw = images(12, 4)
    for step in range(EVERY_STEP):
        layer(draw(step).float())
    kept = layer.whiten._constant()
    layer(draw(99).float())
    assert layer.whiten._constant() is kept
    layer.whiten.root.mul_(2)  # as when processes share their buffers
    assert torch.equal(layer.whiten._constant(), layer.whiten.root)
    twin = copy.deepcopy(layer)
    twin.whiten.root.mul_(2)
    assert torch.equal(twin.whiten._constant(), 2 * layer.whiten._constant())
    layer.load_state_dict(twin.state_dict())
    assert torch.equal(layer.whiten._constant(), twin.whiten.root)


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return layer.weight.grad.clone(), x.grad


def test_gradients_flow_through_what_they_should():
    torch.manual_seed(0)
    layers = {
        grad: FastDeconv2d(4, 3, 3, padding=1, grad=grad, method="newton", refresh=1)
        for grad in ("none", "mean", "full")
    }
    for layer in layers.values():
        layer.load_state_dict(layers["none"].state_dict())
    x = images(3, 4, 9, 8)(0).float()
    found = {grad: gradients(layer, x) for grad, layer in layers.items()}
    for grad in ("mean", "full"):
        torch.testing.assert_close(found[grad][0], found["none"][0], atol=1e-4, rtol=1e-4)  # dL/dW, given the same D
    # "none" is the folded convolution's gradient; "mean" takes the patches' mean out of it.
    weight, bias = layers["none"].eval().folded()
    free = x.clone().requires_grad_()
    y = nn.functional.conv2d(free, weight.detach(), bias.detach(), padding=1)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    torch.testing.assert_close(found["none"][1], free.grad)
    whole = torch.nn.functional.conv2d(x, weight.detach(), None, padding=1)
    assert (found["mean"][1] - found["none"][1]).norm() > 1e-3 * whole.norm() / whole.numel()
    cosine = nn.functional.cosine_similarity
    assert 0.5 < cosine(found["mean"][1].flatten(), found["full"][1].flatten(), 0) < 0.999


def test_an_overflow_leaves_no_trace():
    for options in (
        {},
        {"grad": "full", "method": "newton", "refresh": 1},
        {"method": "cholesky"},
        {"method": "newton-warm"},
    ):
        layer = FastDeconv2d(3, 4, 3, **options)
        x = images(4, 3, 6, 5)(0).float()
        layer(x)
        before = copy.deepcopy(layer.state_dict())
        bad = x.clone()
        bad[0, 0, 0, 0] = torch.inf
        assert not layer(bad).isfinite().all()
        after = layer.state_dict()
        assert all(value.isfinite().all() for value in after.values())
        torch.testing.assert_close(after["whiten.running_cov"], before["whiten.running_cov"])
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("method", roots.METHODS)
def test_one_sample_does_not_vary(method):
    layer = FastDeconvLinear(4, 2, method=method)
    x = images(9, 4)(0).float()
    layer(x[:1])
    torch.testing.assert_close(layer.whiten.running_mean[0], x[0])
    assert torch.equal(layer.whiten.root[0], torch.eye(4)) and layer.whiten.updates == 0
    layer(x)
    fresh = FastDeconvLinear(4, 2, method=method)
    fresh(x)
    assert torch.equal(layer.whiten.root, fresh.whiten.root)


RESUMED = {
    "default": {},
    "refresh": {"refresh": 7, "method": "newton-warm"},
    "freeze": {"refresh": 4, "freeze_after": EVERY_STEP + 6},
    "full": {"grad": "full", "refresh": 1, "method": "newton", "freeze_after": EVERY_STEP + 6},
    "published": {"grad": "full", "refresh": 1, "method": "newton", "average": "roots", "debias": False},
}


@pytest.mark.parametrize("case", RESUMED)
def test_resuming_is_bit_identical(case):
    def network() -> nn.Module:
        torch.manual_seed(0)
        options = RESUMED[case]
        return nn.Sequential(
            FastDeconv2d(3, 5, 3, padding=1, block=2, **options), nn.ReLU(), ChannelDeconv(5, block=3, **options),
            nn.Flatten(), FastDeconvLinear(60, 2, block=16, **options),
        )  # fmt: skip

    def train(model: nn.Module, steps: range) -> list[float]:
        losses = []
        for step in steps:
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            loss = model(draw(step).float()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    draw, model = images(6, 3, 4, 3), network()
    train(model, range(EVERY_STEP + 2))
    saved = copy.deepcopy(model.state_dict())
    rest = range(EVERY_STEP + 2, EVERY_STEP + 16)
    straight = train(model, rest)
    resumed = network()
    resumed.load_state_dict(saved)
    assert train(resumed, rest) == straight
    for (name, a), b in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    x = draw(0).float()
    assert torch.equal(model.eval()(x), resumed.eval()(x))
    idle = network().eval()
    idle.load_state_dict(model.state_dict())  # loaded into a network that is evaluating already
    assert torch.equal(idle(x), model(x))


def test_the_statistics_table_has_one_entry_a_layer():
    torch.manual_seed(0)
    model = nn.Sequential(
        FastDeconv2d(3, 6, 3, block=2, sampling_stride=1), nn.ReLU(), ChannelDeconv(6, sampling_stride=1), nn.Flatten(2)
    )
    x = images(8, 3, 9, 8)(0).float()
    model(x)
    table = pellucid.statistics(model)
    assert list(table) == ["0", "2"]
    assert table["0"].of == "patches" and table["2"].of == "channels"
    assert table["0"].mean.shape == (2, 18) and table["0"].cov.shape == (2, 18, 18)
    recorded = pellucid.statistics(model, x, layers=["2"], covariance=True)["2"]
    torch.testing.assert_close(table["2"].mean[0].double(), recorded.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(table["2"].cov[0].double(), recorded.cov, atol=1e-5, rtol=1e-5)
    published = nn.Sequential(ChannelDeconv.as_published(6, block=3, debias=True)).train()
    published(model[:2](x).detach())
    moments = pellucid.statistics(published)["0"]
    assert moments.of == "pooled"
    torch.testing.assert_close(moments.var, moments.cov.diagonal(dim1=-2, dim2=-1))


def test_bad_options_are_refused():
    for options, words in [
        ({"n_iter": 0}, "n_iter=0 must be at least 1"),
        ({"eps": -1.0}, "eps=-1.0 must be at least 0"),
        ({"momentum": 0.0}, "momentum=0.0 must be above 0"),
        ({"method": "svd"}, "method='svd' must be auto"),
        ({"refresh": 0}, "refresh=0 must be at least 1"),
        ({"freeze_after": 0}, "freeze_after=0 must be None"),
        ({"grad": "all"}, "grad='all' must be full"),
        ({"average": "both"}, "average='both' must be"),
        ({"grad": "full"}, "refresh=1, not 16"),
        ({"grad": "full", "refresh": 1}, "not possible with method='auto'"),
        ({"average": "roots"}, "use grad='full'"),
        ({"block": 0}, "block=0 must be at least 1"),
        ({"sampling_stride": 0}, "sampling_stride=0 must be at least 1"),
        ({"blocks": "shared"}, "blocks='shared' must be separate or pooled"),
    ]:
        with pytest.raises(InputError, match=words):
            FastDeconv2d(3, 4, 3, **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'blok'"):
        FastDeconv2d(3, 4, 3, blok=2)
    with pytest.raises(InputError, match=r"ChannelDeconv takes \(N, 4, ...\)"):
        ChannelDeconv(4)(torch.randn(2, 5))


def test_initialisation_is_the_plain_twins():
    for made, plain in [
        (FastDeconv1d, nn.Conv1d),
        (FastDeconv2d, nn.Conv2d),
        (FastDeconv3d, nn.Conv3d),
        (FastDeconvTranspose2d, nn.ConvTranspose2d),
    ]:
        torch.manual_seed(0)
        a = made(4, 6, 3)
        torch.manual_seed(0)
        b = plain(4, 6, 3)
        assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)
        assert isinstance(a, plain)


# --- as code ---


def pellucid_frames_down_to_newton(layer: nn.Module, x: Tensor) -> list[str]:
    """Functions of pellucid on the stack, from `forward` down to `newton`, in the training step on x."""
    stack: list[str | None] = []
    found: list[list[str]] = []
    package = str(Path(pellucid.__file__).parent)

    def profile(frame, event, _):
        if event == "call":
            code = frame.f_code
            stack.append(code.co_name if code.co_filename.startswith(package) else None)
            if stack[-1] == "newton":
                found.append([name for name in stack if name is not None])
        elif event == "return" and stack:
            stack.pop()

    sys.setprofile(profile)
    try:
        layer(x)
    finally:
        sys.setprofile(None)
    assert found
    return max(found, key=len)


@pytest.mark.parametrize("options", [{}, {"grad": "full", "refresh": 1}, {"refresh": 1, "grad": "none"}])
def test_from_a_layer_to_the_newton_step_are_at_most_five_calls(options):
    x = images(4, 4, 8, 8)(0).float()
    for layer in (
        FastDeconv2d(4, 3, 3, method="newton", **options),
        FastDeconv2d.as_published(4, 3, 3),
        FastDeconvTranspose2d(4, 3, 3, method="newton", **options),
        FastDeconvLinear(8, 3, method="newton", **options),
        ChannelDeconv(4, method="newton", **options),
    ):
        way = pellucid_frames_down_to_newton(layer.train(), x)
        assert way[0] == "forward" and way[-1] == "newton"
        assert len(way) <= 5, way


def test_signatures_show_every_option():
    for layer in (FastDeconv1d, FastDeconv2d, FastDeconv3d, FastDeconvTranspose2d, FastDeconvLinear, ChannelDeconv):
        shown = inspect.signature(layer).parameters
        expected = {**DEFAULTS, **(HEAD if layer is FastDeconvLinear else {})}
        assert {name: shown[name].default for name in expected} == expected
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in shown.values())
        made = layer(6) if layer is ChannelDeconv else layer(6, 4) if layer is FastDeconvLinear else layer(6, 4, 3)
        names = {"relative_eps": "relative"}
        assert {name: getattr(made.whiten, names.get(name, name)) for name in expected} == expected
    assert all(f"{name}: " in FastDeconv2d.__doc__ for name in DEFAULTS)


@pytest.mark.parametrize("padding", [(1, 2), "same", "valid"])
def test_the_border_is_torchs(padding):
    plain = nn.Conv2d(1, 1, (2, 5), padding=padding, dilation=(3, 1))
    assert border(plain.padding, plain.kernel_size, plain.dilation) == tuple(plain._reversed_padding_repeated_twice)


def test_the_output_size_is_torchs():
    torch.manual_seed(0)
    layer = FastDeconvTranspose2d(2, 3, (3, 2), stride=(2, 3), padding=1, dilation=(1, 2)).eval()
    plain = nn.ConvTranspose2d(2, 3, (3, 2), stride=(2, 3), padding=1, dilation=(1, 2))
    plain.load_state_dict({name: layer.state_dict()[name] for name in ("weight", "bias")})
    x = torch.randn(2, 2, 5, 4)
    for size in ([9, 10], [10, 12], [2, 3, 10, 11]):
        torch.testing.assert_close(layer(x, output_size=size), plain(x, output_size=size))
    for size in ([8, 10], [9, 13]):
        with pytest.raises(ValueError, match="valid sizes"):
            plain(x, output_size=size)
        with pytest.raises(InputError, match=r"must be between \[9, 10\] and \[10, 12\]"):
            layer(x, output_size=size)


# --- two processes ---

WORKER = """
import sys, torch
import torch.distributed as dist
from pellucid.whiten.layers import ChannelDeconv, FastDeconv2d, FastDeconvLinear

def network(options):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        FastDeconv2d(3, 4, 3, padding=1, block=2, **options), torch.nn.ReLU(), ChannelDeconv(4, block=3, **options),
        torch.nn.Flatten(), FastDeconvLinear(48, 2, block=16, **options),
    )

def run(model, shares):
    found = []
    for x in shares:
        x = x.clone().requires_grad_()
        y = model(x)
        model.zero_grad()
        (y * torch.linspace(-1, 1, 2) + y.square()).sum().backward()
        for p in model.parameters():
            if dist.is_initialized():
                dist.all_reduce(p.grad)
        found += [y.detach(), x.grad]
    return found, [p.grad for p in model.parameters()], [b.clone() for b in model.buffers()]

def close(a, b):
    for mine, whole in zip(a, b, strict=True):
        gap = (mine - whole).abs().max()
        assert gap <= 1e-5 * max(1, whole.abs().max()), (mine.shape, gap)

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(1)
batches = [torch.randn(9, 3, 4, 3) * 2 + 1 for _ in range(3)]
# Not the same number of images each.
mine = slice(0, 5) if rank == 0 else slice(5, 9)
cases = [dict(), dict(refresh=1, grad="full", method="newton"), dict(grad="none", method="cholesky")]
alone = [run(network(options), batches) for options in cases]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
for options, (found, grads, buffers) in zip(cases, alone, strict=True):
    here = run(network({**options, "sync": True}), [x[mine] for x in batches])
    close(here[0], [value[mine] for value in found])
    close(here[1], grads)
    close(here[2], buffers)
wrapped = torch.nn.parallel.DistributedDataParallel(network({"sync": True}))
for x in batches:
    wrapped.zero_grad()
    y = wrapped(x[mine])
    (y * torch.linspace(-1, 1, 2) + y.square()).sum().backward()
close([2 * p.grad for p in wrapped.parameters()], alone[0][1])  # it takes the mean over processes
close(list(wrapped.buffers()), alone[0][2])
own = torch.nn.parallel.DistributedDataParallel(network({"refresh": 2}))  # each its own statistics, the first's kept
for x in batches:
    own(x[mine]).square().sum().backward()
own.eval()(batches[0]).square().sum().backward()
seen = [torch.empty_like(b) for b in own.buffers()]
for mine, first in zip(own.buffers(), seen, strict=True):
    first.copy_(mine)
    dist.broadcast(first, 0)
    assert torch.equal(mine, first)
dist.barrier()
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error:::torch.distributed", str(script), str(rank), str(tmp_path)],
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
