"""Attacks: inside the ball and the range, never weaker than the clean image, the same in any batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization
from pellucid.core.measure.attack import fgsm, pgd


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A small convolutional network after real training steps on digits, in float64 and evaluation mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    ).double()
    images, labels = digits(256)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(20):
        loss = F.cross_entropy(model((images - 0.3) / 0.4), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def digits(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    split = pellucid.load_data("digits").train
    return split.fetch(torch.arange(n)).double() / 255, split.labels[:n]


def losses(model, images, labels):
    with torch.no_grad():
        return F.cross_entropy(model(images), labels, reduction="none")


@settings(deadline=None, max_examples=15)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.sampled_from([0.0, 1 / 255, 0.05, 0.3, 2.0]),
    steps=st.integers(1, 4),
    size=st.sampled_from([None, 0.01, 1.0]),
    start=st.booleans(),
    seed=st.integers(0, 5),
)
def test_inside_the_ball_and_the_range_and_never_weaker_than_clean(net, norm, eps, steps, size, start, seed):
    images, labels = digits(7)
    model = Normalization((0.3,), (0.4,)).wrap(net)
    made = pgd(model, images, labels, eps=eps, norm=norm, steps=steps, step_size=size, random_start=start, seed=seed)
    shift = (made - images).flatten(1)
    length = shift.abs().amax(1) if norm == "linf" else shift.norm(dim=1)
    assert (length <= eps * (1 + 1e-6) + 1e-12).all()
    assert made.min() >= 0 and made.max() <= 1
    if start:
        assert (losses(model, made, labels) >= losses(model, images, labels) - 1e-12).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_find_more(net, norm):
    images, labels = digits(100)
    model, eps = Normalization((0.3,), (0.4,)).wrap(net), {"linf": 0.1, "l2": 0.8}[norm]
    clean = losses(model, images, labels).mean()
    once = losses(model, fgsm(model, images, labels, eps=eps, norm=norm), labels).mean()
    often = losses(model, pgd(model, images, labels, eps=eps, norm=norm, steps=10), labels).mean()
    random = images + eps * (2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 1)
    assert clean + 0.3 < once < often
    if norm == "linf":
        assert losses(model, random.clamp(0, 1), labels).mean() < clean + 0.15


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_one_step_by_hand(net, norm):
    images, labels = digits(20)
    x = images.clone().requires_grad_()
    gradient = torch.autograd.grad(F.cross_entropy(net(x), labels, reduction="sum"), x)[0]
    for image, label, slope, made in zip(
        images, labels, gradient, fgsm(net, images, labels, eps=0.07, norm=norm), strict=True
    ):
        step = 0.07 * (slope.sign() if norm == "linf" else slope / slope.norm())
        wanted = (image + step).clamp(0, 1)
        kept = losses(net, wanted[None], label[None]) > losses(net, image[None], label[None])
        assert torch.allclose(made, wanted if kept else image, atol=1e-9)
        assert kept or norm == "linf"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_same_in_any_batch_and_by_seed(net, norm):
    images, labels = digits(6)
    whole = pgd(net, images, labels, eps=0.1, norm=norm, steps=3, seed=4)
    for i in range(6):
        alone = pgd(
            net, images[i : i + 1], labels[i : i + 1], eps=0.1, norm=norm, steps=3, seed=4, indices=torch.tensor([i])
        )
        assert torch.allclose(alone[0], whole[i], atol=1e-9)
    assert not torch.equal(whole, pgd(net, images, labels, eps=0.1, norm=norm, steps=3, seed=5))


def test_weights_and_modes_are_left_alone(net):
    images, labels = digits(4)
    for parameter in net.parameters():
        parameter.grad = None
    pgd(net, images, labels, eps=0.1)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.training


def test_bad_values_are_named(net):
    images, labels = digits(2)
    with pytest.raises(InputError, match="norm='l1'"):
        pgd(net, images, labels, eps=0.1, norm="l1")
    with pytest.raises(InputError, match=r"eps \(-1"):
        pgd(net, images, labels, eps=-1.0)
    with pytest.raises(InputError, match="Normalization.wrap"):
        pgd(net, 3 * images, labels, eps=0.1)
    assert pgd(net, images[:0], labels[:0], eps=0.1).shape == (0, 1, 8, 8)
