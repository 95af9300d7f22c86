"""Corruptions: published strengths, determined by (seed, kind, index) alone, equal to slow twins by definition."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_sample_images
from torch.nn import functional as F

import reference_corrupt as twin
from pellucid.core.errors import InputError
from pellucid.core.measure.corrupt import EXTRA, KINDS, STANDARD, corrupt_images
from pellucid.core.seeds import seed_of

DRAWN = [name for name, kind in KINDS.items() if kind.draw is not None]
# What the published strengths do not promise: these severities differ in nature, not in amount alone.
UNEVEN = {"glass_blur", "frost", "elastic_transform", "spatter", "saturate"}


@functools.cache
def photographs(side: int) -> torch.Tensor:
    """scikit-learn's two photographs (China, a flower), RGB, `side` pixels square, and eight pieces of each."""
    whole = [
        torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255 for image in load_sample_images().images
    ]
    middle = [image[..., :, 100:527] for image in whole]
    shrunk = [F.interpolate(image, (side, side), mode="bilinear", antialias=True) for image in middle]
    pieces = [image[..., i : i + side, i : i + side] for image in middle for i in range(0, 8 * 32, 32)]
    return torch.cat([*shrunk, *pieces]).clamp(0, 1)


def test_they_are_the_fifteen_and_the_four():
    assert len(STANDARD) == 15
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")
    assert list(KINDS) == [*STANDARD, *EXTRA]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_corrupted_alike_in_any_batch(kind):
    images = torch.rand(6, 3, 13, 9)
    before = images.clone()
    whole = corrupt_images(images, kind, 3, seed=5)
    alone = torch.cat([corrupt_images(images[i : i + 1], kind, 3, seed=5, indices=torch.tensor([i])) for i in range(6)])
    assert torch.equal(whole, alone)
    assert (kind in DRAWN) != torch.equal(whole, corrupt_images(images, kind, 3, seed=6))
    second = corrupt_images(images[:1], kind, 3, indices=torch.tensor([1]))
    assert (kind in DRAWN) != torch.equal(corrupt_images(images[:1], kind, 3), second)
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert torch.equal(images, before)


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(list(KINDS)),
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3]), st.integers(8, 40), st.integers(8, 40)),
    severity=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_size_grey_or_colour(kind, shape, severity, dtype):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed_of(*shape)), dtype=dtype)
    made = corrupt_images(images, kind, severity)
    assert made.shape == images.shape
    assert made.dtype == dtype
    assert made.isfinite().all()
    assert made.min() >= 0 and made.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [32, pytest.param(112, marks=pytest.mark.slow)])
def test_damage_grows_with_severity_on_photographs(kind, side):
    images = photographs(side)[: 2 if kind == "glass_blur" else 18]
    damage = [(corrupt_images(images, kind, s) - images).square().mean().item() for s in range(1, 6)]
    assert damage[0] > 0
    if kind not in UNEVEN:
        assert damage == sorted(damage)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - UNEVEN - {"pixelate"}))
def test_damage_grows_with_severity_on_digits(kind):
    images = torch.from_numpy(load_digits().images[:60, None] / 16).float()
    damage = [(corrupt_images(images, kind, s) - images).square().mean().item() for s in range(1, 6)]
    assert damage == sorted(damage)
    assert damage[4] > damage[0]


def test_small_images_get_the_milder_published_strengths():
    grey = torch.full((2, 1, 96, 96), 0.5), torch.full((2, 1, 97, 97), 0.5)
    spreads = [(corrupt_images(images, "gaussian_noise", 5) - 0.5).std().item() for images in grey]
    assert spreads[0] == pytest.approx(0.10, rel=0.05)
    assert spreads[1] == pytest.approx(0.38, rel=0.2)  # clipped
    for kind in KINDS:
        for size, own in ((96, "cifar"), (97, "imagenet")):
            image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(size))
            other = {"cifar": "imagenet", "imagenet": "cifar"}[own]
            made = [corrupt_images(image, kind, 2, strengths=named) for named in ("auto", own, other)]
            assert torch.equal(made[0], made[1])
            assert torch.equal(made[0], made[2]) == (KINDS[kind].levels[1] == KINDS[kind].small_levels[1])


# --- twins ---


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    image = photographs(40)[:2, ..., :27]
    return torch.cat([image, torch.rand(2, 3, 40, 27, generator=torch.Generator().manual_seed(0))])


