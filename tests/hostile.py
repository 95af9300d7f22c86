"""Files that must be refused, made on the fly: pickles, archives, tables, pictures and run folders of strangers.

A case puts files into an empty folder and gives the command that meets them there. Cases of a kind are in one function;
`CASES` has them all. Finished things to damage (a run, a synthesis, ...) come from `make_base`.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pickle
import shutil
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

BIG = 2**40


@dataclass(frozen=True)
class Case:
    """A command and what it meets.

    make: `make(folder, base)` writes the files
    about: what the sentence must name
    """

    kind: str
    name: str
    words: tuple[str, ...]
    make: Callable[[Path, Path], None]
    about: str


Files = dict[str, bytes]


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def case(kind: str, name: str, words: str, files: Files, about: str | None = None) -> Case:
    made = functools.partial(lambda folder, base, files: write(folder, files), files=files)
    return Case(kind, name, tuple(words.split()), made, about or next(iter(files)))


# --- pickles ---


def zip_of(records: Files, method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return stream.getvalue()


def checkpoint(program: bytes, data: bytes = bytes(16), **more: bytes) -> bytes:
    """A PyTorch file around a pickle."""
    return zip_of({"a/data.pkl": program, "a/version": b"3\n", "a/data/0": data, **more})


def legacy(program: bytes, nbytes: int = 16) -> bytes:
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    head += pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
    return head + program + pickle.dumps(["0"], 2) + struct.pack("<q", nbytes // 4) + bytes(nbytes)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tensor(size: str = "4", stride: str = "1", offset: int = 0, elements: int = 4, kind: str = "FloatStorage") -> bytes:
    """The pickle of a tensor around storage "0"."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu") + number(elements) + b"tQ"
    shape = [b"(" + b"".join(number(int(n)) for n in part.split(",") if n) + b"t" for part in (size, stride)]
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + shape[0] + shape[1] + b"\x89)tR"


def table(*items: bytes) -> bytes:
    return b"\x80\x02}" + b"".join(items) + b"."


def deep_tuples(levels: int) -> bytes:
    return b")" + b"\x85" * levels


def shared_nests(levels: int) -> bytes:
    """Tables that hold the next one under six names: 6 ** levels ways down."""
    names = ("state_dict", "model", "net", "model_state_dict", "model_ema", "ema")
    body = b"}q\x00" + text("x") + b"K\x01s"
    for level in range(levels):
        others = b"".join(text(name) + b"h" + bytes([level]) + b"s" for name in names[1:])
        body = b"}q" + bytes([level + 1]) + text(names[0]) + body + b"s" + others
    return b"\x80\x02" + body + b"."


def pickles() -> Iterator[Case]:
    code = {
        "os.system": b"cos\nsystem\n(X\n\x00\x00\x00touch ranstR.",
        "eval": b"cbuiltins\neval\n(X\x04\x00\x00\x001+11tR.",
        "getattr": b"cbuiltins\ngetattr\n(ctorch\nhub\nX\x04\x00\x00\x00loadtR.",
        "a subprocess": b"csubprocess\nPopen\n(X\x02\x00\x00\x00lstR.",
        "a module by inst": b"(ios\nsystem\n.",
        "a stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent id": b"\x80\x02}" + text("a") + text("b") + b"Qs.",
    }
    broken = {
        "nothing": b".",
        "no end": b"\x80\x02}",
        "an empty stack": b"\x80\x02s.",
        "marks only": b"\x80\x02" + b"(" * 50_000 + b".",
        "many marks": b"\x80\x02((((((t.",
        "a number": b"\x80\x02K\x05.",
        "a list": b"\x80\x02]K\x01a.",
        "tensors in a list": b"\x80\x02]" + tensor() + b"a.",
        "an empty table": b"\x80\x02}.",
        "numbers only": table(text("a"), b"K\x01s"),
        "a deep tuple as a key": table(deep_tuples(2_000_000), b"K\x01s"),
        "deep tuples as keys": b"\x80\x02}(" + deep_tuples(2_000_000) + b"K\x01u.",
        "a deep tuple as a value": table(text("a"), deep_tuples(200_000), b"s"),
        "deep lists": table(text("a"), b"]" * 200_000, b"a" * 199_999, b"s"),
        "a table as a key": table(b"}", b"K\x01s"),
        "forty levels of shared nests": shared_nests(40),
        "a table within itself": b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s.",
        "a huge memo": b"\x80\x02}r\xff\xff\xff\x7f.",
        "a missing memo": b"\x80\x02h\x09.",
        "a text beyond the end": b"\x80\x02X\xff\xff\xff\x7fabc.",
        "huge numbers": b"\x80\x02}" + text("a") + b"\x8b\xff\xff\xff\x7f.",
        "a storage of a terabyte": table(text("w"), tensor(elements=BIG), b"s"),
        "a view of a terabyte": table(text("w"), tensor(size=str(BIG)), b"s"),
        "a stride of 0": table(text("w"), tensor(size=str(BIG), stride="0"), b"s"),
        "a negative size": table(text("w"), tensor(size="-1"), b"s"),
        "a negative offset": table(text("w"), tensor(offset=-1), b"s"),
        "seventeen axes": table(text("w"), tensor(size="1," * 17, stride="1," * 17), b"s"),
        "a storage of no kind": table(text("w"), tensor(kind="Storage"), b"s"),
    }
    for name, program in {**code, **broken}.items():
        words = "evaluate x.pth --model resnet20 --data digits"
        yield case("pickle in a zip", name, words, {"x.pth": checkpoint(program)})
        yield case("pickle before torch 1.6", name, words, {"x.pth": legacy(program)})
        batch = {f"c/{file}": program for file in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]}
        words = "evaluate resnet20 --data cifar10:c"
        yield case("pickled CIFAR batch", name, words, {**batch, "c/batches.meta": program}, "c/")


