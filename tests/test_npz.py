"""`npz:PATH`: the convention, every wrong array by name, and files that lie about what they hold."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError


def arrays(**changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    table = {}
    for kind, count in (("train", 40), ("val", 6), ("test", 10)):
        table[f"{kind}_images"] = rng.integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
        table[f"{kind}_labels"] = (np.arange(count) % 3)[:, None]
    return {key: value for key, value in {**table, **changes}.items() if value is not None}


def test_npz_is_read_by_the_medmnist_convention(tmp_path):
    table = arrays()
    np.savez_compressed(tmp_path / "a.npz", **table)
    found = load_data(f"npz:{tmp_path / 'a.npz'}")
    assert (found.classes, found.channels, found.image_size, found.flip) == (("0", "1", "2"), 3, (5, 6), True)
    assert [len(split) for split in (found.train, found.val, found.test)] == [40, 6, 10]
    assert np.array_equal(found.val.fetch(torch.arange(6)), table["val_images"].transpose(0, 3, 1, 2))
    assert found.test.labels.tolist() == table["test_labels"][:, 0].tolist()


@pytest.mark.parametrize("tail", [(), (1,)])
def test_grey_npz_without_validation_holds_some_out(tail, tmp_path):
    table = arrays(val_images=None, val_labels=None)
    for kind in ("train", "test"):
        table[f"{kind}_images"] = table[f"{kind}_images"][..., 0].reshape(*table[f"{kind}_images"].shape[:3], *tail)
        table[f"{kind}_labels"] = table[f"{kind}_labels"][:, 0].astype(np.uint8)
    np.savez(tmp_path / "a.npz", **table)
    found = load_data(f"npz:{tmp_path / 'a.npz'}")
    assert (found.channels, found.flip, len(found.train), len(found.val)) == (1, False, 36, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_images": None}, "no array test_images .it holds train_images"),
        ({"val_labels": None}, "no array val_labels"),
        ({"train_images": np.zeros((40, 5, 6, 3), np.float32)}, "train_images has type float32"),
        ({"train_images": np.zeros((40, 3, 5, 6), np.uint8)}, r"train_images has shape \(40, 3, 5, 6\)"),
        ({"train_images": np.zeros((40, 30), np.uint8)}, r"train_images has shape \(40, 30\)"),
        ({"test_images": np.zeros((0, 5, 6, 3), np.uint8)}, "test_images .* holds no pixel"),
        ({"test_images": np.zeros((10, 5, 7, 3), np.uint8)}, "test_images are 3x5x7 and train_images 3x5x6"),
        ({"test_images": np.zeros((10, 5, 6), np.uint8)}, "test_images are 1x5x6"),
        ({"train_labels": np.arange(40) / 3}, "train_labels has type float64"),
        ({"train_labels": np.zeros((40, 14), int)}, r"train_labels has shape \(40, 14\)"),
        ({"test_labels": np.zeros(9, int)}, r"test_labels has shape \(9,\) for 10 images"),
        ({"test_labels": np.full(10, 3)}, "test_labels holds 3 and training knows the classes 0 to 2"),
        ({"test_labels": np.full(10, -1)}, "test_labels runs from -1"),
        ({"train_labels": np.arange(40) % 3 + 1}, "train_labels has 3 different values up to 3"),
        ({"train_labels": np.full(40, 2**60)}, "train_labels runs from"),
        ({"train_labels": np.zeros(40, int), "val_labels": np.zeros(6, int), "test_labels": np.zeros(10, int)},
         "only the class 0"),
        ({"train_labels": np.array([None] * 40)}, "Python objects"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_named(changes, words, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(InputError, match=words):
        load_data(f"npz:{tmp_path / 'a.npz'}")


def header(shape: tuple[int, ...]) -> bytes:
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def hostile(path: Path, content: bytes, method: int, claim: int | None = None) -> str:
    """A file whose training images are `content`, and whose directory claims `claim` bytes of them."""
    np.savez(path, **arrays(train_images=None))
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("train_images.npy", content)
    if claim is not None:
        raw = bytearray(path.read_bytes())
        entry = raw.rindex(b"PK\x01\x02")
        raw[entry + 24 : entry + 28] = struct.pack("<I", claim)
        path.write_bytes(raw)
    return f"npz:{path}"


def test_arrays_that_lie_about_their_size_are_refused_before_anything_is_allocated(tmp_path):
    with pytest.raises(InputError, match=r"train_images declares shape \(1000000, 1000, 1000\)"):
        load_data(hostile(tmp_path / "a.npz", header((10**6, 1000, 1000)) + b"0" * 50, zipfile.ZIP_STORED))
    head = header((2000, 1000, 1000))
    with pytest.raises(InputError, match="claims 2000000128 bytes"):
        load_data(hostile(tmp_path / "b.npz", head + b"0" * 50, zipfile.ZIP_DEFLATED, claim=len(head) + 2 * 10**9))
    with pytest.raises(InputError, match="damaged or hostile"):
        load_data(hostile(tmp_path / "c.npz", header((-2, -3, 5)) + b"0" * 30, zipfile.ZIP_STORED))
    with pytest.raises(InputError, match="not write"):
        load_data(hostile(tmp_path / "d.npz", header((4, 5, 6)) + b"0" * 120, zipfile.ZIP_LZMA))


def test_more_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **arrays())
    monkeypatch.setattr("pellucid.core.data.npz._free_memory", lambda: 1000)
    with pytest.raises(InputError, match="1000 bytes of memory are free"):
        load_data(f"npz:{tmp_path / 'a.npz'}")


def test_damaged_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays())
    whole = (tmp_path / "a.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[500] ^= 255
    for content in (b"", b"not a zip", whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"b\.npz is not a readable"):
            load_data(f"npz:{tmp_path / 'b.npz'}")
    with pytest.raises(InputError):
        load_data(f"npz:{tmp_path}")