def compare(images: torch.Tensor, kind: str, severity: int, slow, seed: int = 3, atol: float = 1e-5) -> None:
    """`slow(image, level, draw)`, clipped, beside `corrupt`; the draw is made again from the image's own stream."""
    made = corrupt_images(images, kind, severity, seed=seed).numpy()
    entry = KINDS[kind]
    level = entry.levels_for(images.shape[-2:])[severity - 1]
    for index, image in enumerate(images):
        draw = None
        if entry.draw is not None:
            draw = entry.draw(image, level, torch.Generator().manual_seed(seed_of(seed, kind, index))).numpy()
        wanted = np.clip(slow(image.double().numpy(), level, draw), 0, 1)
        np.testing.assert_allclose(made[index], wanted, atol=atol)


@pytest.mark.parametrize("severity", [1, 5])
@pytest.mark.parametrize("channels", [1, 3])
def test_exact_kinds_equal_their_twins(pictures, severity, channels):
    images = pictures[:, :channels]
    compare(images, "gaussian_blur", severity, lambda x, c, _: twin.gaussian_blur(x, c))
    compare(images, "defocus_blur", severity, lambda x, c, _: twin.defocus_blur(x, *c))
    compare(images, "zoom_blur", severity, lambda x, c, _: twin.zoom_blur(x, c))
    compare(images, "contrast", severity, lambda x, c, _: twin.contrast(x, c))
    compare(images, "brightness", severity, lambda x, c, _: twin.brightness(x, c))
    compare(images, "pixelate", severity, lambda x, c, _: twin.pixelate(x, c))
    compare(images, "fog", severity, lambda x, c, d: twin.fog(x, *c, d[0].astype(float)))
    compare(images, "elastic_transform", severity, lambda x, c, d: twin.elastic(x, d.astype(float)), atol=1e-4)
    compare(images[:2], "motion_blur", severity, lambda x, c, d: twin.motion_blur(x, c[1], d.tolist()))
    if channels == 3:
        compare(images, "saturate", severity, lambda x, c, _: twin.saturate(x, *c))


def test_strong_kinds_equal_their_twins_on_larger_images():
    images = photographs(100)[:1, :, :, :98]
    for severity in (3, 5):
        compare(images, "defocus_blur", severity, lambda x, c, _: twin.defocus_blur(x, *c))
        compare(images, "zoom_blur", severity, lambda x, c, _: twin.zoom_blur(x, c))
        compare(images, "pixelate", severity, lambda x, c, _: twin.pixelate(x, c))


def test_grey_images_have_no_saturation_to_change():
    grey = torch.rand(2, 1, 9, 9)
    assert torch.equal(corrupt_images(grey, "saturate", 4), grey)


