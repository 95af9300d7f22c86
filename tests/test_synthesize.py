"""Folders of synthesised images: the same bits however often they are interrupted and whoever makes them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shlex
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import nn

import pellucid
from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError
from pellucid.core.facts import declare
from pellucid.distillation import folder as folders
from pellucid.distillation import synthesize as module
from pellucid.distillation.features import logits_of
from pellucid.distillation.synthesize import synthesize
from pellucid.inversion.presets import recipe
from processes import run, sentence, start
from state import unchanged

SMALL = {"steps": 3, "batch_size": 6, "device": "cpu", "quiet": True}


def small_network(classes: int = 4) -> nn.Module:
    """A resnet8 for 8x8 grey images whose running moments are of real images."""
    torch.manual_seed(0)
    model = pellucid.build("resnet8", classes, 1, 8)
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(20):
        model((x - 0.5) / 0.3)
    declare(model, normalization={"mean": [0.5], "std": [0.3]}, classes=tuple("abcdefghij"[:classes]))
    return model.eval()


@pytest.fixture(scope="module")
def network():
    return small_network()


def bits(path: Path) -> dict[str, str]:
    """Hashes of all files that stay."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def whole(network, tmp_path_factory):
    """A folder made in one go: 4 classes of 5 images, in batches of 6."""
    path = tmp_path_factory.mktemp("whole") / "images"
    return synthesize(network, path, 5, **SMALL)


def test_a_folder_is_class_folders_and_the_networks_logits(network, whole):
    path = whole.folder
    assert (whole.images, whole.classes) == (20, ("a", "b", "c", "d"))
    names = sorted(str(file.relative_to(path)) for file in path.glob("*/*.png"))
    assert names == sorted(f"{'abcd'[i % 4]}/{'abcd'[i % 4]}_{i:05d}_seed0.png" for i in range(20))
    assert not (path / folders.BATCHES).exists()
    images = folders.read(path)
    assert images.classes == whole.classes and len(images.split) == 20
    assert images.split.labels.bincount().tolist() == [5] * 4
    # The logits belong to the images as they are stored.
    assert torch.allclose(images.logits, logits_of(network, images.split.images), atol=1e-5)
    assert whole.agree.value == (images.logits.argmax(1) == images.split.labels).double().mean().item()
    stored = load_file(path / folders.LABELS)
    assert stored["labels"].tolist() == [i % 4 for i in range(20)]
    manifest = json.loads((path / folders.MANIFEST).read_text())
    assert manifest["real_images"] == "none"
    assert manifest["settings"]["per_class"] == 5


def test_other_tools_read_it_as_class_folders(whole):
    dataset = load_data(f"folder:{whole.folder}", val_fraction=0.2)
    assert dataset.classes == whole.classes
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 20


def test_going_on_redoes_and_loses_nothing(network, whole, tmp_path, monkeypatch):
    made = []
    original = module.invert

    def dying(model, targets, *args, indices, **options):
        made.append(indices.tolist())
        if len(made) == 3:
            raise RuntimeError("the power is gone")
        return original(model, targets, *args, indices=indices, **options)

    monkeypatch.setattr(module, "invert", dying)
    path = tmp_path / "images"
    with pytest.raises(RuntimeError, match="power"):
        synthesize(network, path, 5, **SMALL)
    assert len(list(path.glob("*/*.png"))) == 12
    next(path.glob("a/*.png")).unlink()  # as if killed while pictures of a finished batch were written
    (path / "b" / ".b_00001_seed0.png.x.tmp").write_bytes(b"part")
    synthesize(network, path, 5, **SMALL)
    assert made == [list(range(6)), list(range(6, 12)), list(range(12, 18)), list(range(12, 18)), [18, 19]]
    assert bits(path) == bits(whole.folder)
    synthesize(network, path, 5, **SMALL)
    assert len(made) == 5  # a finished folder is only read


