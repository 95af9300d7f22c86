"""Networks of a user's own code, named FILE.py:FACTORY or PACKAGE.MODULE:FACTORY, and where they may not be named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import pellucid
from pellucid.cli import main
from pellucid.core.errors import InputError
from pellucid.core.network import models, owncode
from pellucid.core.references import is_code, parts_of, refuse_code
from pellucid.core.source import open_network
from pellucid.core.train.run import Run

NETS = """
from pathlib import Path
from torch import nn
from widths import twice

Path(__file__).with_name("ran").touch()


class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=1, width=4):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, twice(width), 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(twice(width))
        self.head = nn.Linear(twice(width), num_classes)

    def forward(self, images):
        return self.head(self.norm(self.stem(images)).relu().mean((2, 3)))


def sized(n_classes, in_chans, img_size, width=2):
    net = Net(n_classes, in_chans, width)
    net.side = img_size
    return net


def fixed():
    return Net(3, 1)


class Both(Net):
    def forward(self, images):
        return {"logits": super().forward(images)}


def many(**kwargs):
    return Net(**kwargs)


def failing(width):
    raise KeyError(width)


number = 3


def not_a_network():
    return number
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A working folder with nets.py, which imports its neighbour widths.py and leaves a trace when it runs."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "widths.py").write_text("def twice(n):\n    return 2 * n\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "small.py").write_text(NETS.replace("from widths import twice", "twice = lambda n: n"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget()


def forget():
    """As if no code of a user's own had been imported yet."""
    for name in [*sys.modules]:
        if name.startswith(("_pellucid_own_", "mine", "nets", "widths")):
            del sys.modules[name]


def ran(folder):
    """Whether nets.py has run since the last call."""
    trace = folder / "ran"
    there = trace.exists()
    trace.unlink(missing_ok=True)
    return there


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("nets.py:Net", ("nets.py", "", "Net")),
        ("../a b/nets.py:make.small", ("../a b/nets.py", "", "make.small")),
        ("package.nets:Net", ("", "package.nets", "Net")),
        ("a.b.c:make.net", ("", "a.b.c", "make.net")),
    ],
)
def test_references_name_a_file_or_a_module_and_what_is_in_it(name, parts):
    assert is_code(name) and parts_of(name) == parts


@pytest.mark.parametrize(
    "name",
    ["resnet20", "torchvision:resnet18", "timm:resnet18", "cifar10:data", "folder:a.b/c", "nets.py", "nets.py:",
     "a.b:1x", "resnet20=nets.py", "a..b:c", "nets.py:Net=x.pth", "", 3, None],
)  # fmt: skip
def test_other_names_are_no_references(name):
    assert not is_code(name)


def test_the_factory_is_given_what_it_has_parameters_for(nets):
    model = models.build("nets.py:sized", num_classes=7, in_channels=2, image_size=12)
    assert (model.head.out_features, model.stem.in_channels, model.side) == (7, 2, 12)
    wide = models.build("nets.py:Net", num_classes=5, image_size=(8, 9), args={"width": 6})
    assert wide.stem.out_channels == 12 and wide.head.out_features == 5
    known = pellucid.facts(wide).description
    assert known["args"] == {"width": 6} and known["code"] == owncode.fingerprint("nets.py:Net")
    assert models.build("nets.py:Net", 5, args={"num_classes": 6}).head.out_features == 6
    assert models.build("nets.py:many", 7, 1).head.out_features == 10  # nothing is guessed about **kwargs
    # What it returns counts, not what was asked for.
    assert pellucid.facts(models.build("nets.py:fixed", 10, 1)).description["num_classes"] == 3


def test_a_module_in_the_working_folder_is_found(nets):
    assert models.build("mine.small:Net", 4, 1).stem.out_channels == 4


