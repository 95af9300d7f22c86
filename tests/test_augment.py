"""Batched augmentation beside slow twins, one image and one pixel at a time, under the same draws."""

from __future__ import annotations

import importlib.util
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.data.augment import Augment, normalize
from pellucid.core.data.mix import mix
from pellucid.core.data.policy import apply_policy
from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

SIZES = st.tuples(st.integers(1, 5), st.sampled_from([1, 3]), st.integers(3, 9), st.integers(3, 9))


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def moved_slowly(images: np.ndarray, draws: np.ndarray, pad: int) -> np.ndarray:
    """Pad by reflection, cut out at the drawn place, mirror where drawn."""
    height, width = images.shape[2:]
    out = []
    for image, (y, x, mirror, _, _) in zip(images, draws, strict=True):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
        part = padded[:, y : y + height, x : x + width]
        out.append(part[:, :, ::-1] if mirror else part)
    return np.stack(out)


def erased_slowly(images: np.ndarray, draws: np.ndarray, side: int) -> np.ndarray:
    """Zero every pixel whose row and column lie in the square of this side around the drawn centre."""
    out = images.copy()
    for image, (_, _, _, y, x) in zip(out, draws, strict=True):
        for row in range(y - side // 2, y - side // 2 + side):
            for column in range(x - side // 2, x - side // 2 + side):
                if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                    image[:, row, column] = 0
    return out


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 8), st.booleans(), st.integers(0, 12), st.integers(0, 2**40))
def test_crop_flip_and_cutout_equal_their_slow_twins(size, crop, flip, cutout, seed):
    augment = Augment(crop=min(crop, min(size[2:]) - 1), flip=flip, cutout=cutout)
    images = pixels(*size, seed=seed % 1000)
    draws = augment.draw(size[0], size[2:], seed=seed, epoch=1, step=2)
    moved = augment.move(images, draws)
    assert np.array_equal(moved, moved_slowly(images.numpy(), draws.numpy(), augment.crop))
    mean, std = (0.4, 0.5, 0.6)[: size[1]], (0.2, 0.25, 0.3)[: size[1]]
    exact = (moved.numpy() / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    for channels_last in (False, True):
        floats = normalize(moved, mean, std, channels_last=channels_last)
        assert floats.dtype == torch.float32
        np.testing.assert_allclose(floats.numpy(), exact, atol=2e-6)
        erased = augment.erase(floats, draws).numpy()
        np.testing.assert_allclose(erased, erased_slowly(exact, draws.numpy(), cutout), atol=2e-6)


def test_draws_are_uniform_and_depend_on_seed_epoch_and_step_only():
    augment = Augment(crop=2, flip=True, cutout=4)
    draws = augment.draw(20000, (6, 8), seed=3, epoch=1, step=7)
    for column, high in enumerate((5, 5, 2, 6, 8)):
        share = torch.bincount(draws[:, column], minlength=high) / 20000
        assert len(share) == high
        assert (share - 1 / high).abs().max() < 0.02
    assert draws.equal(augment.draw(20000, (6, 8), seed=3, epoch=1, step=7))
    for other in ({"seed": 4}, {"epoch": 2}, {"step": 8}):
        assert not draws.equal(augment.draw(20000, (6, 8), **{"seed": 3, "epoch": 1, "step": 7, **other}))


def test_augmentation_of_a_batch_takes_milliseconds():
    augment, images, mean = Augment(crop=4, flip=True, cutout=16), pixels(128, 3, 32, 32), (0.5, 0.5, 0.5)
    times = []
    for step in range(15):
        begun = time.perf_counter()
        draws = augment.draw(128, (32, 32), seed=0, epoch=0, step=step)
        augment.erase(normalize(augment.move(images, draws), mean, mean), draws)
        times.append(time.perf_counter() - begun)
    assert sorted(times)[7] < 0.02  # 1 ms on an idle core


@pytest.mark.parametrize(
    ("options", "word"),
    [({"crop": -1}, "crop is -1"), ({"cutout": -3}, "cutout is -3"), ({"policy": "trivail"}, "'trivail'")],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(InputError, match=word):
        Augment(**options)


def test_a_crop_padding_as_large_as_the_image_is_refused():
    with pytest.raises(InputError, match="8 pixels.*at most 7"):
        Augment(crop=8).check((8, 12))


def test_seeds_differ_for_every_tuple_and_are_fixed_for_good():
    tuples = [("a", 1, 2), ("a", 12), ("a", 2, 1), ("b", 1, 2), (1,), ("1",), (-1,), (2**80,), ()]
    assert len({seed_of(*parts) for parts in tuples}) == len(tuples)
    assert all(0 <= seed_of(*parts) < 2**63 for parts in tuples)
    assert seed_of("order", 0, 0) == seed_of("order", np.int64(0), False) == 4876581156571347824


def mixed_slowly(images, labels, classes, total, first, draws):
    """Pair by pair from the same weights: `draws` tells for pair j (paste, weight, rectangle)."""
    out, targets = images.copy(), np.zeros((len(images), classes))
    for i in range(len(images)):
        partner = i + 1 if (first + i) % 2 == 0 else i - 1
        partner = i if first + i == total - 1 and total % 2 else partner
        paste, weight, (top, bottom, left, right) = draws[(first + i) // 2]
        if paste:
            height, width = images.shape[2:]
            out[i, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
            weight = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            out[i] = weight * images[i] + (1 - weight) * images[partner]
        targets[i, labels[i]] += weight
        targets[i, labels[partner]] += 1 - weight
    return out, targets


def pair_draws(total, size, mixup, cutmix, seed, epoch, step):
    """The stream of draws that `mix` documents: choice, weights of both kinds, rows, then columns."""
    rng, pairs = np.random.default_rng(seed_of("mix", seed, epoch, step)), (total + 1) // 2
    choice = rng.random(pairs) if mixup and cutmix else np.full(pairs, 0.0 if cutmix else 1.0)
    pasted, blended = rng.beta(cutmix or 1, cutmix or 1, pairs), rng.beta(mixup or 1, mixup or 1, pairs)
    rows, columns = rng.integers(0, size[0], pairs), rng.integers(0, size[1], pairs)
    draws = []
    for j in range(pairs):
        tall, wide = (int(np.sqrt(1 - pasted[j]) * side) for side in size)
        top, left = rows[j] - tall // 2, columns[j] - wide // 2
        box = (max(top, 0), min(top + tall, size[0]), max(left, 0), min(left + wide, size[1]))
        paste = choice[j] < 0.5
        draws.append((paste, pasted[j] if paste else blended[j], box))
    return draws


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([(0.4, 0.0), (0.0, 1.0), (0.8, 1.0), (0.2, 0.3)]), st.integers(0, 2**40))
def test_mixing_equals_its_slow_twin(size, strengths, seed):
    images = pixels(*size, seed=seed % 1000).double() / 255
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, size[0]))
    mixup, cutmix = strengths
    where = {"seed": seed, "epoch": 2, "step": 5}
    found, targets = mix(images, labels, 4, mixup=mixup, cutmix=cutmix, total=size[0], **where)
    draws = pair_draws(size[0], size[2:], mixup, cutmix, **where)
    want, soft = mixed_slowly(images.numpy(), labels.numpy(), 4, size[0], 0, draws)
    np.testing.assert_allclose(found, want, atol=1e-12)
    np.testing.assert_allclose(targets, soft, atol=1e-12)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("total", [8, 7])
def test_mixing_shares_of_a_batch_equals_mixing_it_whole(total):
    images, labels = pixels(total, 3, 6, 6).float(), torch.arange(total)
    options = {"mixup": 0.5, "cutmix": 1.0, "seed": 1, "epoch": 2, "step": 3, "total": total}
    whole, targets = mix(images, labels, total, **options)
    assert not whole.equal(images)
    for first in range(0, total, 2):
        share = slice(first, first + 2)
        found, soft = mix(images[share], labels[share], total, first=first, **options)
        assert found.equal(whole[share])
        assert soft.equal(targets[share])


def test_mixing_off_gives_plain_targets_and_bad_input_a_sentence():
    images, labels = pixels(4, 1, 3, 3).float(), torch.tensor([0, 2, 1, 1])
    where = {"seed": 0, "epoch": 0, "step": 0, "total": 12}
    same, targets = mix(images, labels, 3, **where)
    assert same is images
    assert targets.argmax(1).equal(labels)
    with pytest.raises(InputError, match="negative"):
        mix(images, labels, 3, mixup=-1, **where)
    for share, first in ((3, 0), (4, 3)):
        with pytest.raises(InputError, match="even number"):
            mix(images[:share], labels[:share], 3, cutmix=1, first=first, **where)


@pytest.mark.vision
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs the extra vision")
@pytest.mark.parametrize("policy", ["trivial", "rand", "auto"])
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_depend_on_each_image_seed_and_leave_the_generator_alone(policy, channels):
    images = pixels(1, channels, 32, 32).expand(12, -1, -1, -1)
    state = torch.get_rng_state()
    seeds = [seed_of(number) for number in range(12)]
    found = apply_policy(images, policy, seeds)
    assert torch.get_rng_state().equal(state)
    assert found.dtype == torch.uint8
    assert len({row.numpy().tobytes() for row in found}) > 3
    assert found[4:6].equal(apply_policy(images[:2], policy, seeds[4:6]))
