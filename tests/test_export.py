"""Networks written as ONNX and as `torch.export` programs: what the files hold, and that they compute the same."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import logging
import os
import warnings
import zipfile

import pytest
import torch
from torch import Tensor, nn

import pellucid
from pellucid import cli
from pellucid.core import vision
from pellucid.core.errors import InputError
from pellucid.core.files.ours import exported
from pellucid.core.network.agreement import distance
from pellucid.core.network.blackbox.about import About
from pellucid.core.network.export import export as module
from pellucid.core.network.export.quiet import silenced

missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"the extra export is not installed: {missing}")
pytestmark = pytest.mark.export
FORMATS = [pytest.param("onnx", marks=needs_onnx), "pt2"]
NORM = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
CLASSES = ("ant", "bee", "cow", "dog")


def network(layers: str = "plain") -> nn.Module:
    """A small network whose statistics are not those it begins with."""
    torch.manual_seed(0)
    model = pellucid.build("resnet8", 4, 3, 12, layers)
    model.train()
    for _ in range(3):
        model(torch.randn(8, 3, 12, 12) * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1))
    return pellucid.declare(model.eval(), classes=CLASSES, normalization=NORM)


def by_torch(path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path).module()


def logits_of(path, images: Tensor) -> Tensor:
    """What a file computes, by the library that is made for it and by nothing of ours."""
    if path.suffix == ".pt2":
        return by_torch(path)(images)
    import onnxruntime

    (found,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        ["logits"], {"images": images.numpy()}
    )
    return torch.from_numpy(found)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(layers, format) -> a network, its state before it was exported, and what was written; each made once."""

    @functools.cache
    def write(layers: str, to: str):
        model = network(layers)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        return model, before, pellucid.export(model, tmp_path_factory.mktemp("written") / f"m.{to}")

    return write


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    "layers", ["plain", "deconv", "csc", pytest.param("csc-all", marks=pytest.mark.slow), "subnet"]
)
def test_a_file_computes_what_the_network_does_in_batches_of_any_size(layers, to, written):
    model, before, made = written(layers, to)
    path = made.path
    assert made.to == to and made.difference < 1e-5 and made.same == made.n == 16 and made.batches == (1, 2, 3, 16)
    for count in (1, 5, 40):
        images = torch.randn(count, 3, 12, 12)
        with torch.no_grad():
            assert distance([model(images)], [logits_of(path, images)]) < 1e-5
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.training


@needs_onnx
@pytest.mark.parametrize("layers", ["plain", "deconv", "subnet"])
def test_a_folded_network_holds_ordinary_operators_only(layers, written):
    """Whitening, masks and batch norm are gone: convolutions, activations, sums, pooling and the head remain."""
    import onnx

    _, _, made = written(layers, "onnx")
    graph = onnx.load(made.path).graph
    kinds = {node.op_type for node in graph.node}
    assert kinds <= {
        "Conv",
        "Relu",
        "Add",
        "Pad",
        "Slice",
        "ReduceMean",
        "GlobalAveragePool",
        "Reshape",
        "Flatten",
        "Gemm",
    }
    assert {node.domain for node in graph.node} == {""}
    assert made.operators == {kind: sum(node.op_type == kind for node in graph.node) for kind in kinds}
    assert made.operators["Conv"] == 7 and made.operators["Gemm"] == 1 and made.changes


def test_a_folded_program_holds_convolutions_only(tmp_path, written):
    _, _, made = written("deconv", "pt2")
    assert made.operators["aten.conv2d"] == 7 and made.operators["aten.linear"] == 1
    assert set(made.operators) <= {
        "aten.conv2d", "aten.relu", "aten.add", "aten.slice", "aten.pad", "aten.adaptive_avg_pool2d", "aten.flatten",
        "aten.linear",
    }  # fmt: skip
    unfolded = pellucid.export(network(), tmp_path / "m.pt2", fold=False)
    assert "aten.batch_norm" in unfolded.operators and not unfolded.about.folded and unfolded.changes is None


@needs_onnx
def test_an_onnx_file_says_what_it_takes(tmp_path):
    import onnx

    made = pellucid.export(network(), tmp_path / "m.onnx", opset=19)
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 19)]
    images, logits = model.graph.input[0], model.graph.output[0]
    assert [size.dim_param or size.dim_value for size in images.type.tensor_type.shape.dim] == ["batch", 3, 12, 12]
    assert [size.dim_param or size.dim_value for size in logits.type.tensor_type.shape.dim] == ["batch", 4]
    assert model.producer_name == "pellucid" and "(batch, 3, 12, 12)" in model.doc_string
    (entry,) = model.metadata_props
    table = json.loads(entry.value)
    wanted = {"in_channels": 3, "image_size": [12, 12], "num_classes": 4, "classes": list(CLASSES), "batch": None}
    assert entry.key == "pellucid" and {key: table[key] for key in wanted} == wanted
    assert table["normalization"] == NORM and table["opset"] == 19 and table["folded"] is True
    assert About.parse(entry.value, "m") == made.about


