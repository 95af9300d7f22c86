"""Names, fixed splits, statistics, and the batches' promise: a function of (seed, epoch, step) and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.data.augment import Augment
from pellucid.core.data.batches import batches, steps_per_epoch
from pellucid.core.data.dataset import load_data
from pellucid.core.data.splits import MemorySplit, holdout, moments
from pellucid.core.errors import InputError

PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def split_of(count: int, side: int = 8) -> MemorySplit:
    rng = np.random.default_rng(count)
    images = torch.from_numpy(rng.integers(0, 256, (count, 3, side, side), dtype=np.uint8))
    return MemorySplit(images, torch.from_numpy(rng.integers(0, 4, count)))


# ---- names and splits


def test_digits_are_split_the_same_for_everyone():
    digits = load_data("digits")
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1212, 135, 450)
    assert (digits.channels, digits.image_size, digits.flip) == (1, (8, 8), False)
    assert digits.classes == tuple("0123456789")
    from sklearn.datasets import load_digits

    source = load_digits()

    def rows(images: np.ndarray) -> set[bytes]:
        return {image.astype(np.uint8).tobytes() for image in images}

    parts = [digits.train, digits.val, digits.test]
    together = torch.cat([part.fetch(torch.arange(len(part))) for part in parts])
    assert rows(together[:, 0].numpy()) == rows(np.rint(source.images * 255 / 16))
    for part in parts:
        share = torch.bincount(part.labels) / len(part)
        whole = torch.bincount(torch.from_numpy(source.target)) / 1797
        assert (share - whole).abs().max() < 0.006
    assert digits.fingerprint == load_data("digits").fingerprint
    assert digits.fingerprint != load_data("digits", val_fraction=0.2).fingerprint


def test_statistics_are_those_of_the_training_split_alone():
    digits = load_data("digits")
    pixels = digits.train.fetch(torch.arange(1212)).double() / 255
    assert digits.mean == pytest.approx((pixels.mean().item(),), abs=1e-12)
    assert digits.std == pytest.approx((pixels.std(correction=0).item(),), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_moments_equal_float64_however_the_images_are_cut(count, channels, side, cut):
    images = np.random.default_rng(count * side).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    mean, std = moments(torch.from_numpy(images).split(cut))
    np.testing.assert_allclose(mean, (images / 255.0).mean((0, 2, 3)), atol=1e-12)
    spread = (images / 255.0).std((0, 2, 3))
    np.testing.assert_allclose(std, np.where(spread < 1e-12, 1, spread), atol=1e-9)


def test_a_constant_channel_has_deviation_one():
    images = torch.full((3, 2, 4, 4), 7, dtype=torch.uint8)
    images[0, 1] = 9
    assert moments([images])[1][0] == 1.0
    assert moments([images])[1][1] < 0.01


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.floats(0.05, 0.45))
def test_holding_out_is_stratified_disjoint_and_never_empties_a_class(sizes, fraction):
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    try:
        kept, held = holdout(labels, fraction, "x")
    except InputError:
        assert round(fraction * len(labels)) == 0 or max(sizes) == 1
        return
    assert torch.cat([kept, held]).sort().values.equal(torch.arange(len(labels)))
    taken = torch.bincount(labels[held], minlength=len(sizes))
    for size, count in zip(sizes, taken.tolist(), strict=True):
        assert count < size
        assert abs(count - size * fraction) <= 1 or size - 1 < size * fraction + 1
    wanted = round(fraction * len(labels))
    assert len(held) == min(wanted, sum(size - 1 for size in sizes)) or len(held) <= wanted


def test_small_sets_are_resized_on_request():
    digits = load_data("digits", image_size=12)
    assert digits.image_size == (12, 12)
    plain = load_data("digits").train.fetch(torch.arange(50))
    wide = torch.nn.functional.interpolate(plain.float(), (12, 12), mode="bilinear", antialias=True)
    assert (digits.train.fetch(torch.arange(50)).float() - wide).abs().max() <= 1
    with pytest.raises(InputError, match="memory budget"):
        load_data("digits", image_size=2000)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("digit", {}, r"'digit'.*did you mean digits"),
        ("cifar11:/x", {}, r"did you mean cifar10"),
        ("nothing like it", {}, r"one of digits, cifar10\[:PATH\]"),
        ("folder", {}, r"did you mean folder:PATH"),
        ("npz:", {}, r"did you mean npz:PATH"),
        ("digits:/x", {}, "unknown"),
        ("tests", {}, "did you mean folder:tests"),
        ("npz:/nowhere/x.npz", {}, "There is no file '/nowhere/x.npz'"),
        ("digits", {"val_fraction": 0.5}, "val_fraction is 0.5"),
        ("digits", {"val_fraction": 0.0}, "val_fraction is 0"),
        ("digits", {"image_size": 0}, "image_size is 0"),
        ("digits", {"val_fraction": 0.0001}, "too few to hold out 0.0001"),
    ],
)  # fmt: skip
def test_names_and_values_that_cannot_be_used(name, options, words, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(InputError, match=words):
        load_data(name, **options)


# ---- batches


def joined(split, world, **options):
    """What all processes get, put together in the order of the global batches."""
    shares = [list(batches(split, 8, rank=rank, world=world, **PLAIN, **options)) for rank in range(world)]
    items = [
        (batch.step, batch.first + i, int(batch.indices[i]), int(batch.labels[i]), batch.images[i].numpy().tobytes())
        for share in shares for batch in share for i in range(len(batch.indices))
    ]  # fmt: skip
    return sorted(items)


@pytest.mark.parametrize("count", [24, 27, 33, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_union_over_processes_is_the_same_for_every_number_of_them(count, shuffle):
    split = split_of(count)
    augment = Augment(crop=2, flip=True, cutout=3) if shuffle else None
    alone = joined(split, 1, shuffle=shuffle, augment=augment, seed=5, epoch=3)
    assert sorted(item[2] for item in alone) == list(range(count))
    assert all(item[3] == split.labels[item[2]] for item in alone)
    for world in (2, 4, 8):
        assert joined(split, world, shuffle=shuffle, augment=augment, seed=5, epoch=3) == alone


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 17), st.booleans(), st.integers(0, 50))
def test_starting_at_a_step_equals_skipping_to_it(count, size, drop_last, start):
    split = split_of(count)
    options = {**PLAIN, "shuffle": True, "augment": Augment(2, True, 2), "seed": 1, "drop_last": drop_last}
    steps = steps_per_epoch(count, size, drop_last)
    assert steps == len(range(0, count - (size - 1 if drop_last else 0), size))
    if not steps:
        with pytest.raises(InputError, match="smaller batch size"):
            batches(split, size, **options)
        return
    whole = list(batches(split, size, **options))
    assert len(whole) == steps
    rest = list(batches(split, size, start=start, **options))
    assert len(rest) == max(0, steps - start)
    for late, early in zip(rest, whole[start:], strict=True):
        assert late.step == early.step
        assert late.images.equal(early.images)
        assert late.labels.equal(early.labels)


def test_order_and_draws_change_with_seed_and_epoch_and_touch_no_global_state():
    split, options = split_of(40), {**PLAIN, "shuffle": True, "augment": Augment(2, True)}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = next(batches(split, 40, **options))
    for other in ({"seed": 1}, {"epoch": 1}):
        assert not next(batches(split, 40, **options, **other)).indices.equal(first.indices)
    assert torch.get_rng_state().equal(state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_images_come_normalised_in_the_layout_asked_for():
    split = split_of(6)
    batch = next(batches(split, 6, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), channels_last=True))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    want = (split.images.double() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.6, 0.7]
    ).view(3, 1, 1)
    torch.testing.assert_close(batch.images.double(), want, atol=1e-5, rtol=0)
    assert (batch.first, batch.total) == (0, 6)


def test_a_split_beyond_its_budget_is_sent_batch_by_batch():
    split = dataclasses.replace(split_of(6), budget=10)
    assert next(batches(split, 6, **PLAIN)).images.equal(next(batches(split_of(6), 6, **PLAIN)).images)
    assert not split._on


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch size of 0"),
        ({"world": 3}, "8 cannot be split evenly over 3"),
        ({"rank": 2, "world": 2}, "process 2 of 2"),
        ({"start": -1}, "start is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"mean": (0.5,)}, "1 means and 3 deviations, the images 3 channels"),
        ({"augment": Augment(crop=8)}, "8 pixels"),
        ({"batch_size": 64, "drop_last": True}, "20 images do not fill one batch of 64"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_the_call(options, words):
    with pytest.raises(InputError, match=words):
        batches(split_of(20), **{"batch_size": 8, **PLAIN, **options})
