"""Checkpoints: what is saved comes back, foreign files are understood, hostile ones are refused and run nothing."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import stat
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.files import sniff
from pellucid.core.files.align import HEADS
from pellucid.core.files.tensors import read_tensors, save_tensors
from pellucid.core.network import models
from pellucid.core.network.checkpoint import load, save

BIG = 2**45


def small() -> nn.Module:
    """A network of a few KB with statistics that are not the fresh ones."""
    torch.manual_seed(0)
    model = models.build("resnet20", 5, 1, 8)
    model(torch.randn(4, 1, 8, 8))
    return model.eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --- our own files ---


def test_round_trip_is_exact(tmp_path):
    model = small()
    declare(model, classes=("a", "b", "c", "d", "é"), normalization={"mean": [0.5], "std": [0.2]})
    save(model, tmp_path / "m.safetensors", epoch=3)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    again = load(tmp_path / "m.safetensors")
    assert torch.equal(torch.rand(1), expected)  # loading draws nothing from the user's random state
    assert same(model, again)
    assert not again.training
    assert facts(again).description == facts(model).description
    assert facts(again).classes == facts(model).classes
    assert facts(again).normalization == facts(model).normalization
    assert facts(again).load_report == {"missing": [], "unexpected": [], "mismatched": []}
    assert read_tensors(tmp_path / "m.safetensors")[1]["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) & 0o400
    by_name = load(tmp_path / "m.safetensors", "resnet20")
    assert same(model, by_name)
    with pytest.raises(InputError, match="holds a resnet20, not a vgg11"):
        load(tmp_path / "m.safetensors", "vgg11")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_round_trip_keeps_the_precision(tmp_path, dtype):
    model = small().to(dtype)
    save(model, tmp_path / "m")
    assert same(model, load(tmp_path / "m"))


def test_every_length_of_the_header_is_recognised(tmp_path):
    """The file begins with that length: its low byte may be what a pickle begins with."""
    first = set()
    for length in range(300):
        save_tensors({"a": torch.ones(1)}, tmp_path / "m", note="x" * length)
        first.add((tmp_path / "m").read_bytes()[0])
        assert sniff.kind(tmp_path / "m") == "safetensors"
    assert 0x80 in first


def test_tied_and_odd_tensors(tmp_path):
    """Tied weights, views of larger and of shared storages, empty ones, strides, scalars, other types."""
    base = torch.arange(24.0)
    tensors = {
        "a": base[:12],
        "tied": base[:12],
        "reshaped": base[:12].view(3, 4),
        "transposed": base[:12].view(3, 4).t(),
        "strided": base[::2],
        "empty": torch.empty(0, 3),
        "empty2": torch.empty(0, 3),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "bool": torch.tensor([True, False]),
        "expanded": torch.ones(1).expand(5),
    }
    save_tensors(tensors, tmp_path / "t", note={"x": 1})
    again, info = read_tensors(tmp_path / "t")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[k], tensors[k]) and again[k].dtype == tensors[k].dtype for k in tensors)
    assert again["tied"].data_ptr() == again["a"].data_ptr()
    assert info["note"] == {"x": 1}
    save_tensors({"model.a": base, "ema.a": base, "step": base}, tmp_path / "t")
    assert read_tensors(tmp_path / "t", "ema.")[0].keys() == {"a"}


def test_a_module_without_description_loads_into_an_equal_one(tmp_path):
    model, other = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))
    save(model, tmp_path / "m")
    assert same(model, load(tmp_path / "m", other))
    with pytest.raises(InputError, match="holds no network that is known here: name its architecture with --model"):
        load(tmp_path / "m")
    with pytest.raises(InputError, match=r"the given Linear.*2 missing.*2 unexpected"):
        load(tmp_path / "m", nn.Linear(3, 2))


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(InputError, match="JSON serializable"):
        save(small(), tmp_path / "m", what=object())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """In a process that may write 64 KB to a file: the write fails half-way, as on a full disk."""
    path = tmp_path / "m.safetensors"
    save(nn.Linear(2, 2), path)
    before = path.read_bytes()
    program = (
        "import resource, sys\nfrom torch import nn\nfrom pellucid.core.network.checkpoint import save\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try:\n    save(nn.Linear(1000, 100), sys.argv[1])\nexcept OSError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], check=True, capture_output=True, text=True)
    assert "File too large" in done.stdout
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_run_folders(tmp_path):
    model, best = small(), small()
    best.fc.bias.data += 1
    (tmp_path / "settings.yaml").write_text("x: 1")
    with pytest.raises(InputError, match="holds no checkpoint"):
        load(tmp_path)
    (tmp_path / "last.ckpt").mkdir()
    state = {f"model.{k}": v for k, v in model.state_dict().items()} | {"optimizer.0.m": torch.zeros(3)}
    save_tensors(state, tmp_path / "last.ckpt" / "state-1.safetensors", description=facts(model).description)
    pointer = tmp_path / "last.ckpt" / "checkpoint.json"
    pointer.write_text(json.dumps({"file": "state-1.safetensors", "epoch": 1}))
    assert same(model, load(tmp_path))
    assert same(model, load(tmp_path / "last.ckpt"))
    for damaged in ("", "[]", "{}", '{"file": 3}', '{"file": "../x"}', '{"file": "state-2.safetensors"}'):
        pointer.write_text(damaged)
        with pytest.raises(InputError):
            load(tmp_path)
    save(best, tmp_path / "best.safetensors")
    assert same(best, load(str(tmp_path)))


# --- foreign files ---


def published() -> tuple[nn.Module, dict]:
    """A network and its checkpoint as a well-known CIFAR code base writes it."""
    model = small()
    state = OrderedDict(
        (f"module.{key.replace('fc.', 'linear.')}", value)
        for key, value in model.state_dict().items()
        if "num_batches" not in key
    )
    return model, {"state_dict": state, "best_prec1": 91.7}


def weights_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items() if "num_batches" not in k)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_published_layout_loads_by_name(tmp_path, zipped):
    model, content = published()
    torch.save(content, tmp_path / "r.th", _use_new_zipfile_serialization=zipped)
    again = load(tmp_path / "r.th", "resnet20")
    assert weights_equal(model, again)
    assert facts(again).description == {**facts(model).description, "image_size": [32, 32]}
    assert facts(again).normalization is None
    assert facts(again).classes is None
    unnamed = load(tmp_path / "r.th")
    assert weights_equal(model, unnamed) and "Recognised as resnet20" in facts(unnamed).remarks[0]
    with pytest.raises(InputError, match=r"182 missing \(layer1.3.conv1.weight.*--model resnet20 fits"):
        load(tmp_path / "r.th", "resnet56")
    with pytest.raises(InputError, match="did you mean resnet18"):
        load(tmp_path / "r.th", "resnet19")


@pytest.mark.parametrize("nest", ["state_dict", "model", "net", "model_state_dict", "model_ema", "ema", None])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
def test_nests_and_wrappers(tmp_path, nest, wrapper):
    model = small()
    state = {wrapper + key: value for key, value in model.state_dict().items()}
    torch.save({nest: state, "epoch": 3, "lr": [0.1, None, True]} if nest else state, tmp_path / "r.pt")
    assert same(model, load(tmp_path / "r.pt", "resnet20"))
    assert same(model, load(tmp_path / "r.pt", models.build("resnet20", 5, 1, 8)))


@pytest.mark.parametrize("head", HEADS)
def test_heads_by_any_name_in_safetensors_too(tmp_path, head):
    from safetensors.torch import save_file

    model = small()
    state = {key.replace("fc.", f"{head}."): value.clone() for key, value in model.state_dict().items()}
    save_file(state, tmp_path / "r.safetensors")
    assert same(model, load(tmp_path / "r.safetensors", "resnet20"))


def test_names_of_other_code_bases(tmp_path):
    model = models.build("resnet18", 3, 1, 8)
    torch.save({k.replace("downsample", "shortcut"): v for k, v in model.state_dict().items()}, tmp_path / "r.pt")
    assert same(model, load(tmp_path / "r.pt", "resnet18"))
    model = models.build("densenet121", 3, 1, 8)
    old = {k: k.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.") for k in model.state_dict()}
    old = {k: v.replace("conv1.", "conv.1.").replace("conv2.", "conv.2.") for k, v in old.items()}
    torch.save({old[k]: v for k, v in model.state_dict().items()}, tmp_path / "d.pt")
    assert same(model, load(tmp_path / "d.pt", "densenet121"))


def test_what_does_not_fit_is_listed_by_kind(tmp_path):
    state = small().state_dict()
    state["conv1.weight"] = torch.zeros(16, 1, 5, 5)
    state["bn1.bias"] = state["bn1.bias"].int()
    del state["layer1.0.conv1.weight"], state["layer1.1.bn1.num_batches_tracked"]
    state["extra"] = torch.zeros(2)
    torch.save(state, tmp_path / "r.pt")
    target = models.build("resnet20", 5, 1, 8)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    message = (
        r"1 missing \(layer1.0.conv1.weight\); 1 unexpected \(extra\); 2 of another shape or type \(conv1.weight "
        r"float32 \[16, 1, 5, 5\] for float32 \[16, 1, 3, 3\], bn1.bias int32 \[16\] for float32 \[16\]\)"
    )
    for model in ("resnet20", target):
        with pytest.raises(InputError, match=message):
            load(tmp_path / "r.pt", model)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    loose = load(tmp_path / "r.pt", "resnet20", strict=False)
    assert facts(loose).load_report["missing"] == ["layer1.0.conv1.weight"]
    assert facts(loose).load_report["unexpected"] == ["extra"]
    assert [entry["key"] for entry in facts(loose).load_report["mismatched"]] == ["conv1.weight", "bn1.bias"]
    assert torch.equal(loose.fc.weight, state["fc.weight"])


def test_half_precision_checkpoints_become_float32(tmp_path):
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in small().state_dict().items()}, tmp_path / "r")
    assert load(tmp_path / "r", "resnet20").fc.weight.dtype == torch.float32


@pytest.mark.parametrize("zipped", [True, False])
def test_the_arguments_of_a_training_script_are_read_over(tmp_path, zipped):
    """torchvision's and timm's own scripts store an `argparse.Namespace` with the weights."""
    model = small()
    arguments = argparse.Namespace(lr=0.1, data="x", more=argparse.Namespace(steps=[1, 2]))
    content = {"model": model.state_dict(), "args": arguments, "epoch": 3}
    torch.save(content, tmp_path / "r.pth", _use_new_zipfile_serialization=zipped)
    assert same(load(tmp_path / "r.pth", "resnet20"), model)
    content["args"].data = Payload(tmp_path / "touched")  # and nothing in it is run
    torch.save(content, tmp_path / "r.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="would run the code"):
        load(tmp_path / "r.pth", "resnet20")
    assert not (tmp_path / "touched").exists()


def test_counters_of_batches_in_half_precision_are_read(tmp_path):
    state = small().state_dict()
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "r.safetensors")
    loaded = load(tmp_path / "r.safetensors", "resnet20")
    assert loaded.bn1.num_batches_tracked.dtype == torch.int64
    assert torch.equal(loaded.fc.weight, state["fc.weight"].half().float())


def test_counters_of_batches_that_are_lists_of_one_number_are_read(tmp_path):
    state = small().state_dict()
    counters = {key: torch.tensor([3]) for key in state if key.endswith("num_batches_tracked")}
    save_file({**state, **counters}, tmp_path / "r.safetensors")
    assert load(tmp_path / "r.safetensors", "resnet20").bn1.num_batches_tracked == torch.tensor(3)


def test_a_torchscript_program_is_called_one(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "r.pt"))
    with pytest.raises(InputError, match="is a TorchScript program, not a state dict: load it in Python"):
        load(tmp_path / "r.pt", "resnet20")


def test_a_network_inside_a_larger_module_is_found(tmp_path):
    model = small()
    state = {f"net.backbone.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": {**state, "net.loss.weight": torch.ones(3)}}, tmp_path / "r.ckpt")
    assert same(load(tmp_path / "r.ckpt", "resnet20"), model)
    target = models.build("resnet20", 5, 1, 8)
    assert same(load(tmp_path / "r.ckpt", target), model)
    state |= {f"average.{key}": value + 1 for key, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "r.ckpt")
    with pytest.raises(
        InputError, match=r"r\.ckpt' holds such a network 2 times, under 'average\.', 'net\.backbone\.'"
    ):
        load(tmp_path / "r.ckpt", "resnet20")


# --- other formats ---


def zip_with(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"x")  # of 1980, whenever it is made
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello world\n", "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file, as Keras"),
        (b"\x08\x08\x12\x07pytorch\x1a", "an ONNX file, which holds a whole computation"),
        (b"\x1f\x8b\x08" + bytes(50), "gzip"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
        (bytes(4) + b"TFL3" + bytes(40), "TensorFlow Lite"),
        (b"\x93NUMPY\x01\x00", "numpy array"),
        (b"\xff\xfe\xfd\xfc\xfb\xfa", "unknown format"),
        (b"PK\x03\x04" + bytes(40), "truncated or damaged zip"),
        (zip_with("config.json", "model.weights.h5"), "a Keras model"),
        (zip_with("a.npy", "b.npy"), "npz"),
        (zip_with("a.txt"), "a zip archive"),
        (zip_with("x/data.pkl", "x/constants.pkl"), "TorchScript"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # every process must name it alike
)
def test_other_formats_are_named(tmp_path, content, message):
    (tmp_path / "r.pth").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "r.pth", "resnet20")


def test_paths_that_are_no_checkpoints(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "none.pth")
    with pytest.raises(InputError, match="holds no checkpoint"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no file"):
        load(tmp_path / "pipe")


# --- hostile files ---


class Payload:
    def __init__(self, path) -> None:
        self.command = f"touch {path}"

    def __reduce__(self):
        return os.system, (self.command,)


def test_code_is_refused_and_does_not_run(tmp_path):
    touched, file = tmp_path / "touched", tmp_path / "r.pth"
    content = {"state_dict": small().state_dict(), "best": Payload(touched)}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(content, file, **options)
        for model in (None, "resnet20"):
            with pytest.raises(InputError, match=r"would run the code posix\.system"):
                load(file, model)
    for protocol in range(6):
        file.write_bytes(pickle.dumps(Payload(touched), protocol))
        with pytest.raises(InputError):
            load(file, "resnet20")
    torch.save(small(), file)  # a whole module is code as well
    with pytest.raises(InputError, match=r"ResNet; if you trust its source.*state_dict"):
        load(file, "resnet20")
    assert not touched.exists()


class Handmade:
    """A PyTorch file whose pickle is written by hand, around a storage "0" of `elements` floats."""

    def __init__(self, call: str, arguments: tuple, elements: int = 4, rest: bytes = b"") -> None:
        storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        self.reference = storage + self.long(elements)
        self.body = f"c{call}\n".encode()
        self.arguments, self.rest = arguments, rest

    @staticmethod
    def long(value: int) -> bytes:
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw

    def value(self, item: object, end: bytes) -> bytes:
        if item == "S":
            return self.reference + end + b"tQ"
        if isinstance(item, tuple):
            return b"(" + b"".join(self.value(i, end) for i in item) + b"t"
        return (b"\x88" if item else b"\x89") if isinstance(item, bool) else self.long(item)

    def program(self, end: bytes) -> bytes:
        call = self.body + self.value(self.arguments, end) + b"R" + self.rest
        return b"\x80\x02}X\x01\x00\x00\x00w" + call + b"s."

    def zipped(self, nbytes: int = 16) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", self.program(b""))
            archive.writestr("archive/version", b"3\n")
            archive.writestr("archive/data/0", bytes(nbytes))
        return stream.getvalue()

    def legacy(self, nbytes: int = 16) -> bytes:
        head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
        head += pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
        return head + self.program(b"N") + pickle.dumps(["0"], 2) + struct.pack("<q", nbytes // 4) + bytes(nbytes)


TENSOR = "torch._utils\n_rebuild_tensor_v2"


def tensor(offset=0, size=(4,), stride=(1,)) -> tuple:
    return ("S", offset, size, stride, False, ())


def test_handmade_files_are_well_made(tmp_path):
    """What follows is refused for its sizes, not for its making."""
    good = Handmade(TENSOR, tensor(size=(2, 2), stride=(2, 1)))
    for content in (good.zipped(), good.legacy()):
        (tmp_path / "r.pt").write_bytes(content)
        with pytest.raises(InputError, match="holds no network that is known here: name its architecture with --model"):
            load(tmp_path / "r.pt")
        target = nn.Module()
        target.register_buffer("w", torch.ones(2, 2))
        assert load(tmp_path / "r.pt", target).w.sum() == 0


HOSTILE = {
    "storage larger than the file": (Handmade(TENSOR, tensor(), BIG), "storage|claim"),
    "storage of negative size": (Handmade(TENSOR, tensor(), -4), "kind or size"),
    "storage larger than any": (Handmade(TENSOR, tensor(), 2**70), "kind or size"),
    "view larger than its storage": (Handmade(TENSOR, tensor(size=(BIG,))), "more than its storage"),
    "stride 0": (Handmade(TENSOR, tensor(size=(BIG,), stride=(0,))), "more than its storage"),
    "two strides 0": (Handmade(TENSOR, tensor(size=(2**23, 2**23), stride=(0, 0))), "more than its storage"),
    "size beyond 64 bits": (Handmade(TENSOR, tensor(size=(2**40, 2**40))), "2 sizes and 1 strides"),
    "negative size": (Handmade(TENSOR, tensor(size=(-1,))), "negative or absurd"),
    "negative offset": (Handmade(TENSOR, tensor(offset=-1)), "negative or absurd"),
    "negative stride": (Handmade(TENSOR, tensor(stride=(-1,))), "negative or absurd"),
    "offset beyond the storage": (Handmade(TENSOR, tensor(offset=1)), "more than its storage"),
    "stride beyond the storage": (Handmade(TENSOR, tensor(size=(2,), stride=(4,))), "more than its storage"),
    "size that is a truth value": (Handmade(TENSOR, ("S", 0, 7, (1,), False, ())), "no storage or no shape"),
    "too few arguments": (Handmade(TENSOR, ("S", 0)), "truncated, damaged"),
    "memory by bytearray": (Handmade("builtins\nbytearray", (BIG,)), "builtins.bytearray"),
    "memory by torch.empty": (Handmade("torch\nempty", (BIG,)), "torch.empty"),
    "a storage made": (Handmade("torch\nFloatStorage", (BIG,)), "unusual way"),
    "an untyped storage made": (Handmade("torch.storage\nUntypedStorage", (BIG,)), "unusual way"),
    "attribute of a module": (Handmade("torch\nhub.load", ()), "torch.hub.load"),
    "state set into a tensor": (Handmade(TENSOR, tensor(), rest=b"(tb"), "no table"),
    "items set into a tensor": (Handmade(TENSOR, tensor(), rest=b"(K\x00K\x01u"), "no table"),
    "new object": (Handmade(TENSOR, tensor(), rest=b"0ctorch\nSize\n)\x81"), "POP|NEWOBJ"),
    "stack run empty": (Handmade(TENSOR, tensor(), rest=b"\x87\x87\x87"), "truncated, damaged|refused"),
}


@pytest.mark.parametrize("form", ["zipped", "legacy"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, name, form):
    made, message = HOSTILE[name]
    (tmp_path / "r.pt").write_bytes(getattr(made, form)())
    with pytest.raises(InputError, match=message):
        load(tmp_path / "r.pt", "resnet20")


def test_hostile_zip_files_are_refused(tmp_path):
    good = Handmade(TENSOR, tensor())
    torch.save(small().state_dict(), tmp_path / "good.pt")
    bomb = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "good.pt") as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(10**8) if name.endswith("data/0") else old.read(name))
    claims = bytearray(good.zipped())
    where = claims.rindex(b"PK\x01\x02")  # the last record of the directory: archive/data/0
    claims[where + 20 : where + 28] = struct.pack("<II", 2**31, 2**31)
    cases = {
        "compressed": bomb.getvalue(),
        "more bytes than the file": bytes(claims),
        "other data": b"PK\x03\x04" + good.zipped(),
        "has not the size": good.zipped(nbytes=12),
    }
    for message, content in cases.items():
        (tmp_path / "r.pt").write_bytes(content)
        with pytest.raises(InputError, match=message):
            load(tmp_path / "r.pt", "resnet20")


def raw_safetensors(header: object, body: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        raw_safetensors({"a": entry([4], 0, 16)}, length=2**62),
        raw_safetensors({"a": entry([4], 0, 16)}, length=200_000_000),
        raw_safetensors({"a": entry([4], 0, 16)}, length=3),
        raw_safetensors({"a": entry([4], -16, 0)}),
        raw_safetensors({"a": entry([-4], 0, 16)}),
        raw_safetensors({"a": entry([4], 16, 0)}),
        raw_safetensors({"a": entry([4], 0, 2**60)}),
        raw_safetensors({"a": entry([2**62], 0, 16)}),
        raw_safetensors({"a": entry([2**32, 2**32], 0, 0)}),
        raw_safetensors({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}),
        raw_safetensors({"a": entry([4], 0, 16), "b": entry([2], 8, 16)}),
        raw_safetensors({"a": entry([3], 4, 16)}),
        raw_safetensors({"a": entry([4], 0, 16, "F31")}),
        raw_safetensors({"a": entry([4], 0, 16)}, body=bytes(15)),
        raw_safetensors({"a": entry([4], 0, 16)}, body=bytes(17)),
        raw_safetensors({"a": 3}),
        raw_safetensors(b"{" * 100_000),
        raw_safetensors(b'{"a":' * 100_000),
        raw_safetensors({"__metadata__": {"pellucid": 3}, "a": entry([4], 0, 16)}),
    ],
    ids=lambda content: content[8:70].decode()[:60],
)
def test_hostile_safetensors_are_refused(tmp_path, content):
    (tmp_path / "r.safetensors").write_bytes(content)
    for model in (None, "resnet20", nn.Linear(2, 2)):
        with pytest.raises(InputError):
            load(tmp_path / "r.safetensors", model)


RESNET = {"model": "resnet20", "num_classes": 5, "in_channels": 1, "image_size": [8, 8]}


@pytest.mark.parametrize(
    "table",
    [
        "",
        "[]",
        "3",
        "null",
        "{",
        "[" * 100_000,
        {},
        {"format": 2, "description": RESNET},
        {"format": 1, "description": "resnet20"},
        {"format": 1, "description": {"model": "resnet21"}},
        {"format": 1, "description": {**RESNET, "num_classes": 10**12}},
        {"format": 1, "description": {**RESNET, "num_classes": 900_000}},
        {"format": 1, "description": {**RESNET, "num_classes": "5"}},
        {"format": 1, "description": {**RESNET, "in_channels": 4096}},
        {"format": 1, "description": {**RESNET, "image_size": [10**9, 10**9]}},
        {"format": 1, "description": {**RESNET, "model": "vgg11", "form": "imagenet", "image_size": [224, 224]}},
        {"format": 1, "description": {**RESNET, "model": "conv2", "image_size": [16384, 16384]}},
        {"format": 1, "description": {**RESNET, "model": "timm:hf-hub:someone/something"}},
        {"format": 1, "description": {**RESNET, "colour": "red"}},
        {"format": 1, "description": {**RESNET, "options": {"pretrained": True}}},
        {"format": 1, "description": {**RESNET, "layers": "os.system", "options": {"command": "ls"}}},
        {"format": 1, "description": RESNET, "classes": "abcde"},
        {"format": 1, "description": RESNET, "classes": ["a", "b"]},
        {"format": 1, "description": RESNET, "normalization": [0.5]},
        {"format": 1, "description": RESNET, "normalization": {"mean": [0.5], "std": [0.0]}},
        {"format": 1, "description": RESNET, "normalization": {"mean": [float("nan")], "std": [1.0]}},
        {"format": 1, "description": RESNET, "normalization": {"mean": [0.5] * 3, "std": [1.0] * 3}},
        {"format": 1, "description": RESNET, "aliases": {"a": "b"}},
        {"format": 1, "description": RESNET, "aliases": {"a": ["fc.bias"]}},
        {"format": 1, "description": RESNET, "aliases": {"a": "fc.bias"}},
        {"format": 1, "description": RESNET, "aliases": ["fc.bias"]},
    ],
    ids=lambda table: json.dumps(table)[:100],
)
def test_hostile_tables_are_refused(tmp_path, table):
    from safetensors.torch import save_file

    text = table if isinstance(table, str) else json.dumps(table)
    save_file(small().state_dict(), tmp_path / "r.safetensors", {"pellucid": text})
    with pytest.raises(InputError):
        load(tmp_path / "r.safetensors")


def test_tied_tensors_cannot_describe_a_larger_network(tmp_path, monkeypatch):
    """All layers of one shape as aliases of a single small store would multiply it."""
    from safetensors.torch import save_file

    with torch.device("meta"):
        shapes = {k: v.shape for k, v in models.build("vgg19", 10).state_dict().items()}
    stored: dict[str, torch.Tensor] = {}
    first: dict[torch.Size, str] = {}
    aliases = {}
    for key, shape in shapes.items():
        if shape in first:
            aliases[key] = first[shape]
        else:
            first[shape] = key
            stored[key] = torch.zeros(shape)
    description = {"model": "vgg19"}
    table = json.dumps({"format": 1, "description": description, "aliases": aliases})
    save_file(stored, tmp_path / "r.safetensors", {"pellucid": table})
    monkeypatch.setattr("pellucid.core.network.claims._SLACK", 2**20)
    with pytest.raises(InputError, match="describes a network of"):
        load(tmp_path / "r.safetensors")


def test_hostile_files_allocate_nothing_large(tmp_path):
    """All of them, in one process that may not grow by more than 256 MB of addresses."""
    from safetensors.torch import save_file

    for index, (made, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{index}.pt").write_bytes(made.zipped())
        (tmp_path / f"{index}.th").write_bytes(made.legacy())
    (tmp_path / "length.safetensors").write_bytes(raw_safetensors({"a": entry([4], 0, 16)}, length=2**40))
    (tmp_path / "shape.safetensors").write_bytes(raw_safetensors({"a": entry([2**40], 0, 2**42)}))
    for name, description in {
        "classes": {**RESNET, "num_classes": 10**6},
        "vgg": {**RESNET, "model": "vgg11", "form": "imagenet", "image_size": [224, 224]},
        "conv": {**RESNET, "model": "conv2", "image_size": [16384, 16384]},
    }.items():
        table = json.dumps({"format": 1, "description": description})
        save_file(small().state_dict(), tmp_path / f"{name}.safetensors", {"pellucid": table})
    program = """
