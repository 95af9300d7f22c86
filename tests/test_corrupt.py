"""Corruptions: published strengths, determined by (seed, index) alone, moments as their formulas say."""

from __future__ import annotations

import pytest
import torch

from pellucid.core.corrupt import KINDS, corrupt
from pellucid.core.errors import InputError


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_corrupted_alike_in_any_batch(kind):
    images = torch.rand(6, 3, 9, 7)
    whole = corrupt(images, kind, 3, seed=5)
    alone = torch.cat([corrupt(images[i : i + 1], kind, 3, seed=5, indices=torch.tensor([i])) for i in range(6)])
    assert torch.equal(whole, alone)
    assert not torch.equal(whole, corrupt(images, kind, 3, seed=6))
    assert not torch.equal(corrupt(images[:1], kind, 3), corrupt(images[:1], kind, 3, indices=torch.tensor([1])))
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert torch.equal(images, images.clone())


@pytest.mark.parametrize("kind", KINDS)
def test_severities_grow(kind):
    images = torch.rand(20, 1, 16, 16)
    damage = [(corrupt(images, kind, s) - images).square().mean().item() for s in range(1, 6)]
    assert damage == sorted(damage)
    assert damage[0] > 0


def test_moments_are_those_of_the_formulas():
    grey = torch.full((200, 1, 16, 16), 0.5)

    def spread(kind: str, level: float) -> float:
        return (corrupt(grey, kind, level=level) - grey).square().mean().sqrt().item()

    assert spread("gaussian_noise", 0.05) == pytest.approx(0.05, rel=0.02)
    assert spread("speckle_noise", 0.1) == pytest.approx(0.05, rel=0.02)
    assert spread("shot_noise", 400.0) == pytest.approx((0.5 / 400) ** 0.5, rel=0.02)
    hit = corrupt(grey, "impulse_noise", level=0.2)
    assert (hit != 0.5).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (hit == 1).float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_bad_values_are_named():
    images = torch.rand(1, 1, 4, 4)
    with pytest.raises(InputError, match="'fog_of_war'"):
        corrupt(images, "fog_of_war", 1)
    with pytest.raises(InputError, match="Severity 6"):
        corrupt(images, "shot_noise", 6)
    with pytest.raises(InputError, match="either"):
        corrupt(images, "shot_noise")
    with pytest.raises(InputError, match="level -1"):
        corrupt(images, "shot_noise", level=-1.0)
    with pytest.raises(InputError, match="before normalising"):
        corrupt(images - 1, "shot_noise", 1)
