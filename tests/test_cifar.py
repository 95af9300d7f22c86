"""CIFAR in its three forms, made small; hostile archives and pickles."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pellucid.core.data import cifar
from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError
from pellucid.core.files.pickles import unpickle

COUNT = 40


def rows(name: str, file: str, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of one file, every class in turn."""
    rng = np.random.default_rng(len(file))
    pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, (np.arange(count) % cifar.SOURCES[name].classes).astype(np.uint8)


def binary(name: str) -> dict[str, bytes]:
    """The files of a small binary distribution."""
    source = cifar.SOURCES[name]
    files = {}
    for file in (*source.train, source.test):
        pixels, labels = rows(name, file, 4 * source.classes)
        coarse = [np.full((len(labels), 1), 200, np.uint8)] * (source.label_bytes - 1)
        files[f"{file}.bin"] = np.concatenate([*coarse, labels[:, None], pixels], axis=1).tobytes()
    files[source.names[0]] = "".join(f"class {i}\n" for i in range(source.classes)).encode() + b"\n"
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def archive(folder: str, files: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info, io.BytesIO(b"x" * info.size) if info.size < 100 else None)
    return out.getvalue()


def expect(monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, **changes: str) -> None:
    """Let the table of sources expect this archive."""
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(cifar.SOURCES, name, dataclasses.replace(cifar.SOURCES[name], md5=md5, **changes))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_binary_distribution_is_read(name, tmp_path, monkeypatch):
    source = cifar.SOURCES[name]
    folder = write(tmp_path / source.binary, binary(name))
    found = load_data(f"{name}:{tmp_path}")
    assert (found.channels, found.image_size, found.flip) == (3, (32, 32), True)
    assert found.classes[3] == "class 3"
    total = 4 * source.classes
    assert len(found.train) + len(found.val) == total * len(source.train)
    pixels, labels = rows(name, source.test, total)
    assert np.array_equal(found.test.fetch(torch.arange(total)), pixels.reshape(-1, 3, 32, 32))
    assert np.array_equal(found.test.labels, labels)
    monkeypatch.setenv("PELLUCID_DATA", str(tmp_path))
    assert load_data(name).fingerprint == load_data(f"{name}:{folder}").fingerprint == found.fingerprint