def zips() -> Iterator[Case]:
    words = "evaluate x.pth --model resnet20 --data digits"
    good = checkpoint(table(text("w"), tensor(), b"s"))
    directory = good.rindex(b"PK\x01\x02")
    claims = bytearray(good)
    claims[directory + 20 : directory + 28] = struct.pack("<II", 2**31, 2**31)
    flipped = bytearray(good)
    flipped[good.index(bytes(16)) + 5] ^= 1
    bomb = zip_of({"a/data.pkl": table(text("w"), tensor(), b"s"), "a/data/0": bytes(10**8)}, zipfile.ZIP_DEFLATED)
    files = {
        "empty": b"",
        "a header only": b"PK\x03\x04" + bytes(26),
        "an end only": b"PK\x05\x06" + bytes(18),
        "a truncated file": good[:-30],
        "more bytes than the file": bytes(claims),
        "a flipped byte": bytes(flipped),
        "other data before it": b"PK\x03\x04" + good,
        "a bomb": bomb,
        "two tables of contents": zip_of({"a/data.pkl": b".", "b/data.pkl": b"."}),
        "TorchScript": zip_of({"a/data.pkl": b".", "a/constants.pkl": b"."}),
        "a Keras model": zip_of({"model.weights.h5": b"x", "config.json": b"{}"}),
        "arrays": zip_of({"a.npy": b"x"}),
        "paths out of it": zip_of({"../../x/data.pkl": b"."}),
        "a storage of another size": checkpoint(table(text("w"), tensor(), b"s"), data=bytes(12)),
        "no storage": zip_of({"a/data.pkl": table(text("w"), tensor(), b"s"), "a/version": b"3\n"}),
    }
    for name, content in files.items():
        yield case("zip", name, words, {"x.pth": content})
    others = {
        "a web page": b"<!DOCTYPE html><html>404</html>",
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "ONNX": b"\x08\x08\x12\x07pytorch\x1a",
        "gzip": gzip.compress(b"x" * 100),
        "a text with escapes": b"\x1b[31mred\x1b]0;title\x07 text\n",
        "zeros": bytes(5000),
        "noise": np.random.default_rng(0).bytes(5000),
    }
    for name, content in others.items():
        for command in ("evaluate x.pth --model resnet20 --data digits", "open x.safetensors --data digits --out page"):
            written = {command.split()[1]: content}
            yield case("other formats", f"{name}, {command[:8]}", command, written)


# --- tables of tensors ---


def raw(header: Any, body: bytes = bytes(16), length: int | None = None) -> bytes:
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written) if length is None else length) + written + body


def safetensors() -> Iterator[Case]:
    def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    good = entry([4], 0, 16)
    files = {
        "a length beyond the file": raw({"a": good}, length=2**60),
        "no JSON": raw(b"{"),
        "a list": raw([1]),
        "deep JSON": raw(b"[" * 100_000 + b"]" * 100_000),
        "an end beyond the file": raw({"a": entry([2**40], 0, 2**42)}),
        "a shape beyond its bytes": raw({"a": entry([2**40], 0, 16)}),
        "a product beyond 64 bits": raw({"a": entry([2**33, 2**33], 0, 16)}),
        "a negative shape": raw({"a": entry([-4], 0, 16)}),
        "overlapping tensors": raw({"a": good, "b": entry([4], 0, 16)}),
        "a gap": raw({"a": entry([2], 8, 16)}),
        "another type": raw({"a": entry([4], 0, 16, "X99")}),
        "a number as metadata": raw({"__metadata__": {"pellucid": 5}, "a": good}),
        "a name with escapes": raw({"\x1b[31m" * 900: good}),
    }
    for name, content in files.items():
        for words in ("evaluate x.safetensors --data digits", "evaluate resnet20=x.safetensors --data digits"):
            yield case("safetensors", f"{name}, {words[9:17]}", words, {"x.safetensors": content})