@pytest.mark.parametrize(
    ("name", "args", "sentence"),
    [
        ("none.py:Net", {}, "There is no file 'none.py'"),
        ("none.nets:Net", {}, "There is no module 'none'"),
        ("mine.none:Net", {}, "There is no module 'mine.none'"),
        ("nets.py:Nett", {}, "'nets.py' has no 'Nett': did you mean 'Net'?"),
        ("nets.py:number", {}, "is not a function"),
        ("nets.py:not_a_network", {}, "returns something of type int"),
        ("nets.py:Net", {"widht": 3}, "has no argument 'widht': did you mean 'width'?"),
        ("nets.py:failing", {}, "needs width: give --model-args width=VALUE"),
        ("nets.py:failing", {"width": 3}, "ends in KeyError, in line 40 of 'nets.py': 3."),
        ("nets.py:Net", {"width": "x"}, "ends in TypeError"),
        ("nets.py:Both", {}, "pellucid.wrap"),
        ("broken.py:Net", {}, "ends in SyntaxError, in line 2 of 'broken.py'"),
        ("resnet20", {"width": 3}, "resnet20 takes no arguments"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(nets, name, args, sentence):
    Path("broken.py").write_text("x = 1\ndef Net(:\n")
    with pytest.raises(InputError) as error:
        models.build(name, args=args, in_channels=1)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_run_with_own_code_is_trained_opened_continued_and_converted(nets, capsys):
    words = ["--model", "nets.py:Net"]
    begin = ["train", *words, "--model-args", "width=6", "--epochs", "1", "--limit-batches", "2", "--out", "run"]
    assert main(begin) == 0
    assert "pellucid open run --model nets.py:Net" in capsys.readouterr().out
    assert Run("run").settings.model == "nets.py:Net" and Run("run").settings.model_args == {"width": 6}
    assert json.loads(Path("run/environment.json").read_text())["code"] == owncode.fingerprint("nets.py:Net")
    assert main(["evaluate", "run", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    images = torch.rand(3, 1, 8, 8)
    own = pellucid.load("run", "nets.py:Net")
    assert own.stem.out_channels == 12  # by the arguments in the file
    assert main(["convert", "run", *words, "--layers", "deconv", "--data", "digits", "--out", "w.safetensors"]) == 0
    assert "--model nets.py:Net" in capsys.readouterr().out
    white = pellucid.load("w.safetensors", "nets.py:Net")
    torch.testing.assert_close(white(images), own(images), rtol=1e-3, atol=1e-3)
    assert main(["fold", "w.safetensors", *words, "--out", "f.safetensors", "--quiet"]) == 0
    torch.testing.assert_close(pellucid.load("f.safetensors", "nets.py:Net")(images), white(images))
    assert main(["evaluate", "nets.py:Net=f.safetensors", "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == found["n"]
    assert main(["decompose", "run", *words, "--fit", "head", "--out", "d", "--quiet"]) == 0
    assert main(["evaluate", "run", *words, "--decomposed", "d/decomposed.safetensors", "--quiet"]) == 0


def test_code_that_has_changed_is_said_to_have(nets, capsys):
    main(["train", "--model", "nets.py:Net", "--epochs", "1", "--limit-batches", "1", "--out", "run", "--quiet"])
    assert pellucid.facts(pellucid.load("run", "nets.py:Net")).remarks == ()
    main(["train", "--model", "nets.py:Net", "--epochs", "1", "--limit-batches", "1", "--out", "run", "--quiet"])
    assert "has changed" not in capsys.readouterr().err
    with Path("nets.py").open("a") as file:
        file.write("# another line\n")
    (remark,) = pellucid.facts(pellucid.load("run", "nets.py:Net")).remarks
    assert remark == "The code of nets.py:Net has changed since this network was saved."
    main(["train", "--resume", "run", "--model", "nets.py:Net", "--quiet"])
    assert "The code of nets.py:Net has changed since 'run' was begun." in capsys.readouterr().err


def test_a_foreign_checkpoint_of_own_code_says_its_classes_and_channels(nets):
    theirs = models.build("nets.py:Net", 7, 2, args={"width": 3}).eval()
    torch.save({"state_dict": theirs.state_dict()}, "foreign.pth")
    ours = pellucid.load("foreign.pth", "nets.py:Net", model_args={"width": 3})
    images = torch.rand(2, 2, 8, 8)
    assert torch.equal(ours(images), theirs(images))
    description = pellucid.facts(ours).description
    assert (description["num_classes"], description["in_channels"], description["args"]) == (7, 2, {"width": 3})
    with pytest.raises(InputError, match="does not fit nets.py:Net"):
        pellucid.load("foreign.pth", "nets.py:Net")
    pellucid.save(ours, "own.safetensors")
    assert torch.equal(pellucid.load("own.safetensors", "nets.py:Net")(images), theirs(images))


def test_a_factory_may_bring_weights_of_its_own(nets):
    torch.save(models.build("nets.py:Net", 4, 1).state_dict(), "weights.pth")
    Path("mine.py").write_text(
        "import torch\nfrom nets import Net\n\n\ndef net():\n    model = Net(4, 1)\n"
        "    model.load_state_dict(torch.load('weights.pth'))\n    return model\n"
    )
    found = open_network("mine.py:net", in_channels=1)
    assert found.title == "mine.py:net (weights as it makes them)"
    assert torch.equal(found.model.head.weight, torch.load("weights.pth")["head.weight"])


def test_training_on_other_classes_than_the_code_has_is_refused(nets, capsys):
    assert main(["train", "--model", "nets.py:fixed", "--epochs", "1"]) == 2
    assert "returns 3 logits per image, but digits has 10 classes" in capsys.readouterr().err


def test_neighbours_are_found_but_the_path_is_left_as_it_was(nets):
    before = list(sys.path)
    models.build("nets.py:Net")
    assert sys.path == before


# --- what a file says is not what a user says ---


@pytest.fixture
def strange(nets):
    """Files that name nets.py:Net: a run, a checkpoint, a file of settings, a plan."""
    main(["train", "--model", "nets.py:Net", "--epochs", "1", "--limit-batches", "1", "--out", "run", "--quiet"])
    pellucid.save(pellucid.load("run", "nets.py:Net"), "file.safetensors")
    Path("settings.yaml").write_text(yaml.safe_dump({"model": "nets.py:Net"}))
    Path("teacher.yaml").write_text(yaml.safe_dump({"objective_options": {"teacher": "nets.py:Net=file.safetensors"}}))
    plan = {"grid": {"lr": [0.1]}, "fixed": {"model": "nets.py:Net", "epochs": 1, "limit_batches": 1}}
    Path("plan.yaml").write_text(yaml.safe_dump({**plan, "score": "result.json:best.val_accuracy"}))
    forget()
    ran(nets)
    return nets


@pytest.mark.parametrize(
    "words",
    [
        "evaluate run", "open run --out page", "robust run", "decompose run", "invert run", "visualize run",
        "synthesize run --out set", "assess run set", "fold run --out f.safetensors", "pack run --out p.safetensors",
        "convert run --layers deconv --out c.safetensors", "evaluate file.safetensors --data digits",
        "evaluate resnet20 --data digits --decomposed file.safetensors", "train --resume run",
        "train --config settings.yaml", "train --config teacher.yaml --objective distillation",
        "train --init file.safetensors --model nets.py", "search train --grid plan.yaml",
        "robust resnet20 --data digits --baseline run", "invert resnet20 --verifier run",
        "evaluate resnet20=file.safetensors --data digits",
    ],
)  # fmt: skip
def test_what_a_file_names_is_not_run(strange, words, capsys):
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert not ran(strange) and error.count("\n") == 1 and "Traceback" not in error


def test_what_the_user_names_as_well_is_run(strange):
    short = ["--epochs", "1", "--limit-batches", "1", "--quiet"]
    assert main(["train", "--config", "settings.yaml", "--model", "nets.py:Net", "--out", "a", *short]) == 0
    assert ran(strange)


def test_python_does_not_run_what_a_file_names_either(strange):
    for path in ("run", "file.safetensors"):
        with pytest.raises(InputError, match="only where you name it: give --model 'nets.py:Net'"):
            pellucid.load(path)
    with pytest.raises(InputError, match="runs only where it is named"):
        models.rebuild({"model": "nets.py:Net"})
    assert not ran(strange)


def test_references_are_found_however_deep_they_are():
    for value in ("a.py:b", ["x", {"y": "a.py:b=w.pth"}], {"a.b:c": 1}, ("a.b:c",)):
        with pytest.raises(InputError, match="names code to run"):
            refuse_code(value, "'f.yaml'")
    refuse_code({"model": "resnet20", "data": "cifar10:x", "lr": [0.1], "x": None}, "'f.yaml'")
    refuse_code({"model": "a.py:b"}, "'f.yaml'", ["--model", "a.py:b"])


@pytest.mark.slow
def test_a_search_runs_the_code_that_its_user_names(strange):
    assert main(["search", "train", "--grid", "plan.yaml", "--code", "nets.py:Net", "--out", "study", "--quiet"]) == 0
    assert ran(strange)


@pytest.mark.slow
def test_own_code_teaches(nets):
    main(["train", "--model", "nets.py:Net", "--epochs", "1", "--limit-batches", "1", "--out", "run", "--quiet"])
    words = ["--model", "nets.py:Net"]
    assert main(["synthesize", "run", *words, "--per-class", "3", "--steps", "2", "--out", "set", "--quiet"]) == 0
    end = ["--data", "digits", "--epochs", "1", "--no-controls", "--quiet"]
    assert main(["distill", "run", "resnet20", "set", *words, *end, "--out", "a"]) == 0
    assert main(["distill", "nets.py:Net=run", "nets.py:Net", "set", *end, "--out", "b"]) == 0
    assert isinstance(pellucid.load("b/student", "nets.py:Net"), nn.Module)
