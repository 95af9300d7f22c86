"""ONNX files and `torch.export` programs as networks that only predict; hostile ones, and what they cannot do."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from torch import Tensor, nn

import pellucid
from pellucid import cli
from pellucid.audit.registry import CARDS
from pellucid.core import source
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.network.agreement import distance
from pellucid.core.network.blackbox import onnx as onnx_files
from pellucid.core.network.blackbox import operators, pt2
from pellucid.core.network.blackbox.box import BlackBox
from pellucid.core.network.blackbox.operators import operator_named
from pellucid.core.network.export.quiet import silenced

missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"the extra export is not installed: {missing}")
pytestmark = pytest.mark.export
FORMATS = [pytest.param("onnx", marks=needs_onnx), "pt2"]
DIGITS = {"classes": tuple("0123456789"), "normalization": {"mean": [0.3], "std": [0.4]}}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return pellucid.declare(pellucid.build("resnet8", 10, 1, 8, "deconv").eval(), **DIGITS)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """The same network as m.safetensors, m.pt2 and, if it can be made, m.onnx."""
    folder = tmp_path_factory.mktemp("files")
    pellucid.save(model, folder / "m.safetensors")
    for to in ("pt2", *(() if missing else ("onnx",))):
        pellucid.export(model, folder / f"m.{to}")
    return folder


# --- opened ---


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_is_a_network_that_predicts(to, model, files, tmp_path):
    box = pellucid.load(files / f"m.{to}")
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = model(images)
        assert distance([expected], [box(images)]) < 1e-5
        assert distance([expected[:1]], [box(images[:1])]) < 1e-5 and box(images[:0]).shape == (0, 10)
        assert distance([expected], [copy.deepcopy(box)(images)]) < 1e-5
        assert distance([expected], [box.half()(images.double())]) < 1e-5, "its types are those of the file"
    assert isinstance(box, BlackBox) and not box.training and not list(box.parameters())
    known = facts(box)
    assert known.classes == DIGITS["classes"] and known.normalization.to_json() == DIGITS["normalization"]
    assert known.image_size == (8, 8) and known.in_channels == 1 and known.description["num_classes"] == 10
    (tmp_path / "no-suffix").write_bytes((files / f"m.{to}").read_bytes())
    assert distance([expected], [pellucid.load(tmp_path / "no-suffix")(images)]) < 1e-5
    with pytest.raises(InputError, match=rf"m.{to}' takes images of 1 x 8 x 8 .*not a tensor of shape \[2, 1, 9, 8\]"):
        box(torch.zeros(2, 1, 9, 8))


@needs_onnx
def test_the_prefix_onnx_names_a_file_of_any_name(files, tmp_path):
    assert isinstance(pellucid.load(f"onnx:{files / 'm.onnx'}"), onnx_files.OnnxBox)
    assert source.open_network(f"onnx:{files / 'm.onnx'}").title.startswith("onnx:")
    for wrong, said in ((files / "m.pt2", "no ONNX file"), (tmp_path / "none.onnx", "does not exist")):
        with pytest.raises(InputError, match=said):
            pellucid.load(f"onnx:{wrong}")


@pytest.mark.parametrize("to", FORMATS)
def test_a_fixed_batch_is_filled_up(to, model, tmp_path):
    path, images = tmp_path / f"m.{to}", torch.randn(7, 1, 8, 8)
    for batch in (1, 3):
        pellucid.export(model, path, fixed_batch=batch)
        box = pellucid.load(path)
        with torch.no_grad():
            assert box.batch == batch and distance([model(images)], [box(images)]) < 1e-5
            assert distance([model(images[:1])], [box(images[:1])]) < 1e-5


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("wide", [nn.Softmax(1), nn.LogSoftmax(1)], ids=lambda layer: type(layer).__name__)
def test_probabilities_become_logits(wide, to, tmp_path):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval()
    pellucid.export(nn.Sequential(plain, wide), tmp_path / f"m.{to}", images=torch.randn(2, 1, 4, 4))
    images = torch.randn(6, 1, 4, 4)
    with torch.no_grad():
        found = pellucid.load(tmp_path / f"m.{to}")(images)
        torch.testing.assert_close(found.softmax(1), plain(images).softmax(1))
        assert not torch.allclose(found.exp(), found)
    said = any("returns probabilities" in remark for remark in facts(pellucid.load(tmp_path / f"m.{to}")).remarks)
    assert said == isinstance(wide, nn.Softmax)


def test_gradients_flow_through_a_program(model, files):
    images = torch.randn(2, 1, 8, 8, requires_grad=True)
    box = pellucid.load(files / "m.pt2")
    (expected,) = torch.autograd.grad(model(images).square().sum(), images)
    (found,) = torch.autograd.grad(box(images).square().sum(), images)
    assert distance([expected], [found]) < 1e-4


def test_programs_that_were_exported_elsewhere(tmp_path):
    """Without our record; with split, chunk, max, constants, buffers, shapes of the batch, attention, and in place."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding="same")
            self.norm = nn.BatchNorm2d(8)
            self.register_buffer("scale", torch.linspace(0, 1, 8).view(8, 1, 1))
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = x.add_(0.5).relu_()
            x = nn.functional.hardswish(self.norm(self.stem(x))) * self.scale
            a, b = x.chunk(2, 1)
            x = torch.cat([b, a], 1) + torch.tensor([1.0, -1.0]).repeat(4).view(8, 1, 1)
            x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
            x = x.reshape(x.shape[0], 8, -1).transpose(1, 2)
            x = x + self.attend(x, x, x, need_weights=False)[0]
            return self.head(x.max(1)[0])

    torch.manual_seed(0)
    net, images = Net().eval(), torch.randn(5, 3, 6, 6)
    shapes = ({0: torch.export.Dim("n", min=1)},)
    program = torch.export.export(net, (torch.randn(2, 3, 6, 6),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "m.pt2")
    box = pellucid.load(tmp_path / "m.pt2")
    before = images.clone()
    with torch.no_grad():
        torch.testing.assert_close(box(images), net(images.clone()), atol=1e-5, rtol=1e-5)
    assert torch.equal(images, before), "the images of the caller are not worked on in place"
    assert box.num_classes == 6 and facts(box).normalization is None and facts(box).classes is None
    with silenced():
        fixed = torch.export.export(net, (torch.randn(3, 3, 6, 6),))
        torch.export.save(fixed.run_decompositions(), tmp_path / "core.pt2")
    core = pellucid.load(tmp_path / "core.pt2")
    with torch.no_grad():
        torch.testing.assert_close(core(images), net(images.clone()), atol=1e-5, rtol=1e-5)
    assert core.batch == 3


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), nn.Dropout(0.5)], ids=lambda layer: type(layer).__name__)
def test_a_program_in_training_mode_is_refused(layer, tmp_path):
    for mode in (False, True):
        net = nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 3)).train(mode)
        with silenced():
            torch.export.save(torch.export.export(net, (torch.randn(2, 1, 2, 2),)), tmp_path / f"{mode}.pt2")
    assert pellucid.load(tmp_path / "False.pt2").num_classes == 3
    with pytest.raises(InputError, match="was exported in training mode: export model.eval"):
        pellucid.load(tmp_path / "True.pt2")