def python_two(table: dict[bytes, object], core: str) -> bytes:
    """Protocol 2 as Python 2 wrote it: short byte strings, and an array built by `_reconstruct` and a state."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def value(item: object) -> bytes:
        if isinstance(item, bytes):
            return text(item)
        if isinstance(item, int):
            return b"J" + item.to_bytes(4, "little", signed=True)
        if isinstance(item, list):
            return b"](" + b"".join(value(x) for x in item) + b"e"
        assert isinstance(item, np.ndarray)
        kind = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff"
        kind += b"J\xff\xff\xff\xffK\x00tb"
        made = b"cnumpy." + core.encode() + b".multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        shape = b"(" + b"".join(value(n) for n in item.shape) + b"t"
        return made + b"(K\x01" + shape + kind + b"\x89" + text(item.tobytes()) + b"tb"

    body = b"".join(text(key) + value(item) for key, item in table.items())
    return b"\x80\x02}(" + body + b"u."


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["python2", "python2 new numpy", "python3"])
def test_the_python_distribution_equals_the_binary_one(name, form, tmp_path):
    source = cifar.SOURCES[name]
    names = {f"{source.key[:-1]}_names".encode(): [f"class {i}".encode() for i in range(source.classes)]}
    tables = {source.names[1]: names}
    for file in (*source.train, source.test):
        pixels, labels = rows(name, file, 4 * source.classes)
        tables[file] = {b"data": pixels, source.key.encode(): labels.tolist(), b"batch_label": b"1"}
    if form == "python3":
        files = {file: pickle.dumps(table, protocol=4) for file, table in tables.items()}
    else:
        core = "core" if form == "python2" else "_core"
        files = {file: python_two(table, core) for file, table in tables.items()}
    write(tmp_path / source.pickled, files)
    found = load_data(f"{name}:{tmp_path}")
    write(tmp_path / "b" / source.binary, binary(name))
    assert load_data(f"{name}:{tmp_path / 'b'}").fingerprint == found.fingerprint


def test_numpy_scalars_and_columns_first_arrays_are_read():
    array = np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    table = unpickle(pickle.dumps({"a": array, "n": np.int64(7)}, protocol=3), Path("x"))
    assert np.array_equal(table[b"a"], array)
    assert table[b"n"] == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("test_batch.bin", b""), r"test_batch\.bin has 0 bytes, not a positive multiple of 3073"),
        (("data_batch_2.bin", b"x" * 3074), r"data_batch_2\.bin has 3074 bytes"),
        (("data_batch_4.bin", b"\x0a" + b"x" * 3072), r"data_batch_4\.bin holds the label 10.* 0 to 9"),
        (("data_batch_3.bin", None), r"There is no file .*data_batch_3\.bin"),
        (("batches.meta.txt", b"a\nb\n"), r"batches\.meta\.txt names 2 classes instead of 10"),
    ],
)
def test_damaged_binary_files_are_named(change, words, tmp_path):
    files = binary("cifar10") | {change[0]: change[1]}
    write(tmp_path / "cifar-10-batches-bin", {name: content for name, content in files.items() if content is not None})
    with pytest.raises(InputError, match=words):
        load_data(f"cifar10:{tmp_path}")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}, "no uint8 array data"),
        ({"data": np.zeros((2, 9), np.uint8), "labels": [1, 2]}, "no uint8 array data"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "no list labels of 2 integers"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, b"x"]}, "no list labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}, "label 10"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, -1]}, "label -1"),
        ([1, 2], "holds a list instead of a table"),
    ],
)
def test_wrong_tables_in_pickles_are_named(table, words, tmp_path):
    meta = pickle.dumps({"label_names": [f"{i}" for i in range(10)]})
    names = [*cifar.SOURCES["cifar10"].train, "test_batch"]
    files = {name: pickle.dumps(table, protocol=3) for name in names}
    write(tmp_path / "cifar-10-batches-py", {**files, "batches.meta": meta})
    with pytest.raises(InputError, match=words):
        load_data(f"cifar10:{tmp_path}")


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path):
    mark = tmp_path / "it ran"
    for attack in (pickle.dumps(Attack(mark), protocol=2), pickle.dumps({"data": Attack(mark)}, protocol=4)):
        with pytest.raises(InputError, match=r"x\.pickle is refused.*the global (posix|nt)\.mkdir"):
            unpickle(attack, Path("x.pickle"))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Attack(mark)))  # noqa: S301 - the attack is a real one
    assert mark.exists()


def test_pickles_that_claim_or_change_more_than_they_may_are_refused():
    huge = (2**40).to_bytes(8, "little")
    attacks = {
        "a long string": b"\x80\x04\x8e" + huge + b"x.",
        "a byte array": b"\x80\x05\x96" + huge + b"x.",
        "an array of a shape without content": b"\x80\x02cnumpy\nndarray\n(J\x00\x00\x00\x7ftR.",
        "a state for a function": b"\x80\x02cnumpy.core.multiarray\nscalar\n}X\x01\x00\x00\x00aK\x01sb.",
        "an unknown type": b"\x80\x02cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR.",
        "numpy's own loader": b"\x80\x02cnumpy\nload\n(X\x01\x00\x00\x00atR.",
        "nothing": b"",
        "text": b"hello",
    }
    for content in attacks.values():
        with pytest.raises(InputError, match="is refused"):
            unpickle(content, Path("x"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_archive_is_verified_and_unpacked_whole(name, tmp_path, monkeypatch):
    source = cifar.SOURCES[name]
    readme = {"readme.html": b"<p>"}
    content = archive(source.binary, binary(name) | readme)
    (tmp_path / source.archive).write_bytes(content)
    with pytest.raises(InputError, match=rf"{source.archive} has MD5 .* instead of {source.md5}"):
        load_data(f"{name}:{tmp_path}")
    expect(monkeypatch, name, content)
    found = load_data(f"{name}:{tmp_path}")
    assert {path.name for path in tmp_path.iterdir()} == {source.archive, source.binary}
    assert {path.name for path in (tmp_path / source.binary).iterdir()} == set(binary(name))
    assert load_data(f"{name}:{tmp_path}").fingerprint == found.fingerprint


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (member("../escaped.bin", size=3), "no plain file"),
        (member("cifar-10-batches-bin/../../escaped.bin", size=3), "no plain file"),
        (member("/tmp/escaped.bin", size=3), "no plain file"),
        (member("cifar-10-batches-bin/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "no plain file"),
        (member("cifar-10-batches-bin/test_batch.bin", type=tarfile.LNKTYPE, linkname="/etc/passwd"), "no plain file"),
        (member("cifar-10-batches-bin/big", size=2**40), "claims 1099511627776 bytes"),
    ],
)
def test_hostile_archives_leave_nothing_behind(extra, words, tmp_path, monkeypatch):
    content = archive("cifar-10-batches-bin", binary("cifar10"), (extra,))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "cifar-10-binary.tar.gz").write_bytes(content)
    expect(monkeypatch, "cifar10", content)
    with pytest.raises(InputError, match=words):
        load_data(f"cifar10:{inner}")
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "cifar-10-binary.tar.gz"]


def test_incomplete_and_truncated_archives_are_refused(tmp_path, monkeypatch):
    whole = archive("cifar-10-batches-bin", binary("cifar10"))
    files = binary("cifar10")
    del files["data_batch_5.bin"]
    short = archive("cifar-10-batches-bin", files)
    for content, words in ((short, r"holds no data_batch_5\.bin"), (whole[:-5000], "unpacked"), (b"x", "unpacked")):
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
        expect(monkeypatch, "cifar10", content)
        with pytest.raises(InputError, match=words):
            load_data(f"cifar10:{tmp_path}")
        assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_without_files_the_places_and_the_remedy_are_told(tmp_path):
    with pytest.raises(InputError, match=r"cifar-100-binary, .*cifar-100-python, .*tar\.gz\); --download fetches it"):
        load_data(f"cifar100:{tmp_path}")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def served():
    """A web server; what it sends is in the dictionary that comes with its address."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", files
        server.shutdown()
        thread.join()


def test_download_fetches_verifies_and_unpacks(tmp_path, monkeypatch, served):
    address, files = served
    content = archive("cifar-10-batches-bin", binary("cifar10"))
    url = f"{address}/cifar-10-binary.tar.gz"
    expect(monkeypatch, "cifar10", content, url=url)
    target = tmp_path / "new" / "place"
    with pytest.raises(InputError, match=r"could not be fetched .*404"):
        load_data(f"cifar10:{target}", download=True)
    files["/cifar-10-binary.tar.gz"] = content[:-1]
    with pytest.raises(InputError, match="gave MD5"):
        load_data(f"cifar10:{target}", download=True)
    assert not list(target.iterdir())
    files["/cifar-10-binary.tar.gz"] = content
    assert len(load_data(f"cifar10:{target}", download=True).test) == COUNT
    assert {path.name for path in target.iterdir()} == {"cifar-10-binary.tar.gz", "cifar-10-batches-bin"}
    files.clear()
    load_data(f"cifar10:{target}", download=True)  # there already: nothing is fetched