def with_table(folder: Path, base: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The base run's network with another table."""
    content = (base / "run" / "best.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    info = json.loads(header["__metadata__"]["pellucid"])
    change(info)
    header["__metadata__"]["pellucid"] = info if isinstance(info, str) else json.dumps(info)
    (folder / "x.safetensors").write_bytes(raw(header, content[8 + length :]))


def tables() -> Iterator[Case]:
    def described(**change: Any) -> Callable[[dict[str, Any]], None]:
        return lambda info: info["description"].update(change)

    def described_as(value: Any) -> Callable[[dict[str, Any]], None]:
        return lambda info: info.update(description=value)

    changes: dict[str, Callable[[dict[str, Any]], None]] = {
        "another format": lambda info: info.update(format=99),
        "a list as the description": described_as([]),
        "a text as the description": described_as("x" * 10_000),
        "another model": described(model="vgg11"),
        "no such model": described(model="\x1b[31mresnet20"),
        "a number as the model": described(model=5),
        "a path as the model": described(model="../../etc/passwd"),
        "a million classes": described(num_classes=10**6),
        "a negative number of classes": described(num_classes=-1),
        "huge images": described(image_size=[10**9, 10**9]),
        "no such rule": described(layers="nothing"),
        "an unknown option": described(layers="deconv", options={"x" * 3000: 1}),
        "a huge option": described(layers="deconv", options={"block": 10**12}),
        "an option of another type": described(layers="deconv", options={"block": [[]]}),
        "options of the builder": described(options={"name": "vgg11"}),
        "an unknown field": described(exec="x"),
        "deep options": described(options={"a": functools.reduce(lambda below, _: [below], range(500), [1])}),
        "numbers as classes": lambda info: info.update(classes=[1] * 10),
        "a text as classes": lambda info: info.update(classes="0123456789"),
        "too few classes": lambda info: info.update(classes=["a"]),
        "a huge mean": lambda info: info["normalization"].update(mean=[10**400]),
        "an infinite mean": lambda info: info["normalization"].update(mean=[1e999]),
        "a std of 0": lambda info: info["normalization"].update(std=[0.0]),
        "a mean of other channels": lambda info: info["normalization"].update(mean=[0.1] * 3, std=[1.0] * 3),
        "a mean of text": lambda info: info["normalization"].update(mean=["0.5"]),
        "a list as normalisation": lambda info: info.update(normalization=[0.5]),
        "an alias of nothing": lambda info: info.update(aliases={"a": "nothing"}),
        "aliases that are numbers": lambda info: info.update(aliases={"a": 1}),
        "two hundred thousand aliases": lambda info: info.update(
            aliases={f"alias.{n}": "fc.weight" for n in range(200_000)}
        ),
        "an unknown encoding": lambda info: info.update(encoding="zip"),
        "masks of nothing": lambda info: info.update(encoding="subnet", masks={"conv1": {}}),
        "masks that are a list": lambda info: info.update(encoding="subnet", masks=[1]),
        "a huge mask": lambda info: info.update(
            encoding="subnet", masks={"conv1": {"shape": [10**6, 10**6], "seed": 1, "dtype": "float32"}}
        ),
    }
    for name, change in changes.items():
        make = functools.partial(lambda folder, base, change: with_table(folder, base, change), change=change)
        yield Case("our own table", name, ("evaluate", "x.safetensors", "--data", "digits"), make, "x.safetensors")


# --- data ---


def npy(shape: Any, descr: Any = "|u1", body: bytes = b"", header: str | None = None) -> bytes:
    line = repr({"descr": descr, "fortran_order": False, "shape": shape}) if header is None else header
    line = line.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line.encode() + body


def arrays() -> Iterator[Case]:
    def whole(value: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, value)
        return stream.getvalue()

    images, labels = whole(np.zeros((4, 5, 5), np.uint8)), whole(np.array([0, 1, 0, 1]))
    good = {f"{part}_{what}.npy": content for part in ("train", "test") for what, content in
            (("images", images), ("labels", labels))}  # fmt: skip
    long_header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 2**20
    changes = {
        "a mangled header": npy((), header="{'descr': '|u1', 'fortran_order': False, 'shape': (4, 5, 5)"),
        "an open bracket": npy((), header="((((((((((((((((("),
        "code in the header": npy((), header="__import__('os').system('touch ran')"),
        "a deep header": npy((), header="(" * 9000),
        "a header of two gigabytes": long_header,
        "objects": npy((4,), "|O", b"x" * 32),
        "more than it holds": npy((10**6, 1000, 1000), body=bytes(50)),
        "a negative shape": npy((-2, -3, 5), body=bytes(30)),
        "an absurd shape": npy((10**30,), body=bytes(30)),
        "a shape of text": npy("abc", body=bytes(30)),
        "floating-point pixels": npy((4, 5, 5), "<f4", bytes(400)),
        "five axes": npy((4, 5, 5, 1, 1), body=bytes(100)),
        "no images": npy((0, 5, 5)),
        "not an array": b"hello",
        "nothing": b"",
        "another version": b"\x93NUMPY\x09\x00" + bytes(100),
        "a named type": npy((4,), [("a", "|u1")], bytes(4)),
    }
    for name, content in changes.items():
        files = {"x.npz": zip_of({**good, "train_images.npy": content})}
        yield case("npz", name, "train --data npz:x.npz --model conv2 --epochs 1 --out run", files)
        files = {"c/fog.npy": content, "c/labels.npy": labels}
        yield case("npy", name, "robust resnet20 --data digits --set c --device cpu", files)
    large = whole(np.zeros((60_000, 64, 64), np.uint8))
    few = {**good, "train_images.npy": large, "train_labels.npy": whole(np.zeros(3, np.int64))}
    yield case("npz", "a bomb with three labels", "train --data npz:x.npz --model conv2 --out run",
               {"x.npz": zip_of(few, zipfile.ZIP_DEFLATED)})  # fmt: skip
    for name, wrong in {"huge labels": np.array([2**62] * 4), "negative labels": np.array([-1] * 4)}.items():
        files = {"x.npz": zip_of({**good, "train_labels.npy": whole(wrong)})}
        yield case("npz", name, "evaluate resnet20 --data npz:x.npz", files)
    yield case("npz", "a text", "evaluate resnet20 --data npz:x.npz", {"x.npz": b"hello"})
    bad_sum = bytearray(zip_of(good))
    bad_sum[bad_sum.index(bytes(100)) + 50] ^= 1
    yield case("npz", "a flipped byte", "evaluate resnet20 --data npz:x.npz", {"x.npz": bytes(bad_sum)})


def binaries() -> Iterator[Case]:
    rows = bytes(3073 * 3)
    names = "\n".join(f"c{n}" for n in range(10)).encode()
    good = {**{f"data_batch_{n}.bin": rows for n in range(1, 6)}, "test_batch.bin": rows, "batches.meta.txt": names}
    changes: dict[str, Files] = {
        "an empty batch": {"data_batch_1.bin": b""},
        "half a row": {"data_batch_2.bin": rows[:-1]},
        "a label of 255": {"test_batch.bin": b"\xff" + rows[1:]},
        "two names": {"batches.meta.txt": b"a\nb\n"},
        "binary names": {"batches.meta.txt": bytes(range(256))},
    }
    for name, change in changes.items():
        files = {f"c/{file}": content for file, content in {**good, **change}.items()}
        yield case("CIFAR's files", name, "evaluate resnet20 --data cifar10:c", files, f"c/{next(iter(change))}")

    def without_end(folder: Path, base: Path) -> None:
        write(folder, {f"c/{file}": content for file, content in good.items()})
        (folder / "c" / "data_batch_3.bin").unlink()
        os.mkfifo(folder / "c" / "data_batch_3.bin")

    words = ("evaluate", "resnet20", "--data", "cifar10:c")
    yield Case("CIFAR's files", "a pipe", words, without_end, "data_batch_3.bin")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo("../../escaped")
        tar.addfile(member)
    for name, content in {"another archive": stream.getvalue(), "no archive": b"x" * 100}.items():
        yield case(
            "CIFAR's files", name, "evaluate resnet20 --data cifar10:c/x", {"c/x/cifar-10-binary.tar.gz": content}
        )


def png(width: int, height: int, data: bytes, depth: int = 1, colour: int = 0, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pictures() -> Iterator[Case]:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(stream, "PNG")
    good = stream.getvalue()
    row = bytes(1 + 13000 // 8)
    files = {
        "a bomb": png(13000, 13000, zlib.compress(row * 13000, 9)),
        "a header of two billion pixels": png(2**16, 2**15, b""),
        "the largest header": png(2**31 - 1, 2**31 - 1, b""),
        "no pixels": png(0, 0, b""),
        "a truncated picture": good[:40],
        "a text": b"hello",
        "nothing": b"",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "a wrong type": b"GIF89a" + bytes(30),
        "a mangled JPEG": b"\xff\xd8\xff\xe0" + bytes(200),
        "a mangled TIFF": b"II*\x00\xff\xff\xff\x7f" + bytes(50),
        "a mangled BMP": b"BM" + struct.pack("<IHHIIiiHH", 10**9, 0, 0, 54, 40, 10**9, -(10**9), 1, 24) + bytes(20),
        "a mangled WebP": b"RIFF\xff\xff\xff\x7fWEBPVP8 " + bytes(50),
    }
    commands = ("train --data folder:d --model conv2 --epochs 1 --out run", "evaluate resnet20 --data folder:d")
    for name, content in files.items():
        picture = {f"d/{label}/{n}.png": good for label in "ab" for n in range(8)}
        for words in commands:
            yield case("picture", f"{name}, {words[:5]}", words, {**picture, "d/a/x.png": content}, "d/a/x.png")

    def odd(make: Callable[[Path], None]) -> Callable[[Path, Path], None]:
        def built(folder: Path, base: Path) -> None:
            write(folder, {f"d/{label}/{n}.png": good for label in "ab" for n in range(8)})
            make(folder / "d" / "a" / "x.png")

        return built

    def bound(path: Path) -> None:
        short = os.open(path.parent, os.O_RDONLY)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{short}/{path.name}")
        os.close(short)

    specials: dict[str, Callable[[Path], None]] = {
        "a pipe": lambda path: os.mkfifo(path),
        "a socket": bound,
        "a device": lambda path: path.symlink_to("/dev/zero"),
        "a link to nothing": lambda path: path.symlink_to("nothing"),
        "a link to itself": lambda path: path.symlink_to(path.name),
    }
    for name, make in specials.items():
        for words in commands:
            yield Case("special file", f"{name}, {words[:5]}", tuple(words.split()), odd(make), "d/a/x.png")
    for name in ("x.pth", "x.safetensors", "x.npz", "x.yaml", "x.json"):
        words = {
            "x.pth": "evaluate x.pth --model resnet20 --data digits",
            "x.safetensors": "open x.safetensors --data digits --out page",
            "x.npz": "evaluate resnet20 --data npz:x.npz",
            "x.yaml": "train --config x.yaml --out run",
            "x.json": "evaluate resnet20 --data digits --decomposed x.json",
        }[name]
        yield Case("special file", f"a pipe {name}", tuple(words.split()),
                   functools.partial(lambda folder, base, name: os.mkfifo(folder / name), name=name), name)  # fmt: skip


# --- folders of ours ---


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def copied(names: tuple[str, ...], change: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    """Copy these folders of the base, and change the last of them."""

    def built(folder: Path, base: Path) -> None:
        for name in names:
            shutil.copytree(base / name, folder / name)
        change(folder / names[-1])

    return built


def runs() -> Iterator[Case]:
    settings: dict[str, bytes] = {
        "nothing": b"",
        "a number": b"5",
        "a list": b"[1, 2]",
        "no YAML": b"epochs: [1",
        "binary": bytes(range(256)),
        "code": b"!!python/object/apply:os.system ['touch ran']\n",
        "an alias bomb": b"a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\ndata: *c\n",
        "deep": deep(100_000).encode(),
        "deep options": b"options: " + deep(2000).encode(),
        "an unknown setting": b"epochz: 5\n",
        "a text as a number": b"epochs: many\n",
        "a list as a number": b"epochs: [1]\n",
        "a negative number": b"epochs: -1\n",
        "a huge number": b"batch_size: " + b"9" * 400 + b"\n",
        "not a number": b"lr: .nan\n",
        "infinity": b"lr: .inf\n",
        "a choice": b"schedule: none\n",
        "a table as a text": b"data: {a: 1}\n",
        "no such model": b"model: resnet21\n",
        "no such layers": b"layers: nothing\n",
        "no such data": b"data: nothing\n",
        "escapes": b'model: "\\x1b[31mred\\n"\n',
    }
    about = {"no such model": "resnet21", "no such layers": "layers 'nothing'", "no such data": "data set 'nothing'",
             "escapes": r"\x1b[31mred", "a negative number": "-1 at 'epochs'"}  # fmt: skip

    def damaged(change: Callable[[Path], None], finished: bool = False) -> Callable[[Path, Path], None]:
        def begun(run: Path) -> None:
            if not finished:
                (run / "result.json").unlink()
            change(run)

        return copied(("run",), begun)

    for name, content in settings.items():
        change = functools.partial(lambda run, c: (run / "settings.yaml").write_bytes(c), c=content)
        found = about.get(name, "run/settings.yaml")
        yield Case("settings.yaml", f"{name}, resumed", ("train", "--resume", "run"), damaged(change), found)
        opened = ("open", "run", "--out", "page", "--max-images", "20")
        if name not in ("no such model", "no such layers", "escapes"):  # the network is described with its weights
            yield Case("settings.yaml", f"{name}, opened", opened, damaged(change), found)
    rows: dict[str, str] = {
        "a number": "5\n",
        "an empty table": "{}\n",
        "a list": "[]\n",
        "a text as the epoch": '{"epoch": "x"}\n',
        "a huge epoch": '{"epoch": 1e999}\n',
        "deep": deep(5000) + "\n",
        "no JSON": "{\n{\n",
        "an accuracy of 7": '{"epoch": 0, "step": 1, "train_loss": 1, "train_accuracy": 7, "val_loss": 1}\n',
        "binary": "\x00\x01\x02\n",
    }  # fmt: skip
    for name, content in rows.items():
        change = functools.partial(lambda run, content: (run / "metrics.jsonl").write_text(content), content=content)
        yield Case("metrics.jsonl", f"{name}, resumed", ("train", "--resume", "run"), damaged(change), "metrics.jsonl")
        yield Case(
            "metrics.jsonl",
            f"{name}, opened",
            ("open", "run", "--out", "page"),
            damaged(change, finished=True),
            "metrics.jsonl",
        )
    plain = {"empty": "{}", "a list": "[]", "a number": "5", "no JSON": "{", "nothing": "", "deep": deep(5000)}
    for name, content in plain.items():
        for file in ("result.json", "environment.json", "last.ckpt/checkpoint.json"):
            change = functools.partial(lambda run, f, c: (run / f).write_text(c), f=file, c=content)
            yield Case(file, name, ("train", "--resume", "run"), damaged(change), file)
    for name, content in {
        "a list of data": '{"data": []}',
        "a number as fingerprint": '{"data": {"fingerprint": 1}}',
    }.items():
        change = functools.partial(lambda run, c: (run / "environment.json").write_text(c), c=content)
        yield Case("environment.json", name, ("train", "--resume", "run"), damaged(change), "environment.json")
    positions: dict[str, dict[str, Any]] = {
        "a best of another form": {"best": {"a": 1}},
        "no best one of the epochs": {"best": {}},
        "a best accuracy of 7": {"best": {"epoch": 0, "val_accuracy": 7, "val_loss": 1}},
        "a text as the epoch": {"epoch": "1"},
        "a huge step": {"step": 10**15},
        "a huge epoch": {"epoch": 10**15},
        "a negative step": {"step": -1},
        "a step of another epoch": {"total_steps": 5},
        "a path as the file": {"file": "../../x.safetensors"},
        "a number as the file": {"file": 5},
        "another file": {"file": "checkpoint.json"},
        "a text as the loss": {"loss_sum": "0"},
        "a truth value": {"correct": True},
    }
    for name, position in positions.items():

        def moved(run: Path, position: dict[str, Any] = position) -> None:
            file = run / "last.ckpt" / "checkpoint.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **position}))

        yield Case("checkpoint.json", name, ("train", "--resume", "run"), damaged(moved), "run/last.ckpt")

    def state(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
        def changed(run: Path) -> None:
            from safetensors.torch import load_file, save_file

            (file,) = (run / "last.ckpt").glob("state-*.safetensors")
            save_file(change(load_file(file)), file)

        return changed

    states: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
        "no tensors": lambda tensors: {},
        "other tensors": lambda tensors: {"model.x": torch.ones(3)},
        "an optimizer's tensor of another shape": lambda t: {**t, "optimizer.0.momentum_buffer": torch.ones(7)},
        "an optimizer's tensor of another name": lambda t: {**t, "optimizer.0.x": torch.ones(7)},
        "an optimizer's tensor of no parameter": lambda t: {**t, "optimizer.99999.momentum_buffer": torch.ones(7)},
        "an optimizer's tensor without a number": lambda t: {**t, "optimizer.x.momentum_buffer": torch.ones(7)},
    }
    for name, of in states.items():
        yield Case("state of training", name, ("train", "--resume", "run"), damaged(state(of)), "run/last.ckpt")


def filters() -> Iterator[Case]:
    files = {
        "nothing": "",
        "a list": "[]",
        "an empty table": "{}",
        "a huge index": '{"0": [1000000000], "1": [0]}',
        "an index beyond floats": f'{{"0": [{10**400}]}}',
        "a negative index": '{"0": [-1]}',
        "a fraction": '{"0": [0.5]}',
        "a truth value": '{"0": [true]}',
        "an index twice": '{"0": [1, 1]}',
        "deep": '{"0": ' + deep(3000) + "}",
        "a class that is missing": '{"1": [0]}',
        "too few classes": '{"0": [0]}',
        "an index beyond the layer": json.dumps({str(n): [n, 100_000] for n in range(10)}),
        "another format": '{"pellucid": "class filters", "format": 9}',
        "no content": '{"pellucid": "class filters", "format": 1}',
        "scores that are no base 64": '{"pellucid": "class filters", "format": 1, "classes": ["a"], "width": 4, "scores": "!"}',  # noqa: E501
        "a huge width": '{"pellucid": "class filters", "format": 1, "classes": ["a"], "width": 1000000000000, "scores": ""}',  # noqa: E501
    }
    for name, content in files.items():
        words, about = "evaluate resnet20 --data digits --decomposed x.json", "x.json"
        about = "Sets of 100001 filters" if "beyond the layer" in name else about
        yield case("class filters", name, words, {"x.json": content.encode()}, about)


def syntheses() -> Iterator[Case]:
    manifests = {
        "nothing": "",
        "a list": "[]",
        "an empty table": "{}",
        "a text as classes": '{"classes": "abc"}',
        "numbers as classes": '{"classes": [1, 2]}',
        "a path as a class": '{"classes": ["../a", "b"]}',
        "a class twice": '{"classes": ["0", "0"]}',
        "deep": '{"classes": ' + deep(2000) + "}",
        "a text as settings": '{"classes": ["0", "1"], "settings": "x"}',
    }

    def more(made: Path) -> None:
        manifest = json.loads((made / "synthesis.json").read_text())
        manifest["settings"]["x\x1b" * 50] = None
        (made / "synthesis.json").write_text(json.dumps(manifest))

    damaged = functools.partial(copied, ("run", "synthesis"))
    again = "synthesize run --out synthesis --per-class 5 --steps 2 --batch-size 25 --device cpu"
    yield Case("synthesis.json", "an unknown setting", tuple(again.split()), damaged(more), "was begun with")
    for name, content in manifests.items():
        change = functools.partial(lambda made, c: (made / "synthesis.json").write_text(c), c=content)
        for words in (again, "distill run conv2 synthesis --out student --epochs 1"):
            made = damaged(change)
            yield Case("synthesis.json", f"{name}, {words[:4]}", tuple(words.split()), made, "synthesis.json")

    def labels(tensors: dict[str, torch.Tensor]) -> Callable[[Path], object]:
        def changed(made: Path) -> None:
            from safetensors.torch import save_file

            save_file(tensors, made / "labels.safetensors")

        return changed

    tensors = {
        "no logits": {"x": torch.ones(10)},
        "fewer columns than classes": {"logits": torch.ones(10, 3), "labels": torch.zeros(10, dtype=torch.int64)},
        "logits of one axis": {"logits": torch.ones(10), "labels": torch.zeros(10, dtype=torch.int64)},
        "logits that are whole numbers": {"logits": torch.ones(10, 10, dtype=torch.int64)},
    }
    for name, content in tensors.items():
        words = ("distill", "run", "conv2", "synthesis", "--out", "student", "--epochs", "1")
        yield Case("labels.safetensors", name, words, damaged(labels(content)), "labels.safetensors")

    def batches(content: bytes | dict[str, torch.Tensor]) -> Callable[[Path], object]:
        def changed(made: Path) -> None:
            from safetensors.torch import save

            (made / "labels.safetensors").unlink()
            whole = content if isinstance(content, bytes) else save({k: v.clone() for k, v in content.items()})
            write(made, {f".batches/{n:06d}.safetensors": whole for n in range(2)})

        return changed

    pixels = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    numbers = torch.arange(5)
    shards: dict[str, bytes | dict[str, torch.Tensor]] = {
        "nothing": b"",
        "a text": b"hello",
        "no pixels": {"x": torch.ones(3)},
        "labels beyond the classes": {
            "pixels": pixels,
            "logits": torch.ones(5, 10),
            "labels": numbers + 100,
            "indices": numbers,
        },
        "fewer labels": {"pixels": pixels, "logits": torch.ones(5, 10), "labels": numbers[:2], "indices": numbers},
        "pixels of another type": {
            "pixels": pixels.float(),
            "logits": torch.ones(5, 10),
            "labels": numbers,
            "indices": numbers,
        },
    }
    for name, shard in shards.items():
        yield Case(
            "batch of a synthesis", name, tuple(again.split()), damaged(batches(shard)), ".batches/000000.safetensors"
        )


def statistics() -> Iterator[Case]:
    def entry(count: Any = 5, of: Any = "channels") -> str:
        return json.dumps({"conv1": {"count": count, "of": of}})

    mean = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    whole = {"conv1/mean": mean, "conv1/var": {**mean, "data_offsets": [16, 32]}}
    files = {
        "nothing": b"",
        "a text": b"hello",
        "no table": raw({"a": mean}),
        "a list": raw({"__metadata__": {"pellucid.statistics": "[]"}, **whole}, bytes(32)),
        "deep": raw({"__metadata__": {"pellucid.statistics": deep(5000)}, **whole}, bytes(32)),
        "a negative count": raw({"__metadata__": {"pellucid.statistics": entry(-1)}, **whole}, bytes(32)),
        "a text as the count": raw({"__metadata__": {"pellucid.statistics": entry("x")}, **whole}, bytes(32)),
        "a list as the kind": raw({"__metadata__": {"pellucid.statistics": entry(of=[])}, **whole}, bytes(32)),
        "no variance": raw({"__metadata__": {"pellucid.statistics": entry()}, "conv1/mean": mean}),
        "a variance of another shape": raw(
            {
                "__metadata__": {"pellucid.statistics": entry()},
                "conv1/mean": mean,
                "conv1/var": {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 32]},
            },
            bytes(32),
        ),
        "no such layer": raw(
            {
                "__metadata__": {"pellucid.statistics": entry().replace("conv1", "x")},
                "x/mean": mean,
                "x/var": {**mean, "data_offsets": [16, 32]},
            },
            bytes(32),
        ),
    }
    for name, content in files.items():
        words = "invert resnet20 --statistics x.safetensors --steps 1 --count 2 --out images --device cpu"
        about = "Layer 'x'" if name == "no such layer" else None
        yield case("statistics", name, words, {"x.safetensors": content}, about)


TUNED = ("seed", "epochs", "crop", "cutout")


def plans() -> Iterator[Case]:
    good = {"grid": {"lr": [0.1, 0.2]}, "score": "result.json:best.val_accuracy", "fixed": {"epochs": 1}}
    files: dict[str, bytes | dict[str, Any]] = {
        "nothing": b"",
        "a list": b"[1]",
        "no YAML": b"grid: [1",
        "deep": deep(50_000).encode(),
        "an alias bomb": b"a: &a [x, x]\ngrid: [*a, *a]\n",
        "code": b"!!python/object/apply:os.system ['touch ran']\n",
        "no score": {"grid": {"lr": [1]}},
        "an unknown key": {**good, "exec": 1},
        "a list as the grid": {**good, "grid": [1]},
        "an empty grid": {**good, "grid": {}},
        "a trillion points": {**good, "grid": {name: list(range(1, 1001)) for name in TUNED}},
        "an upside-down range": {**good, "grid": {"lr": {"low": 2, "high": 1}}},
        "a score out of the folder": {**good, "score": "../../etc/passwd:a"},
        "a score without a key": {**good, "score": "result.json"},
        "a direction": {**good, "direction": "up"},
        "a text as fixed": {**good, "fixed": "x"},
    }  # fmt: skip
    for name, content in files.items():
        written = content if isinstance(content, bytes) else yaml.safe_dump(content).encode()
        about = "1000000000000 points" if "trillion" in name else None
        yield case("plan", name, "search train --grid x.yaml --out study", {"x.yaml": written}, about)


def configs() -> Iterator[Case]:
    files: dict[str, bytes] = {
        "a number": b"5",
        "a list": b"[1, 2]",
        "no YAML": b"lr: [1",
        "binary": bytes(range(256)),
        "code": b"!!python/object/apply:os.system ['touch ran']\n",
        "an alias bomb": b"a: &a [x, x]\nlr: [*a, *a]\n",
        "deep": deep(50_000).encode(),
        "another file": b"config: /etc/passwd\n",
        "another file as a value": b"data: /etc/passwd\nlr: /etc/passwd\n",
        "an unknown flag": b"learning_rate: 1\n",
        "a text as a number": b"lr: x\n",
        "not a number": b"lr: .nan\n",
        "a list as a number": b"epochs: [1]\n",
        "a table as a text": b"model: {a: 1}\n",
        "escapes": b'model: "\\x1b[31mred"\n',
        "a long text": b"model: " + b"x" * 100_000 + b"\n",
    }
    for name, content in files.items():
        yield case("config", name, "train --config x.yaml --out run", {"x.yaml": content})


KINDS = (
    *(pickles, zips, safetensors, tables, arrays, binaries, pictures),
    *(runs, filters, syntheses, statistics, plans, configs),
)
CASES = [one for kind in KINDS for one in kind()]


def make_base(folder: Path, model: str = "resnet20") -> Path:
    """A finished run, and a synthesis out of it, in `folder`."""
    from pellucid.cli import main

    words = ["--epochs", "1", "--limit-batches", "2", "--device", "cpu", "--quiet"]
    assert main(["train", "--model", model, *words, "--out", str(folder / "run")]) == 0
    made = ["--per-class", "5", "--steps", "2", "--batch-size", "25", "--device", "cpu", "--quiet"]
    made += ["--weight", "0"] * (model.startswith("conv"))  # such a network holds no statistics
    assert main(["synthesize", str(folder / "run"), *made, "--out", str(folder / "synthesis")]) == 0
    return folder