def onnx_model(nodes, shape, weights=(), outputs=("y",), out_shape=("n", 4), functions=(), kind=1):
    from onnx import TensorProto, helper

    assert kind in TensorProto.DataType.values()
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, 1, out_shape) for name in outputs],
        list(weights),
    )
    domains = {node.domain for node in nodes} | {function.domain for function in functions} | {""}
    opsets = [helper.make_opsetid(domain, 18 if not domain else 1) for domain in sorted(domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=9)


def node(kind: str, inputs: str, outputs: str, **attributes):
    from onnx import helper

    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


@needs_onnx
def test_channels_that_come_last_and_names_of_classes_of_other_makers(tmp_path):
    from onnx import helper

    model = onnx_model([node("ReduceMean", "x axes", "y", keepdims=0)], ["n", 5, 6, 3], out_shape=["n", 3],
                       weights=[helper.make_tensor("axes", 7, [2], [1, 2])])  # fmt: skip
    for key, text in (("names", "{0: 'a', 1: 'b', 2: 'c'}"), ("classes", '["a", "b", "c"]'), ("labels", "__import__")):
        del model.metadata_props[:]
        model.metadata_props.add(key=key, value=text)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        box = pellucid.load(tmp_path / "m.onnx")
        assert facts(box).classes == (None if key == "labels" else ("a", "b", "c"))
    images = torch.randn(4, 3, 5, 6)
    torch.testing.assert_close(box(images), images.mean((2, 3)))
    assert box.in_channels == 3 and box.image_size == (5, 6) and "channels of its images last" in facts(box).remarks[0]


@needs_onnx
def test_weights_in_a_file_of_the_same_folder_are_read(tmp_path):
    import onnx

    weight = onnx.numpy_helper.from_array(torch.arange(16.0).view(4, 4).numpy(), "w")
    model = onnx_model([node("Flatten", "x", "f"), node("Gemm", "f w", "y")], ["n", 1, 2, 2], [weight])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    assert (tmp_path / "m.onnx.data").is_file()
    images = torch.randn(3, 1, 2, 2)
    expected = images.flatten(1) @ torch.arange(16.0).view(4, 4)
    torch.testing.assert_close(pellucid.load(tmp_path / "m.onnx")(images), expected)


# --- commands ---


@pytest.mark.parametrize("to", FORMATS)
def test_commands_that_predict_take_it(to, files, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    found = []
    for name in ("m.safetensors", f"m.{to}"):
        assert cli.main(["evaluate", str(files / name), "--data", "digits", "--json"]) == 0
        found.append(json.loads(capfd.readouterr().out))
    assert found[0]["confusion"] == found[1]["confusion"] and abs(found[0]["loss"] - found[1]["loss"]) < 1e-4
    words = ["--data", "digits", "--kinds", "gaussian_noise", "--severities", "3", "--max-images", "20", "--quiet"]
    assert cli.main(["robust", str(files / f"m.{to}"), *words]) == 0
    status = cli.main(["robust", str(files / f"m.{to}"), *words, "--attack", "fgsm"])
    err = capfd.readouterr().err
    assert (status, err) == (0, "") if to == "pt2" else status == 2 and "--attack fgsm needs gradients" in err


@pytest.mark.parametrize("to", FORMATS)
def test_the_page_shows_what_needs_predictions_and_says_what_the_rest_would_need(to, files, tmp_path):
    report = pellucid.open(files / f"m.{to}", "digits", tmp_path / "page", max_images=40)
    there = {name for name in CARDS["model"].names() if name in report.audit}
    assert there == {"accuracy", "calibration", "confusion", "noise", "black_box"}
    needs = report.audit["black_box"]["needs"]
    assert set(needs) == set(CARDS["model"].names()) - there
    assert all(sentence.count(". ") == 0 and sentence.endswith(".") for sentence in needs.values())
    page = report.path.read_text()
    assert all(sentence in page for sentence in needs.values()) and report.audit["model"]["parameters"] is None
    whole = pellucid.open(files / "m.safetensors", "digits", tmp_path / "whole", max_images=40)
    assert whole.audit["accuracy"]["top1"] == report.audit["accuracy"]["top1"] and "black_box" not in whole.audit


REFUSED = {
    "convert": "convert BOX --layers deconv --out x",
    "convert with data": "convert BOX --layers deconv --data digits --out x",
    "fold": "fold BOX --out x",
    "export": "export BOX --out x.pt2",
    "decompose": "decompose BOX --data digits --out x",
    "visualize": "visualize BOX --data digits --out x",
    "pack": "pack BOX --out x",
    "invert": "invert BOX --count 2 --steps 1 --out x",
    "synthesize": "synthesize BOX --per-class 1 --steps 1 --out x",
    "init": "train --data digits --model resnet8 --init BOX --epochs 1 --out x",
    "two names": "evaluate resnet8=BOX --data digits",
    "a model": "evaluate BOX --model resnet8 --data digits",
    "a prefix": "evaluate BOX --prefix net --data digits",
}


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED)
def test_commands_that_need_layers_refuse_it_in_one_sentence(line, to, files, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.replace("BOX", str(files / f"m.{to}")).split()) == 2
    err = capfd.readouterr().err
    kind = "an ONNX file" if to == "onnx" else "a torch.export program"
    assert f"m.{to}' is {kind}, which " in err and err.count("\n") == 1, err
    assert "needs the layers of a network" in err or "no weights for another network" in err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_functions_that_need_layers_refuse_it(files):
    box = pellucid.load(files / "m.pt2")
    images = torch.zeros(2, 1, 8, 8)
    for call in (
        lambda: pellucid.fold(box, images),
        lambda: pellucid.convert(box, "deconv"),
        lambda: pellucid.statistics(box),
        lambda: pellucid.statistics(box, images),
        lambda: pellucid.swap(box, lambda model: {}),
        lambda: pellucid.save(box, files / "never"),
        lambda: pellucid.subnet(box),
        lambda: pellucid.pack(box, files / "never"),
        lambda: pellucid.invert(box, torch.tensor([0]), steps=1),
        lambda: pellucid.visualize(box, images),
        lambda: pellucid.decompose(box, (images, torch.tensor([0, 1]))),
        lambda: pellucid.fold(nn.Sequential(box), images),
    ):
        with pytest.raises(InputError, match="needs the layers of a network, but .* which only predicts"):
            call()


# --- hostile files ---


def records_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return stream.getvalue()


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def edited(path, change) -> bytes:
    """The program at `path` with `change(table, records)` made to its JSON and its other records."""
    records = records_of(path.read_bytes())
    name = next(name for name in records if "/models/" in name)
    table = json.loads(records[name])
    change(table, records)
    records[name] = json.dumps(table).encode() if name in records else b""
    return zipped(records)


def config(records: dict[str, bytes], change) -> None:
    name = next(name for name in records if name.endswith("weights_config.json"))
    table = json.loads(records[name])
    change(next(iter(table["config"].values())))
    records[name] = json.dumps(table).encode()


def graph_of(table):
    return table["graph_module"]["graph"]


def set_target(target: str):
    return lambda table, records: graph_of(table)["nodes"][1].update(target=target)


def add_full(sizes: list[int]):
    def change(table, records) -> None:
        inputs = [
            {"name": "size", "arg": {"as_ints": sizes}, "kind": 1},
            {"name": "v", "arg": {"as_int": 0}, "kind": 1},
        ]
        made = {"target": "torch.ops.aten.full.default", "inputs": inputs, "outputs": [{"as_tensor": {"name": "big"}}]}
        graph_of(table)["nodes"].insert(0, made)

    return change


def pickled(records) -> None:
    config(records, lambda entry: entry.update(use_pickle=True))
    for name in records:
        if name.endswith("/weight_0"):
            records[name] = pickle.dumps(Trap())


HOSTILE_PROGRAMS = {
    "a pickled weight": (lambda table, records: pickled(records), "as a pickle, which could run code"),
    "a function of Python": (set_target("torch.serialization.os.mkdir"), "calls 'torch.serialization.os.mkdir'"),
    "an operator on files": (set_target("torch.ops.aten.from_file.default"), "calls 'torch.ops.aten.from_file"),
    "a custom operator": (set_target("torch.ops.mine.op.default"), "calls 'torch.ops.mine.op.default'"),
    "an operator on graphs": (set_target("torch.ops.higher_order.cond"), "calls 'torch.ops.higher_order.cond'"),
    "an attribute of an operator": (set_target("torch.ops.aten.relu.__class__"), "calls"),
    "an extension": (set_target("#mine:op"), "calls '#mine:op'"),
    "a shape that is code": (
        lambda table, records: graph_of(table)["tensor_values"]["x"]["sizes"][0].update(
            {"as_expr": {"expr_str": "__import__('os').mkdir('trapped')"}}
        ),
        None,
    ),
    "a pickled example": (
        lambda table, records: records.update({n: pickle.dumps(Trap()) for n in records if "sample_inputs" in n}),
        None,
    ),
    "guards that are code": (
        lambda table, records: table.update(guards_code=["__import__('os').mkdir('trapped')"]),
        None,
    ),
    "a giant tensor": (add_full([2**20, 2**20]), "computes a tensor of shape"),
    "a giant weight": (
        lambda table, records: config(records, lambda e: e["tensor_meta"].update(sizes=[{"as_int": 2**40}] * 4)),
        "claims more numbers than are stored",
    ),
    "a weight beyond its record": (
        lambda table, records: config(records, lambda e: e["tensor_meta"].update(storage_offset={"as_int": 100})),
        "claims more numbers than are stored",
    ),
    "a negative stride": (
        lambda table, records: config(records, lambda e: e["tensor_meta"]["strides"][0].update(as_int=-1)),
        "shape cannot be read",
    ),
    "no such weight": (
        lambda table, records: [records.pop(n) for n in list(records) if n.endswith("/weight_0")],
        "has no record 'data/weights/weight_0'",
    ),
    "a name that nothing made": (
        lambda table, records: graph_of(table)["nodes"].pop(0),
        "cannot be run",
    ),
    "giant images": (
        lambda table, records: graph_of(table)["tensor_values"]["x"]["sizes"][2].update(as_int=2**40),
        "takes images of shape",
    ),
    "no graph": (lambda table, records: table.pop("graph_module"), "graph_module' is missing"),
    "another version": (lambda table, records: table["schema_version"].update(major=99), "of another version"),
    "nodes that are none": (lambda table, records: graph_of(table).update(nodes=[1, "x"]), "cannot be read"),
    "an endless chain": (
        lambda table, records: graph_of(table).update(inputs=json.loads("[" * 90 + "]" * 90)),
        "nested more than",
    ),
    "facts of another network": (
        lambda table, records: records.update(
            {n: b'{"format": 1, "in_channels": 1, "image_size": [8, 8], "num_classes": 3, "folded": true}'
             for n in records if n.endswith("extra/pellucid.json")}
        ),
        "describes another network",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_PROGRAMS)
def test_a_hostile_program_runs_nothing(name, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, said = HOSTILE_PROGRAMS[name]
    (tmp_path / "x.pt2").write_bytes(edited(files / "m.pt2", change))
    if said is None:  # what would run is never looked at
        assert pellucid.load("x.pt2")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    else:
        with pytest.raises(InputError, match=r"^'x\.pt2' .*") as caught:
            pellucid.load("x.pt2")
        assert said in str(caught.value) and len(str(caught.value)) < 600
    assert os.listdir() == ["x.pt2"]


def test_torch_would_have_run_it(files, tmp_path, monkeypatch):
    """Why its loader is not used: the traps above are real."""
    monkeypatch.chdir(tmp_path)
    for name in ("a pickled example", "a pickled weight"):
        (tmp_path / "x.pt2").write_bytes(edited(files / "m.pt2", HOSTILE_PROGRAMS[name][0]))
        with pytest.raises(Exception):  # noqa: B017, PT011
            torch.export.load("x.pt2")
        assert (tmp_path / "trapped").is_dir(), name
        (tmp_path / "trapped").rmdir()


def test_damaged_archives(files, tmp_path):
    whole = (files / "m.pt2").read_bytes()
    records, at = records_of(whole), whole.index(b'"as_tensor"')
    cases = {
        "truncated": whole[:-40],
        "half": whole[: len(whole) // 2],
        "compressed": zipped(records, zipfile.ZIP_DEFLATED),
        "a bomb": zipped({**records, "m/data/weights/weight_0": bytes(10**7)}, zipfile.ZIP_DEFLATED),
        "a flipped byte": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        "two programs": zipped({**records, f"{next(iter(records)).partition('/')[0]}/models/b.json": b"{}"}),
        "two folders": zipped({**records, "other/file": b""}),
    }
    for name, content in cases.items():
        (tmp_path / "x.pt2").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.pt2'") as caught:
            pellucid.load(tmp_path / "x.pt2")
        assert len(str(caught.value)) < 600, name


def test_weights_of_an_older_torch_are_refused(files, tmp_path):
    records = records_of((files / "m.pt2").read_bytes())
    folder = next(iter(records)).partition("/")[0]
    model = next(name for name in records if "/models/" in name).rpartition("/")[2].removesuffix(".json")
    (tmp_path / "x.pt2").write_bytes(zipped({**records, f"{folder}/data/weights/{model}.pt": pickle.dumps(Trap())}))
    with pytest.raises(InputError, match="written by an older torch, as a pickle"):
        pellucid.load(tmp_path / "x.pt2")


@pytest.mark.parametrize(
    "target",
    ["torch.load", "torch.hub.load", "math.floor", "_operator.attrgetter", "_operator.methodcaller", "eval",
     "torch.ops", "torch.ops.aten", "torch.ops.aten.relu", "torch.ops.aten.set_.source_Storage",
     "torch.ops.prim.device.default", "torch.ops.aten.save.default", "torch.ops.aten.relu.default.__globals__",
     "torch.sym_max.__globals__", ""],
)  # fmt: skip
def test_targets_outside_the_list_are_refused(target):
    with pytest.raises(InputError, match="not among the operators"):
        operator_named(target, "'x'")


def test_every_operator_in_the_list_takes_tensors_and_numbers_only():
    """No names of files, no storages, no objects; text only where it chooses a way of rounding, padding or the like."""
    found = 0
    for name in operators._ATEN:
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            try:
                call = operator_named(f"torch.ops.aten.{name}.{overload}", "'x'")
            except InputError:
                continue
            found += 1
            for argument in call._schema.arguments:
                kind = str(argument.type)
                assert "Storage" not in kind and "__torch__" not in kind and "file" not in argument.name, call
                assert "str" not in kind or argument.name in operators._TEXT, call
    assert found > 400
    with pytest.raises(InputError):
        operator_named("torch.ops.aten.slice.str", "'x'")


def onnx_traps(folder):
    from onnx import TensorProto, helper

    def outside(location: str, length: int = 64):
        tensor = helper.make_tensor("w", 1, [4, 4], [0.0] * 16)
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        return onnx_model([node("Flatten", "x", "f"), node("Gemm", "f w", "y")], ["n", 1, 2, 2], [tensor])

    (folder / "link").symlink_to("/etc/passwd")
    (folder / "short").write_bytes(bytes(10))
    flat = node("Flatten", "x", "y")
    big = helper.make_tensor("s", 7, [2], [2**20, 2**30])
    fill = helper.make_tensor("v", 1, [1], [0.0])
    in_attribute = node("Constant", "", "w", value=outside("../w").graph.initializer[0])
    yield "a path up", outside("../secret"), "outside of its folder"
    yield "an absolute path", outside("/etc/passwd"), "outside of its folder"
    yield "a folder", outside(".."), "outside of its folder"
    yield "a link", outside("link"), "no file in its folder"
    yield "nothing there", outside("none"), "no file in its folder"
    yield "beyond its end", outside("short"), "beyond the end"
    yield "a length that is none", outside("short", -5), "beyond the end"
    yield "a path in a node", onnx_model([in_attribute, flat], ["n", 1, 2, 2]), "outside of its folder"
    yield (
        "a custom operator",
        onnx_model([node("Op", "x", "y", domain="mine")], ["n", 1, 2, 2]),
        "the operator 'mine:Op'",
    )
    yield "an unknown operator", onnx_model([node("Nothing", "x", "y")], ["n", 1, 2, 2]), "cannot be run by onnxruntime"
    yield "giant images", onnx_model([flat], [1, 3, 2**40, 2**40]), "more than is reasonable"
    yield "large images", onnx_model([flat], [1, 1, 20000, 2]), "more than is reasonable"
    yield (
        "a giant tensor",
        onnx_model([node("ConstantOfShape", "s", "y", value=fill)], ["n", 1, 2, 2], [big]),
        "reasonable",
    )
    yield (
        "a giant weight",
        onnx_model([flat], ["n", 1, 2, 2], [TensorProto(name="w", data_type=1, dims=[2**30, 2**30])]),
        "an absurd size",
    )
    yield "bytes", onnx_model([flat], ["n", 1, 2, 2], kind=2), "floating point"
    yield "a table", onnx_model([flat], ["n", 4]), "with 2 axes"
    two = [flat, node("Flatten", "x", "z")]
    yield "two tables", onnx_model(two, ["n", 1, 2, 2], outputs=("y", "z")), "returns y or z"
    yield "no graph", onnx_model([], ["n", 1, 2, 2], outputs=()), "holds no graph"


@needs_onnx
def test_a_hostile_onnx_file_is_refused_in_one_sentence(files, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name, model, said in onnx_traps(tmp_path):
        (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
        try:
            pellucid.load("x.onnx")
        except InputError as error:
            caught = error
        else:
            pytest.fail(f"{name} is not refused")
        assert str(caught).startswith("'x.onnx' ") and said in str(caught) and len(str(caught)) < 600, (
            name,
            str(caught),
        )
    whole = (files / "m.onnx").read_bytes()
    for content in (
        whole[:-40],
        whole[: len(whole) // 2],
        whole[:9],
        b"\x08",
        os.urandom(200),
        b"\x08\x08\x12\x07pytorch\x1a",
    ):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(InputError, match=r"^'x\.onnx' "):
            pellucid.load("x.onnx")
    assert capfd.readouterr() == ("", "")


@needs_onnx
def test_a_batch_that_a_graph_does_not_take_is_answered(tmp_path):
    """It says that it takes any number, but reshapes to one."""
    from onnx import helper

    shape = helper.make_tensor("s", 7, [2], [1, 4])
    (tmp_path / "x.onnx").write_bytes(
        onnx_model([node("Reshape", "x s", "y")], ["n", 1, 2, 2], [shape]).SerializeToString()
    )
    box = pellucid.load(tmp_path / "x.onnx")
    assert box(torch.ones(1, 1, 2, 2)).tolist() == [[1, 1, 1, 1]]
    with pytest.raises(InputError, match="fails on a batch of 3 images .*--batch-size 1"):
        box(torch.ones(3, 1, 2, 2))


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_a_missing_library_is_named(name, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one, *rest: None if one == name else find(one, *rest))
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08\x12\x07pytorch\x1a")
    if missing and name != missing[0]:
        pytest.skip(f"{missing[0]} is missing and named first")
    with pytest.raises(InputError, match=rf"Opening '.*m.onnx' needs {name}, which is not installed: run pip"):
        pellucid.load(tmp_path / "m.onnx")


def test_torchscript_is_refused_since_it_can_write_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            made = torch.from_file("trapped", True, 4)
            return x + made.fill_(1).sum()

    torch.jit.script(Writes()).save("m.pt")
    with pytest.raises(InputError, match="is a TorchScript program, .* since it can write files"):
        pellucid.load("m.pt")
    assert os.listdir() == ["m.pt"]
    torch.jit.load("m.pt")(torch.zeros(1))
    assert (tmp_path / "trapped").stat().st_size == 16, "it can indeed"


def test_values_are_let_go_as_soon_as_nothing_reads_them(files):
    box = pellucid.load(files / "m.pt2")
    assert isinstance(box, pt2.ProgramBox)
    alive, most = set(), 0
    for step in box._steps:
        alive |= {one.name for one in step.results}
        most = max(most, len(alive))
        alive -= set(step.done)
    assert most <= 4 and alive == {box._logits}
