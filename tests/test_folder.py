"""Class folders of real image files: layouts, formats, memory or stream, and everything that can be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid.core.data.augment import Augment
from pellucid.core.data.batches import batches
from pellucid.core.data.dataset import load_data
from pellucid.core.data.folder import FolderSplit
from pellucid.core.data.pictures import centre_view, decode, random_view
from pellucid.core.data.splits import MemorySplit
from pellucid.core.errors import InputError


def picture(seed: int, width: int = 12, height: int = 10, channels: int = 3) -> Image.Image:
    shape = (height, width, 3) if channels == 3 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def fill(root: Path, classes: dict[str, int], suffix: str = ".png", **options: int) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(hash((number, len(name))) % 1000, **options).save(root / name / f"{number:03d}{suffix}")
    return root


@pytest.fixture
def mixed(tmp_path):
    """Images of many sizes, JPEG, in two classes: they stream."""
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        for number in range(15):
            picture(20 * label + number, 20 + number, 40 - number).save(tmp_path / name / f"{number}.jpg")
    return tmp_path


# ---- layouts


def test_class_folders_are_split_by_a_fixed_stratified_draw(tmp_path):
    fill(tmp_path, {"b": 20, "a": 10, ".hidden": 3})
    (tmp_path / "a" / ".x.png").write_bytes(b"no image")
    (tmp_path / "a" / "notes.txt").write_bytes(b"no image")
    found = load_data(f"folder:{tmp_path}")
    assert (found.classes, found.channels, found.image_size, found.flip) == (("a", "b"), 3, (10, 12), True)
    assert [torch.bincount(split.labels).tolist() for split in (found.train, found.val, found.test)] == [
        [7, 15], [1, 1], [2, 4]
    ]  # fmt: skip
    assert load_data(f"folder:{tmp_path}").fingerprint == found.fingerprint


@pytest.mark.parametrize("others", [("val", "test"), ("val",), ("test",)])
def test_a_lone_val_or_test_is_the_test_set(others, tmp_path):
    fill(tmp_path / "train", {"a": 10, "b": 10})
    for name, count in zip(others, (3, 4), strict=False):
        fill(tmp_path / name, {"a": count, "b": count})
    found = load_data(f"folder:{tmp_path}")
    sizes = [len(split) for split in (found.train, found.val, found.test)]
    assert sizes == ([20, 6, 8] if len(others) == 2 else [18, 2, 6])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "is not a folder"),
        (lambda root: root.mkdir(), "holds no class folder"),
        (lambda root: fill(root, {"a": 3}), "only the class a"),
        (lambda root: fill(root, {"a": 3, "b": 0}), "b holds no image"),
        (lambda root: fill(root, {"a": 1, "b": 1}), "too few to hold out 0.2"),
        (lambda root: fill(root, {"train": 3, "validation": 3}), "train and val or test"),
        (lambda root: fill(root / "train", {"a": 3, "b": 3}), "train and val or test"),
        (lambda root: (fill(root / "train", {"a": 3, "b": 3}), fill(root / "test", {"a": 3, "c": 3})),
         "b only in train and c only in test"),
        (lambda root: (fill(root / "train", {"a": 3, "b": 3}), fill(root / "val", {"a": 0, "b": 0})),
         "val holds no image in any"),
        (lambda root: (fill(root / "train", {"a": 3, "b": 0}), fill(root / "val", {"a": 1, "b": 1})),
         "b holds no image"),
        (lambda root: (fill(root / "train", {"a": 2, "b": 1}), fill(root / "val", {"a": 1, "b": 1})),
         "too few to hold out 0.1"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used_are_named(make, words, tmp_path):
    make(tmp_path / "set")
    with pytest.raises(InputError, match=words):
        load_data(f"folder:{tmp_path / 'set'}")


@pytest.mark.parametrize("size", [10, 400])
def test_unreadable_images_are_named(size, tmp_path):
    fill(tmp_path, {"a": 12, "b": 12}, width=size)
    whole = (tmp_path / "b" / "004.png").read_bytes()
    for content in (b"", b"no image at all", whole[: len(whole) // 2]):
        (tmp_path / "b" / "004.png").write_bytes(content)
        with pytest.raises(InputError, match=r"b/004\.png is not a readable image"):
            load_data(f"folder:{tmp_path}")


def test_more_pixels_than_pillow_allows_are_an_input_error(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 5, "b": 5})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(InputError, match="not a readable image .*decompression bomb"):
        load_data(f"folder:{tmp_path}")


# ---- formats


def test_every_mode_becomes_eight_bit_grey_or_colour(tmp_path):
    grey, colour = picture(1, channels=1), picture(2)
    deep = np.asarray(grey).astype(np.uint16) * 257
    grey.save(tmp_path / "grey.png")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "wide.tif")
    for name in ("grey.png", "deep.png", "deep.tif", "wide.tif"):
        assert np.array_equal(decode(tmp_path / name, 1), grey), name
        assert np.array_equal(decode(tmp_path / name, 3), grey.convert("RGB")), name

    colour.putalpha(100)
    colour.save(tmp_path / "alpha.png")
    assert np.array_equal(decode(tmp_path / "alpha.png", 3), colour.convert("RGB"))
    palette = picture(3).quantize(8)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(8)))
    assert np.array_equal(decode(tmp_path / "palette.png", 3), palette.convert("RGB"))
    picture(4).convert("CMYK").save(tmp_path / "cmyk.tif")
    assert decode(tmp_path / "cmyk.tif", 3).mode == "RGB"
    grey.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(decode(tmp_path / "bits.png", 1))) <= {0, 255}

    Image.fromarray(np.full((3, 3), 0.5, np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((3, 3), 70000, np.int32)).save(tmp_path / "much.tif")
    for name in ("float.tif", "much.tif"):
        with pytest.raises(InputError, match=f"{name} .*neither 8 nor 16 bit"):
            decode(tmp_path / name, 1)


def test_sixteen_bits_are_scaled_and_rounded_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 128, 129, 30000, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(decode(tmp_path / "a.png", 1)).tolist() == [[0, 0, 1, 117, 255]]


def test_postscript_is_not_interpreted_under_any_name(tmp_path):
    picture(0).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png is not a readable image"):
        decode(tmp_path / "a.png", 3)


def test_images_are_grey_only_if_all_are(tmp_path):
    fill(tmp_path, {"a": 6, "b": 6}, channels=1)
    assert load_data(f"folder:{tmp_path}").channels == 1
    picture(0).convert("P").save(tmp_path / "b" / "003.png")
    found = load_data(f"folder:{tmp_path}")
    assert (found.channels, len(found.mean)) == (3, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_exif_orientation_is_applied(suffix, tmp_path):
    fill(tmp_path, {"a": 6, "b": 6}, suffix)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees: stored 10x12, seen 12x10
    for path in tmp_path.glob(f"*/*{suffix}"):
        picture(int(path.stem), 10, 12).save(path, exif=exif)
    found = load_data(f"folder:{tmp_path}")
    assert isinstance(found.train, MemorySplit)
    assert found.image_size == (10, 12)
    if suffix == ".png":
        stored = torch.from_numpy(np.asarray(picture(0, 10, 12)).copy()).permute(2, 0, 1)
        seen = torch.rot90(stored, -1, (1, 2))
        every = torch.cat([split.fetch(torch.arange(len(split))) for split in (found.train, found.val, found.test)])
        assert any(image.equal(seen) for image in every)


# ---- memory or stream


def test_the_budget_and_the_sizes_decide_between_memory_and_stream(mixed, tmp_path_factory):
    alike = fill(tmp_path_factory.mktemp("alike"), {"a": 6, "b": 6})
    for name, options, kind, size in (
        (alike, {}, MemorySplit, (10, 12)),
        (alike, {"memory_budget": 12 * 10 * 12 * 3 - 1}, FolderSplit, (10, 10)),
        (alike, {"image_size": 8}, MemorySplit, (8, 8)),
        (alike, {"image_size": 100}, FolderSplit, (100, 100)),
        (mixed, {}, FolderSplit, (224, 224)),
        (mixed, {"image_size": 16}, MemorySplit, (16, 16)),
        (mixed, {"image_size": 16, "memory_budget": 1000}, FolderSplit, (16, 16)),
    ):
        found = load_data(f"folder:{name}", **options)
        assert type(found.train) is kind, (options, kind)
        assert found.image_size == size


def test_resizing_at_load_keeps_the_centre(mixed):
    found = load_data(f"folder:{mixed}", image_size=16)
    # a linear ramp: shorter side to 16, then the centre, computed on the plane
    ramp = np.tile(np.linspace(0, 255, 64), (32, 1)).round().astype(np.uint8)
    view = centre_view(Image.fromarray(ramp), 16, 16)[0].astype(float)
    exact = np.tile((16 + 2 * np.arange(16) + 0.5) * 255 / 63, (16, 1))
    assert np.abs(view - exact).max() <= 1.5
    assert found.train.fetch(torch.arange(3)).shape == (3, 3, 16, 16)


def test_random_views_lie_inside_and_cover_the_published_ranges():
    width, height = 90, 60
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    image = Image.fromarray(np.stack([columns * 2, rows * 2, 0 * rows], axis=2).astype(np.uint8))
    rng = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(400):
        view = random_view(image, 16, rng).astype(float) / 2
        wide, tall = (np.ptp(view[0]) * 16 / 15, np.ptp(view[1]) * 16 / 15)
        areas.append(wide * tall / (width * height))
        ratios.append(wide / tall)
    assert 0.06 < min(areas) < 0.15
    assert 0.8 < max(areas) < 1.1
    assert 0.65 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.5
    assert random_view(picture(0, 200, 1), 8, rng).shape == (3, 8, 8)


def stream(data, **options):
    options = {"shuffle": True, "augment": Augment(flip=True, cutout=4), "seed": 3, "epoch": 2, **options}
    return list(batches(data.train, 4, mean=data.mean, std=data.std, **options))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_streamed_images_do_not_depend_on_workers_or_processes_and_touch_no_global_state(mixed):
    data = load_data(f"folder:{mixed}", memory_budget=0, image_size=24)
    state = torch.get_rng_state()
    alone = stream(data)
    assert torch.get_rng_state().equal(state)
    for other in (stream(data, workers=2), stream(data, workers=1)):
        assert len(other) == len(alone)
        assert all(a.images.equal(b.images) and a.labels.equal(b.labels) for a, b in zip(alone, other, strict=True))
    assert torch.get_rng_state().equal(state)
    assert all(a.images.equal(b.images) for a, b in zip(alone[2:], stream(data, start=2), strict=True))
    shares = [stream(data, rank=rank, world=2) for rank in range(2)]
    images = {int(i): image for share in shares for b in share for i, image in zip(b.indices, b.images, strict=True)}
    assert len(images) == len(data.train)
    assert all(images[int(i)].equal(image) for b in alone for i, image in zip(b.indices, b.images, strict=True))
    again = stream(data, epoch=3)
    assert not again[0].images.equal(alone[0].images)


def test_streamed_evaluation_sees_every_image_once_at_the_centre(mixed):
    for number, path in enumerate(mixed.glob("*/*.jpg")):  # smooth: half a pixel, cut before or after resizing
        picture(number, 3, 4).resize((20 + number, 50 - number), Image.Resampling.BICUBIC).save(path)
    data = load_data(f"folder:{mixed}", memory_budget=0, image_size=24)
    seen = list(batches(data.test, 4, mean=(0.0,) * 3, std=(1.0,) * 3))
    assert torch.cat([batch.indices for batch in seen]).tolist() == list(range(len(data.test)))
    pixels = torch.cat([batch.images for batch in seen])
    torch.testing.assert_close(pixels * 255, data.test.fetch(torch.arange(len(data.test))).float())
    for index, path in enumerate(data.test.paths):
        image = Image.open(path).convert("RGB")
        scale = 27 / min(image.size)
        wide = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
        left, top = (round((side - 24) / 2) for side in wide.size)
        want = np.asarray(wide.crop((left, top, left + 24, top + 24))).transpose(2, 0, 1).astype(float)
        assert np.abs(pixels[index].numpy() * 255 - want).mean() < 8


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_image_that_breaks_while_streaming_is_named(workers, mixed):
    data = load_data(f"folder:{mixed}", memory_budget=0, image_size=24)
    broken = data.train.paths[5]
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(InputError, match=rf"^\S*{broken.name} is not a readable image"):
        stream(data, workers=workers)


def test_the_fingerprint_of_a_stream_follows_names_sizes_and_labels_not_the_place(mixed, tmp_path_factory):
    first = load_data(f"folder:{mixed}", memory_budget=0, image_size=24).fingerprint
    other = tmp_path_factory.mktemp("other") / "set"
    shutil.copytree(mixed, other)
    assert load_data(f"folder:{other}", memory_budget=0, image_size=24).fingerprint == first
    (other / "ant" / "0.jpg").write_bytes((other / "ant" / "0.jpg").read_bytes() + b" ")
    assert load_data(f"folder:{other}", memory_budget=0, image_size=24).fingerprint != first
