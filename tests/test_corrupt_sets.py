"""Readers of the published sets, on small files of the same form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid.core.errors import InputError
from pellucid.core.measure.corrupt.published import read_corrupted

CLASSES = ("cat", "dog", "frog")


@pytest.fixture
def arrays(tmp_path):
    """Four images of 8x10 pixels at five severities, of two kinds."""
    rng = np.random.default_rng(0)
    made = {kind: rng.integers(0, 256, (20, 8, 10, 3), dtype=np.uint8) for kind in ("fog", "gaussian_noise")}
    for kind, images in made.items():
        np.save(tmp_path / f"{kind}.npy", images)
    np.save(tmp_path / "labels.npy", np.tile([2, 0, 1, 0], 5))
    return tmp_path, made


def test_arrays_are_cut_by_severity(arrays):
    path, made = arrays
    found = read_corrupted(path)
    assert found.kinds == ("fog", "gaussian_noise")
    for severity in range(1, 6):
        split = found.split("fog", severity, CLASSES)
        wanted = made["fog"][4 * (severity - 1) : 4 * severity].transpose(0, 3, 1, 2)
        assert np.array_equal(split.fetch(torch.arange(4)).numpy(), wanted)
        assert split.labels.tolist() == [2, 0, 1, 0]
    with pytest.raises(InputError, match="no 'snow'"):
        found.split("snow", 1, CLASSES)
    with pytest.raises(InputError, match="Severity 6"):
        found.split("fog", 6, CLASSES)
    with pytest.raises(InputError, match="from 0 to 2, but the model has 2 classes"):
        found.split("fog", 1, CLASSES[:2])


def test_damaged_and_hostile_arrays_are_refused(arrays):
    path, made = arrays
    whole = (path / "fog.npy").read_bytes()

    def refused(content: bytes, match: str) -> None:
        (path / "fog.npy").write_bytes(content)
        with pytest.raises(InputError, match=match):
            read_corrupted(path).split("fog", 1, CLASSES)

    refused(whole[:-7], "declares shape")
    refused(whole[:5], "not an array")
    refused(b"", "not an array")
    refused(b"PK" + whole, "not an array")
    refused(whole.replace(b"(20, 8, 10, 3)", b"(99999, 9, 3) "), "declares shape")
    for bad, match in (
        (made["fog"].astype(np.float32), "float32"),
        (made["fog"][:, :, :, :2], r"\(20, 8, 10, 2\)"),
        (made["fog"][:18], "18 images"),
    ):
        np.save(path / "fog.npy", bad)
        with pytest.raises(InputError, match=match):
            read_corrupted(path).split("fog", 1, CLASSES)
    np.save(path / "fog.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="could run code"):
        read_corrupted(path).split("fog", 1, CLASSES)
    np.save(path / "fog.npy", made["fog"])
    np.save(path / "labels.npy", np.zeros(19, dtype=int))
    with pytest.raises(InputError, match="does not fit 20 images"):
        read_corrupted(path).split("fog", 1, CLASSES)
    (path / "labels.npy").unlink()
    with pytest.raises(InputError, match=r"no labels\.npy"):
        read_corrupted(path)


@pytest.mark.parametrize("family", ["", "weather"])
def test_folders_are_read_as_they_are(tmp_path, family):
    rng = np.random.default_rng(1)
    made = {}
    for severity in (1, 2):
        for name in ("dog", "cat"):
            for number in range(2):
                file = tmp_path / family / "fog" / str(severity) / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                made[severity, name, number] = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(made[severity, name, number]).save(file)
    found = read_corrupted(tmp_path)
    assert found.kinds == ("fog",)
    split = found.split("fog", 2, CLASSES)
    assert split.labels.tolist() == [0, 0, 1, 1]
    images = split.take(torch.tensor([3, 0])).fetch(torch.arange(2))
    assert np.array_equal(images[0].numpy().transpose(1, 2, 0), made[2, "dog", 1])
    assert np.array_equal(images[1].numpy().transpose(1, 2, 0), made[2, "cat", 0])
    chunks = list(split.read([torch.tensor([2])], device=torch.device("cpu")))
    assert np.array_equal(chunks[0][0].numpy().transpose(1, 2, 0), made[2, "dog", 0])
    with pytest.raises(InputError, match="has the class 'dog', which is none of the model's 2 classes"):
        found.split("fog", 1, ("cat", "horse"))
    with pytest.raises(InputError, match="unpack the whole set"):
        found.split("fog", 3, CLASSES)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="neither"):
        read_corrupted(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        read_corrupted(tmp_path / "nowhere")