def test_all_generators_of_a_folder_begin_with_the_first(network, tmp_path, monkeypatch):
    calls = []
    original = module.invert

    def watched(model, targets, how, *args, **options):
        made = original(model, targets, how, *args, **options)
        calls.append((how, made))
        if len(calls) == 3:
            raise RuntimeError("the power is gone")
        return made

    monkeypatch.setattr(module, "invert", watched)
    path = tmp_path / "images"
    drawn = {**SMALL, "preset": "generator", "steps": 10}
    with pytest.raises(RuntimeError, match="power"):
        synthesize(network, path, 5, **drawn)
    synthesize(network, path, 5, **drawn)
    (first, made), *further = calls
    assert first.schedule.steps == 10 and first.start.weights is None
    found = first.start.after(made.variables, 6).weights
    assert len(further) == 4 and all(how.schedule.steps == 2 for how, _ in further)  # again = 0.2
    assert all(torch.equal(how.start.weights, found) for how, _ in further)  # also of the process that went on
    whole = synthesize(network, tmp_path / "whole", 5, **drawn)
    assert bits(path) == bits(whole.folder)
    calls.clear()
    anew = replace(first, start=replace(first.start, again=1.0))
    synthesize(network, tmp_path / "anew", 3, preset=anew, batch_size=6, quiet=True)
    assert all(how.start.weights is None and how.schedule.steps == 10 for how, _ in calls)
    given = replace(first, start=replace(first.start, weights=found))
    with pytest.raises(InputError, match="was begun with recipe .* not 'weights="):
        synthesize(network, path, 5, preset=given, batch_size=6, quiet=True)


def test_other_settings_and_other_folders_are_refused(network, whole, tmp_path):
    for changed in ({"seed": 1}, {"steps": 4}, {"batch_size": 5}, {"classes": ["a"]}, {"weight": 1.0}):
        with pytest.raises(InputError, match="was begun with"):
            synthesize(network, whole.folder, 5, **{**SMALL, **changed})
    with pytest.raises(InputError, match="recipe 'steps=3', not 'steps=4'"):
        synthesize(network, whole.folder, 5, **{**SMALL, "steps": 4})
    with pytest.raises(InputError, match="matching=Matching weight=10.0 .* not 'matching=None'"):
        synthesize(network, whole.folder, 5, **SMALL, preset=replace(recipe("gaussian", (1, 8, 8)), matching=None))
    with pytest.raises(InputError, match="per class 5, not 6"):
        synthesize(network, whole.folder, 6, **SMALL)
    other = small_network()
    with torch.no_grad():
        other.fc.bias += 1
    with pytest.raises(InputError, match="begun with network"):
        synthesize(other, whole.folder, 5, **SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a synthesis"):
        synthesize(network, tmp_path / "mine", 5, **SMALL)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="is a file"):
        synthesize(network, tmp_path / "mine" / "thesis.txt", 5, **SMALL)


def test_a_folder_in_use_is_refused(network, tmp_path):
    (tmp_path / "images").mkdir()
    with FileLock(tmp_path / "images" / ".lock"), pytest.raises(InputError, match="Another process is synthesising"):
        synthesize(network, tmp_path / "images", 1, **SMALL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"per_class": 0}, "at least 1"),
        ({"classes": ["z"]}, "no class 'z'"),
        ({"preset": "nothing"}, "no preset"),
        ({"shape": (2, 8, 8)}, "2 channels cannot be stored"),
    ],
)
def test_bad_arguments_leave_no_folder(network, tmp_path, change, words):
    arguments = {"per_class": 2, **SMALL, **change}
    with pytest.raises(InputError, match=words):
        synthesize(network, tmp_path / "images", **arguments)
    assert not (tmp_path / "images").exists()


def test_a_network_without_statistics_or_with_odd_class_names_is_refused(tmp_path):
    plain = pellucid.build("conv2", 4, 1, 8).eval()
    declare(plain, normalization={"mean": [0.5], "std": [0.3]})
    with pytest.raises(InputError, match="holds no statistics"):
        synthesize(plain, tmp_path / "images", 1, **SMALL)
    assert not (tmp_path / "images").exists()
    odd = small_network(2)
    declare(odd, classes=("cats/dogs", "b"))
    with pytest.raises(InputError, match="'cats/dogs' cannot be the name of a folder"):
        synthesize(odd, tmp_path / "images", 1, **SMALL)


def test_classes_without_names_keep_their_order():
    assert folders.class_names(nn.Linear(1, 1), 10) == tuple("0123456789")
    assert folders.class_names(nn.Linear(1, 1), 12)[:3] == ("00", "01", "02")


def test_some_classes_and_another_seed(network, whole, tmp_path):
    some = synthesize(network, tmp_path / "images", 2, classes=["d", "b"], **{**SMALL, "seed": 3})
    names = sorted(file.name for file in some.folder.glob("*/*.png"))
    assert names == ["b_00000_seed3.png", "b_00002_seed3.png", "d_00001_seed3.png", "d_00003_seed3.png"]
    images = folders.read(some.folder)
    assert images.split.labels.tolist() == [1, 1, 3, 3]  # labels are the network's
    assert (images.logits is None) is False