import pathlib, resource, sys
from pellucid.core.files import sniff
from pellucid.core.network import models
from pellucid.core.network.checkpoint import load
from pellucid.core.errors import InputError
models.build("resnet20")
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + 2**28, pages + 2**28))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        load(path, None if path.suffix == ".safetensors" else "resnet20")
    except InputError as error:
        assert not isinstance(error.__cause__, MemoryError) and "memory" not in str(error.__cause__), error
        print(path.name)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *refused, megabytes = done.stdout.split()
    assert len(refused) == 2 * len(HOSTILE) + 5
    assert int(megabytes) < 128


@pytest.mark.parametrize("kind", ["ours", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("zip", "legacy"))])
def test_damage_gives_a_model_or_one_sentence(tmp_path, kind):
    """Flipped and missing bytes, mostly where the structure is: never another error, never a crash."""
    torch.manual_seed(0)
    model = models.build("resnet20", 2, 1, 8)
    file = tmp_path / "r"
    if kind == "ours":
        save(model, file)
    else:
        torch.save(model.state_dict(), file, _use_new_zipfile_serialization=kind == "zip")
    good = file.read_bytes()
    draw = random.Random(0)
    # The structure stands at the beginning, in a zip file at the end as well.
    interesting = [range(20_000), range(len(good) - 20_000, len(good)), range(len(good))]
    for trial in range(120):
        damaged = bytearray(good)
        for _ in range(draw.choice([1, 1, 4])):
            damaged[draw.choice(draw.choice(interesting))] ^= 1 << draw.randrange(8)
        if trial % 4 == 0:
            del damaged[draw.choice(draw.choice(interesting)) :]
        file.write_bytes(damaged)
        try:
            loaded = load(file, None if kind == "ours" else "resnet20")
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert loaded(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
