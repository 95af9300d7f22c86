"""The commands as a user types them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

import pellucid
from pellucid import cli
from pellucid.commandline.bind import call
from pellucid.commandline.flags import flags_of
from pellucid.core import terminal
from pellucid.core.flags import SourceSettings
from pellucid.core.train.settings import TrainSettings
from processes import run, sentence


def capture(capsys, *words: str) -> tuple[int, str, str]:
    status = cli.main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_alone_it_prints_the_table(capsys):
    status, out, _ = capture(capsys)
    assert status == 0
    for name in cli.COMMANDS:
        assert f"\n  {name} " in out
    assert capture(capsys, "--help")[1] == out
    assert capture(capsys, "--version")[1] == f"pellucid {pellucid.__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tarin"], "did you mean 'train'"),
        (["dance"], "the commands are"),
        (["train", "--epochs", "many"], "epochs"),
        (["train", "--epochs", "0"], "--epochs 0 is out of range: give at least 1"),
        (["train", "--nonsense", "1"], "--nonsense"),
        (["train", "--optimizer", "magic"], "optimizer"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--data", "digitz"], "digits"),
        (["train", "--model", "resnet21", "--out", "x"], "resnet20"),
        (["train", "--layers", "magic", "--out", "x"], "plain"),
        (["train", "--device", "cuda:9"], "no device 'cuda:9'"),
        (["train", "--precision", "16-mixed", "--device", "cpu"], "16-mixed needs a GPU"),
        (["train", "--resume"], "no run to resume"),
        (["train", "--resume", "nowhere"], "'nowhere' is not a run folder"),
        (["evaluate"], "checkpoint"),
        (["evaluate", "nowhere"], "nowhere"),
        (["open", "--data", "digits"], "go with a checkpoint"),
        (["open", "--gate", "accuracy"], "gate"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_input_is_one_sentence_and_status_two(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    status, _, err = capture(capsys, *words)
    assert status == 2
    assert len(err.strip().splitlines()) == 1
    assert said in err
    assert not (tmp_path / "runs").exists()


def test_help_tells_defaults_and_types(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--help"])
    assert not end.value.code
    out = " ".join(capsys.readouterr().out.split())
    assert "--batch-size" in out
    assert "images per step, over all devices together. (type: int, default: 128)" in out
    assert "--compile, --no-compile" in out


def test_every_flag_is_explained():
    for name in cli.COMMANDS:
        for flag in flags_of(cli.command(name)):
            assert flag.help or dataclasses.is_dataclass(flag.kind), f"{name} --{flag.name}"
    for kind in (TrainSettings, SourceSettings):
        assert all(flag.help for flag in flags_of(kind))


def test_train_evaluate_resume_and_replay_as_a_new_user_types_them(tmp_path):
    words = ["train", "--data", "digits", "--model", "resnet20", "--epochs", "1", "--limit-batches", "3"]
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-resnet20-")
    assert f"Next: pellucid open runs/{folder.name}" in done.stdout
    assert "epoch 1/1" in done.stdout
    again = run(*words, "--resume", cwd=tmp_path)
    assert again.returncode == 0
    assert "epoch 1/1" not in again.stdout  # it was finished
    shown = run("evaluate", f"runs/{folder.name}", "--json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    test = json.loads((folder / "result.json").read_text())["test"]
    assert json.loads(shown.stdout)["confusion"] == test["confusion"]
    held_out = run("evaluate", f"runs/{folder.name}", "--split", "val", cwd=tmp_path)
    assert "135" in held_out.stdout
    replay = run("train", "--config", str(folder / "settings.yaml"), "--out", "replayed", cwd=tmp_path)
    assert replay.returncode == 0, replay.stderr
    assert (tmp_path / "replayed" / "best.safetensors").read_bytes() == (folder / "best.safetensors").read_bytes()


def test_flags_override_the_config_file(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"epochs": 7, "batch_size": 64, "milestones": [0.2]}))
    seen = {}

    def command(settings: TrainSettings, *, out: str | None = None, resume: bool | str = False) -> int:
        """Take settings."""
        seen.update(settings=settings, out=out, resume=resume)
        return 5

    globals_ = command.__globals__
    assert globals_["TrainSettings"] is TrainSettings
    words = ["--config", str(tmp_path / "c.yaml"), "--batch-size", "32", "--no-deterministic", "--options.block", "16"]
    assert call(command, "x", [*words, "--flip", "true"]) == 5
    settings = seen["settings"]
    assert (settings.epochs, settings.batch_size, settings.milestones) == (7, 32, [0.2])
    assert (settings.deterministic, settings.options, settings.flip) == (False, {"block": 16}, True)
    assert (seen["out"], seen["resume"]) == (None, False)
    assert call(command, "x", ["--milestones", "0.1", "0.3"]) == 5
    assert seen["settings"].milestones == [0.1, 0.3]
    assert call(command, "x", ["--resume"]) == 5
    assert seen["resume"] is True
    assert call(command, "x", ["--resume", "runs/a", "--out", "b"]) == 5
    assert (seen["resume"], seen["out"]) == ("runs/a", "b")


def test_every_command_of_the_ground_speaks_json_or_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def as_json(*words: str) -> dict:
        status, out, err = capture(capsys, *words, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    trained = as_json("train", "--model", "conv2", "--epochs", "1", "--limit-batches", "1", "--out", "run")
    assert (trained["run"], trained["model"], trained["seed"], trained["test"]["n"]) == ("run", "conv2", 0, 450)
    measured = as_json("evaluate", "run", "--batch-size", "64")
    assert (measured["checkpoint"], measured["data"], measured["split"]) == ("run", "digits", "test")
    assert measured["confusion"] == trained["test"]["confusion"]
    assert [*measured["per_class"][3]] == ["class", "n", "correct", "accuracy", "interval"]
    words = ["--layers", "deconv", "--block", "8", "--data", "digits", "--max-images", "64", "--batch-size", "32"]
    changed = as_json("convert", "run", *words, "--seed", "1", "--out", "c.safetensors")
    assert changed["fitted"] and "FastDeconv2d" in {row["new"].partition("(")[0] for row in changed["changes"]}
    assert changed["parameters"]["after"] >= changed["parameters"]["before"]
    folded = as_json("fold", "c.safetensors", "--data", "digits", "--max-images", "9", "--out", "f.safetensors")
    assert folded["n"] == 9 and folded["difference"] < 1e-5 and folded["left"] == {}
    assert as_json("fold", "conv2", "--seed", "3", "--out", "g")["n"] == 4
    import torch

    torch.save(pellucid.load("run").state_dict(), "foreign.pth")
    foreign = as_json("evaluate", "conv2=foreign.pth", "--data", "digits", "--image-size", "8")
    assert foreign["n"] == 450
    for words in (
        ["train", "--resume", "run"],
        ["evaluate", "run"],
        ["convert", "run", "--layers", "deconv", "--out", "x"],
        ["fold", "run", "--out", "y"],
    ):
        assert capture(capsys, *words, "--quiet") == (0, "", "")


def test_names_that_look_like_markup_are_printed_as_they_are(capsys):
    terminal.show("[red] title", ["[b]class[/b]"], [[":smile: [link]"]])
    terminal.say("[bold]:smile:[/bold]")
    out = capsys.readouterr().out
    assert "[red] title" in out and "[b]class[/b]" in out and ":smile: [link]" in out
    assert "[bold]:smile:[/bold]" in out


@pytest.mark.slow
def test_a_gate_decides_the_exit_status(tmp_path):
    assert run("train", "--limit-batches", "1", "--epochs", "1", "--out", "run", cwd=tmp_path).returncode == 0
    good = run("open", "run", "--gate", "accuracy.top1 >= 0", "data.channels == 1", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert "report/index.html" in good.stdout
    bad = run("open", "run", "--gate", "accuracy.top1 >= 0", "--gate", "accuracy.top1 >= 99.9%", cwd=tmp_path)
    assert bad.returncode == 1
    assert json.loads((tmp_path / "report" / "audit.json").read_text())["passed"] is False


def test_an_unwritable_folder_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("train", "--out", "file/run", "--limit-batches", "1", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert "file" in sentence(done)