def test_it_leaves_everything_as_it_was_and_networks_may_be_named(network, whole, tmp_path):
    with unchanged(network):
        synthesize(network, tmp_path / "images", 1, **SMALL)
    pellucid.save(network, tmp_path / "net.safetensors")
    named = synthesize(str(tmp_path / "net.safetensors"), tmp_path / "named", 5, verifier=network, **SMALL)
    assert {name: value for name, value in bits(named.folder).items() if name.endswith("png")} == {
        name: value for name, value in bits(whole.folder).items() if name.endswith("png")
    }


def test_json_is_one_object_quiet_is_silence_and_the_next_command_works(network, tmp_path, capsys, monkeypatch):
    from pellucid.cli import main

    monkeypatch.chdir(tmp_path)
    pellucid.save(network, "net.safetensors")
    words = [
        "synthesize",
        "net.safetensors",
        "--out",
        "images",
        "--per-class",
        "2",
        "--steps",
        "2",
        "--batch-size",
        "4",
    ]
    assert main([*words, "--device", "cpu"]) == 0
    *_, last = capsys.readouterr().out.strip().splitlines()
    assert last == "Next: pellucid assess net.safetensors images"
    assert main([*words, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 8 and found["agree"]["n"] == 8 and found["real_images"] == "none"
    assert main([*words, "--device", "cpu", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*shlex.split(last)[2:], "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip().endswith("Next: pellucid distill net.safetensors resnet20 images")


# --- real processes ---

WORDS = ["synthesize", "teacher.safetensors", "--per-class", "6", "--batch-size", "4", "--steps", "8", "--out"]


@pytest.fixture
def teacher(tmp_path, network):
    pellucid.save(network, tmp_path / "teacher.safetensors")
    return tmp_path


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_bits(teacher):
    done = run(*WORDS, "whole", cwd=teacher)
    assert done.returncode == 0, done.stderr
    assert "Next: pellucid assess teacher.safetensors whole" in done.stdout
    for kill in (1, 3):
        process = start(*WORDS, "killed", cwd=teacher)
        while len(list((teacher / "killed").glob("*/*.png"))) < 4 * kill and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (teacher / "killed" / folders.LABELS).exists()
    kept = {file.name: file.stat().st_mtime_ns for file in (teacher / "killed" / folders.BATCHES).glob("*.safetensors")}
    pictures = {file: file.stat().st_mtime_ns for file in (teacher / "killed").glob("*/*.png")}
    assert kept
    assert run(*WORDS, "killed", cwd=teacher).returncode == 0
    assert all(file.stat().st_mtime_ns == made for file, made in pictures.items())  # nothing was made twice
    assert bits(teacher / "killed") == bits(teacher / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["gaussian", "generator"])
def test_two_processes_make_what_one_makes(teacher, preset):
    words = [*WORDS[:-1], "--preset", preset, "--out"]
    assert run(*words, "one", cwd=teacher).returncode == 0
    two = run(*words, "two", "--devices", "2", "--device", "cpu", cwd=teacher)
    assert two.returncode == 0, two.stderr
    assert bits(teacher / "two") == bits(teacher / "one")


@pytest.mark.slow
def test_asked_to_stop_it_says_how_to_go_on_and_bad_input_is_a_sentence(teacher):
    long = ["300" if word == "8" else word for word in WORDS]  # so that it is asked in the middle
    process = start(*long, "stopped", cwd=teacher)
    while not list((teacher / "stopped").glob("*/*.png")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "the same command continues" in err and "Traceback" not in err
    bad = run(*WORDS, "other", "--disagreement", "1", cwd=teacher)
    assert bad.returncode == 2 and "--verifier" in sentence(bad)


@pytest.mark.vision
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_network_of_the_zoo_with_random_weights(tmp_path):
    words = ["synthesize", "torchvision:resnet18", "--per-class", "1", "--steps", "1", "--batch-size", "5"]
    done = run(*words, "--out", "images", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "images").glob("*/*.png"))) == 10


def test_a_setting_that_a_folder_lacks_is_named_even_where_it_is_none(network, whole, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(whole.folder, folder)
    file = folder / "synthesis.json"
    table = json.loads(file.read_text())
    name = next(key for key, value in table["settings"].items() if value is None)
    del table["settings"][name]
    file.write_text(json.dumps(table))
    with pytest.raises(InputError, match=f"was begun with no setting '{name.replace('_', ' ')}'"):
        synthesize(network, folder, 5, **SMALL)