def test_glass_only_moves_pixels_of_the_blurred_image_a_little(pictures):
    reach, rounds = 1, 2
    source = KINDS["glass_blur"].draw(pictures[0], (0.4, reach, rounds), torch.Generator().manual_seed(1))
    assert torch.equal(source.sort().values, torch.arange(40 * 27))
    level = KINDS["glass_blur"].small_levels[4]

    def slow(image, c, order):
        blurred = twin.gaussian_blur(image, c[0])
        return twin.gaussian_blur(blurred.reshape(len(image), -1)[:, order].reshape(image.shape), c[0])

    compare(pictures, "glass_blur", 5, slow)
    one_round = KINDS["glass_blur"].draw(pictures[0], (*level[:2], 1), torch.Generator().manual_seed(1))
    rows, columns = one_round // 27, one_round % 27
    # A pixel may be carried on by the next exchange, but always upwards and to the left by no more than it was met.
    assert (rows - torch.arange(40 * 27) // 27).min() >= -40
    assert (
        (rows - torch.arange(40 * 27) // 27).abs() + (columns - torch.arange(40 * 27) % 27).abs()
    ).float().mean() < 2


@pytest.mark.parametrize("severity", [2, 5])
def test_the_elastic_map_is_an_affine_one_and_a_smooth_one(severity):
    image, share = torch.rand(1, 36, 30), KINDS["elastic_transform"].small_levels[severity - 1]
    alpha, sigma, jitter = (30 * part for part in share)
    maps = KINDS["elastic_transform"].draw(image, share, torch.Generator().manual_seed(2)).double()
    rng = torch.Generator().manual_seed(2)
    moves = jitter * (2 * torch.rand(3, 2, generator=rng, dtype=torch.float64) - 1)
    # Where a corner is moved to, the corner is read.
    for corner, move in zip([(28, 25), (28, 5), (8, 5)], moves, strict=True):
        corner = torch.tensor(corner, dtype=torch.float64)
        at = corner + move
        gradient = torch.stack([maps[:2, 1, 0] - maps[:2, 0, 0], maps[:2, 0, 1] - maps[:2, 0, 0]], 1)
        assert torch.allclose(maps[:2, 0, 0] + gradient @ at, corner, atol=1e-3)
    noise = 2 * torch.rand(2, 36, 30, generator=rng, dtype=torch.float64) - 1
    wanted = twin.displacement(noise.numpy(), alpha, sigma)
    own = maps[2:] - torch.stack(torch.meshgrid(torch.arange(36), torch.arange(30), indexing="ij"))
    np.testing.assert_allclose(own.numpy(), wanted, atol=1e-5)


def test_jpeg_is_the_codec(pictures):
    import io

    from PIL import Image

    made = corrupt_images(pictures, "jpeg_compression", 5)
    for image, out in zip(pictures, made, strict=True):
        file = io.BytesIO()
        pixels = np.rint(image.numpy().transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=40)
        np.testing.assert_allclose(out.numpy().transpose(1, 2, 0) * 255, np.asarray(Image.open(file)), atol=1e-4)
    five = torch.rand(1, 5, 16, 16)
    each = [corrupt_images(five[:, c : c + 1], "jpeg_compression", 1) for c in range(5)]
    assert torch.equal(corrupt_images(five, "jpeg_compression", 1), torch.cat(each, 1))


def test_moments_are_those_of_the_formulas():
    grey = torch.full((200, 1, 16, 16), 0.5)

    def spread(kind: str, level: float) -> float:
        return (corrupt_images(grey, kind, level=level) - grey).square().mean().sqrt().item()

    assert spread("gaussian_noise", 0.05) == pytest.approx(0.05, rel=0.02)
    assert spread("speckle_noise", 0.1) == pytest.approx(0.05, rel=0.02)
    assert spread("shot_noise", 400.0) == pytest.approx((0.5 / 400) ** 0.5, rel=0.02)
    hit = corrupt_images(grey, "impulse_noise", level=0.2)
    assert (hit != 0.5).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (hit == 1).float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_weather_covers_as_it_says():
    dark = torch.full((3, 3, 64, 48), 0.1)
    ice = corrupt_images(dark, "frost", 5) - 0.75 * 0.1
    assert (ice[:, 2] > ice[:, 0]).all()  # bluish
    assert 0.1 < ice.mean() < 0.35
    mud, water = corrupt_images(dark, "spatter", 5), corrupt_images(dark, "spatter", 3)
    assert 0.02 < (mud != dark).any(1).float().mean() < 0.6
    assert (water >= dark).all() and 0.02 < (water != dark).any(1).float().mean() < 0.6
    snow = corrupt_images(dark, "snow", 5)
    assert (snow >= dark).all() and 0.1 < (snow - dark).mean() < 0.8


def test_bad_values_are_named():
    images = torch.rand(1, 1, 9, 9)
    with pytest.raises(InputError, match="'fog_of_war'"):
        corrupt_images(images, "fog_of_war", 1)
    with pytest.raises(InputError, match="Severity 6"):
        corrupt_images(images, "shot_noise", 6)
    with pytest.raises(InputError, match="either"):
        corrupt_images(images, "shot_noise")
    with pytest.raises(InputError, match="strengths='tiny'"):
        corrupt_images(images, "shot_noise", 1, strengths="tiny")
    with pytest.raises(InputError, match="level -1"):
        corrupt_images(images, "shot_noise", level=-1.0)
    with pytest.raises(InputError, match="no level of one number"):
        corrupt_images(images, "fog", level=1.0)
    with pytest.raises(InputError, match="before normalising"):
        corrupt_images(images - 1, "shot_noise", 1)
    with pytest.raises(InputError, match="8x8 pixels or more, not 7x9"):
        corrupt_images(images[:, :, :7], "fog", 1)
    assert corrupt_images(images[:, :, :4], "shot_noise", 1).shape == (1, 1, 4, 9)