def test_a_program_says_what_it_takes_and_holds_no_pickle_and_no_path(written):
    _, _, made = written("plain", "pt2")
    with zipfile.ZipFile(made.path) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert About.parse(records["extra/pellucid.json"], "m") == made.about
    assert made.about.normalization.to_json() == NORM and made.about.opset is None
    assert records["data/sample_inputs/model.pt"] == b""
    assert not [name for name, content in records.items() if content.startswith((b"PK", b"\x80"))]
    assert not [name for name, content in records.items() if os.getcwd().encode() in content or b".py" in content]


@pytest.mark.parametrize("to", FORMATS)
def test_a_fixed_batch(to, tmp_path):
    path, model = tmp_path / f"m.{to}", network()
    made = pellucid.export(model, path, fixed_batch=4, images=torch.randn(3, 3, 12, 12))
    assert made.about.batch == 4 and made.batches == (4,) and made.n == made.same == 4
    images = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        assert distance([model(images)], [logits_of(path, images)]) < 1e-5
    with pytest.raises(Exception, match=r"[Bb]atch|[Gg]uard|dimension|shape|index"):
        logits_of(path, images[:3])


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_that_computes_something_else_is_not_written(to, tmp_path, monkeypatch):
    path = tmp_path / f"m.{to}"
    path.write_bytes(b"old")
    real = getattr(module, f"run_{to}")
    # Wrong for three images and more, as a batch that was taken for a fixed one.
    monkeypatch.setattr(module, f"run_{to}", lambda content: lambda x: real(content)(x) + (len(x) == 3) * 1e-2)
    with pytest.raises(InputError, match="differ by .* of the largest, more than tolerance=0.0001, so nothing was"):
        pellucid.export(network(), path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    if to == "pt2":
        assert pellucid.export(network(), path, tolerance=1).difference > 1e-4


def test_weights_that_were_changed_on_the_way_are_noticed(tmp_path, monkeypatch):
    """A whole wrong network, not a wrong comparison: a fold that loses a bias."""
    real = module.folded_copy

    def lossy(model, example):
        folded = real(model, example)
        with torch.no_grad():
            folded.fc.bias.add_(1)
        return folded

    monkeypatch.setattr(module, "folded_copy", lossy)
    with pytest.raises(InputError, match="nothing was written"):
        pellucid.export(network(), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_no_numbers_are_refused(tmp_path):
    model = network()
    with torch.no_grad():
        model.fc.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="returns NaN or infinity"):
        pellucid.export(model, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


class Branches(nn.Module):
    """Takes another way for more than two images, as no exported file can."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if len(x) > 2 else x.amax((2, 3))


class Decides(nn.Module):
    """Looks at its numbers to choose its way."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Branches(), "cannot export this Branches for any number of images .*--fixed-batch 1"),
        (Decides(), "cannot export this Decides .*keep it as a checkpoint"),
        (nn.Flatten(0), r"returns \[432\] for 1 images: it must return logits"),
        (nn.Conv2d(1, 2, 3), r"cannot take images \[1, 3, 12, 12\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).bfloat16(), "bfloat16"),
        (nn.Linear(2, 2, device="meta"), "no values"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_exported_is_refused_in_a_sentence(model, said, tmp_path):
    with pytest.raises(InputError, match=said):
        pellucid.export(model, tmp_path / "m.pt2", images=torch.randn(1, 3, 12, 12))
    assert not list(tmp_path.iterdir())


def test_a_scripted_module_is_refused(tmp_path):
    scripted = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval())
    with pytest.raises(InputError, match="A TorchScript module cannot be exported"):
        pellucid.export(scripted, tmp_path / "m.pt2", images=torch.randn(1, 3, 2, 2))


def test_any_module_is_exported_with_images_of_its_own(tmp_path):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)).eval()
    with pytest.raises(InputError, match="does not record the size of its images"):
        pellucid.export(model, tmp_path / "m.pt2")
    made = pellucid.export(model, tmp_path / "m", "pt2", images=torch.randn(2, 2, 6, 6))
    assert made.batches == (1, 2) and made.about == About(2, (6, 6), 5, folded=True)
    with pytest.raises(InputError, match="does not say in which format"):
        pellucid.export(model, tmp_path / "m", images=torch.randn(2, 2, 6, 6))
    double = made.path.with_suffix(".pt2")
    images = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    assert pellucid.export(model.double(), double, images=images).difference < 1e-12
    assert by_torch(double)(images).dtype == torch.float64


def test_a_network_in_training_mode_is_exported_as_it_evaluates(tmp_path):
    model = network().train()
    pellucid.export(model, tmp_path / "m.pt2")
    assert all(part.training for part in model.modules())
    images = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        assert distance([model.eval()(images)], [by_torch(tmp_path / "m.pt2")(images)]) < 1e-5


@needs_onnx
def test_an_operation_that_onnx_has_not_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot be written as ONNX of opset 18 \(.*kthvalue"):
        pellucid.export(network("subnet"), tmp_path / "m.onnx", fold=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_before_anything_is_computed(name, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one, *rest: None if one == name else find(one, *rest))
    said = rf"Exporting to ONNX needs {name}, which is not installed: run pip install torch==.* \"pellucid\[export\]\""
    if missing and name != missing[0]:
        pytest.skip(f"{missing[0]} is missing and named first")
    with pytest.raises(InputError, match=said):
        pellucid.export(nn.Linear(2, 2), tmp_path / "m.onnx")


@pytest.mark.slow
@needs_onnx
@pytest.mark.vision
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_network_of_torchvision(tmp_path):
    model = vision.torchvision().models.get_model("resnet18", weights=None, num_classes=5).eval()
    images = torch.randn(3, 3, 64, 64)
    for to in ("onnx", "pt2"):
        path = tmp_path / f"m.{to}"
        made = pellucid.export(model, path, images=images)
        assert made.difference < 1e-5
        with torch.no_grad():
            assert distance([model(images)], [logits_of(path, images)]) < 1e-5
            assert distance([model(images)], [pellucid.load(path)(images)]) < 1e-5


# --- the command ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network of digits in a file."""
    torch.manual_seed(0)
    model = pellucid.build("resnet8", 10, 1, 8, "deconv").eval()
    known = {"classes": tuple(map(str, range(10))), "normalization": {"mean": [0.3], "std": [0.4]}}
    path = tmp_path_factory.mktemp("saved") / "m.safetensors"
    pellucid.save(pellucid.declare(model, **known), path)
    return path


def test_the_command_states_what_it_wrote_and_how_it_was_compared(saved, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["export", str(saved), "--out", "m.pt2", "--data", "digits", "--max-images", "10"]) == 0
    out, err = capfd.readouterr()
    assert err == "" and "FastDeconv2d" in out and "any number (dynamic)" in out and "1 x 8 x 8" in out
    assert "On 10 images of digits, in batches of 1, 2, 3 and 10, its outputs differ by at most" in out
    assert "10 of 10 get the same class" in out and "Next: pellucid evaluate m.pt2 --data digits" in out
    assert cli.main(["export", str(saved), "--out", "n.pt2", "--fixed-batch", "2"]) == 0
    out, err = capfd.readouterr()
    assert err == "" and "16 images of random pixels (no --data was named)" in out and "2 (fixed)" in out


@needs_onnx
def test_the_command_prints_one_object_and_nothing_else(saved, tmp_path, monkeypatch, capfd):
    """Not what the exporter prints, logs and warns of."""
    monkeypatch.chdir(tmp_path)
    words = ["export", str(saved), "--to", "onnx", "--out", "m", "--data", "digits", "--max-images", "5", "--json"]
    assert cli.main(words) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert err == "" and found["to"] == "onnx" and found["n"] == 5 and found["batches"] == [1, 2, 3, 5]
    assert found["opset"] == 18 and found["difference"] < 1e-5 and found["operators"]["Conv"] == 7
    assert len(found["changes"]) == 8 and found["classes"] == list("0123456789")
    assert cli.main(["export", str(saved), "--out", "m.pt2", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_an_architecture_is_exported_by_name(tmp_path, capfd):
    words = ["export", "resnet8", "--out", str(tmp_path / "m.pt2"), "--num-classes", "3", "--in-channels", "2"]
    more = ["--image-size", "16", "--mean", "0.5", "0.5", "--std", "0.2", "0.2", "--json"]
    assert cli.main([*words, *more]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["image_size"] == [16, 16] and found["in_channels"] == 2 and found["num_classes"] == 3
    assert found["normalization"] == {"mean": [0.5, 0.5], "std": [0.2, 0.2]} and found["data"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "m.txt"], "end it in .onnx or .pt2"),
        (["--out", "m.pt2", "--opset", "7"], "--opset"),
        (["--out", "m.pt2", "--data", "digits", "--num-classes", "3"], "which says both"),
        (["--out", "m.pt2", "--data", "cifar10:nowhere"], "nowhere"),
    ],
)
def test_bad_input_writes_nothing(words, said, saved, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(saved), *words]) == 2
    assert said in capfd.readouterr().err and not list(tmp_path.iterdir())


def test_files_of_ours_are_known_by_their_content(saved, tmp_path, written):
    assert exported(written("plain", "pt2")[2].path)
    if not missing:
        assert exported(written("plain", "onnx")[2].path)
    stream = io.BytesIO()
    torch.export.save(torch.export.export(nn.ReLU(), (torch.ones(2),)), stream)
    (tmp_path / "theirs.pt2").write_bytes(stream.getvalue())
    (tmp_path / "text").write_text("text")
    assert not exported(tmp_path / "theirs.pt2") and not exported(tmp_path / "text") and not exported(saved)
    (tmp_path / "half.pt2").write_bytes(stream.getvalue()[:500])
    assert not exported(tmp_path / "half.pt2")


def test_silence_ends_with_the_block(capfd):
    log = logging.getLogger("pellucid.test")
    before = logging.root.manager.disable

    def loud() -> None:
        with silenced():
            print("inner")
            log.critical("inner")
            warnings.warn("inner")
            raise KeyError

    with pytest.raises(KeyError):
        loud()
    print("outer")
    assert logging.root.manager.disable == before and capfd.readouterr() == ("outer\n", "")
