"""Every command with nothing, and with the commonest mistakes: one sentence of ours, status 2, and nothing changed."""

from __future__ import annotations

import errno
import importlib.util
import os
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from pellucid import cli
from pellucid.commandline.bind import own_flags
from pellucid.commandline.failures import sentence_of
from pellucid.commandline.flags import Flag
from pellucid.commandline.options import options_of
from pellucid.core.errors import near
from pellucid.core.ranges import Range, plain, without_none
from pellucid.ideas import COMMANDS
from strategies import check_command_line, cli_command, command_lines, needed, recorders, sandbox

# Words of the libraries that a flag or a file may pass through.
FOREIGN = (
    "Does not validate", "Union", "subtypes", "Expected a", "unrecognized arguments", "Traceback", "NoneType",
    "<class", "jsonargparse", "argparse", "Annotated", "typing", "Namespace", "expected one argument",
    "invalid choice", "YAMLError", "Parser key", "not enough values", "argument(s)",
)  # fmt: skip


def flags(command: str) -> list[Flag]:
    return list(own_flags(cli_command(command)))


def numeric(flag: Flag) -> tuple[type, Range | None] | None:
    """The type and range of a flag of numbers, or of a list of them."""
    base = without_none(flag.kind)[0]
    base = typing.get_args(base)[0] if flag.several else base
    options = typing.get_args(base) if typing.get_origin(base) is typing.Union else (base,)
    found = [plain(option) for option in options if plain(option)[0] in (int, float)]
    return found[0] if found else None


def choices(flag: Flag) -> tuple[str, ...]:
    base = without_none(flag.kind)[0]
    options = typing.get_args(base) if typing.get_origin(base) is typing.Union else (base,)
    return next((typing.get_args(option) for option in options if typing.get_origin(option) is Literal), ())


def refused(words: list[str], folder: Path, *said: str) -> None:
    """The line is refused in a sentence of ours that says all of `said`."""
    status, err = check_command_line(words, folder)
    assert status == 2, (words, status, err)
    assert len(err) < 600, (words, err)
    assert not [word for word in FOREIGN if word in err], (words, err)
    assert not [word for word in said if word not in err], (words, said, err)
    assert err.count(".\n") + err.count("?\n") == 1, (words, err)


@pytest.fixture
def box(tmp_path):
    return sandbox(tmp_path / "box")


@pytest.mark.parametrize("command", COMMANDS)
def test_without_arguments_a_command_runs_by_its_defaults_or_says_what_it_needs(command, box):
    required = [flag for flag in flags(command) if flag.required]
    with recorders() as calls:
        if required:
            refused([command], box, *(flag.spelled for flag in required), f"pellucid {command}")
            for flag in required:  # all but one; without the first of two arguments, it is the last that is missing
                last = [one for one in required if one.positional][-1] if flag.positional else flag
                refused([command, *needed(command, without=flag.name)], box, f"needs {last.spelled}:")
        else:
            assert check_command_line([command], box) == (0, "")
            assert [name for name, _, _ in calls] == [command]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_misspelled_flag_is_answered_with_the_right_name(command, box):
    with recorders():
        for flag in flags(command):
            if flag.positional:
                continue
            bare = flag.spelled[2:]
            wrong = {f"-{bare}"}
            if len(bare) > 4:
                wrong |= {f"--{bare[:2]}{bare[3:]}", f"--{bare}{bare[-1]}", f"--{bare.replace('-', '')}"}
            for word in sorted(wrong - {other.spelled for other in flags(command)}):
                refused([command, *needed(command), word, "1"], box, flag.spelled)
            refused([command, *needed(command), *["x"] * places(command), bare, "1"], box, "too many")
        refused([command, *needed(command), "--wholly-unknown"], box, f"pellucid {command} --help")


def places(command: str) -> int:
    """How many positional arguments may still be given."""
    return sum(flag.positional and not flag.required for flag in flags(command))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_without_its_value_is_refused(command, box):
    with recorders():
        for flag in flags(command):
            if flag.positional or flag.switch or flag.value_may_be_left_out:
                continue
            words = needed(command, without=flag.name)
            refused([command, *words, flag.spelled], box, f"{flag.spelled} needs a value")
            refused([command, *words, flag.spelled, "--quiet"], box, f"{flag.spelled} needs a value")
            refused([command, *words, f"{flag.spelled}="], box, flag.spelled)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_number_that_is_none_or_out_of_range_is_refused(command, box):
    with recorders():
        for flag in flags(command):
            if (found := numeric(flag)) is None:
                continue
            kind, span = found
            assert span is not None, f"{command} {flag.spelled} has no range"
            words = [command, *needed(command), flag.spelled]
            wrong = ["many", "nan", "inf", "-inf", "1e999", "0x10", "1,5", "9" * 5000]
            wrong += ["1.5"] if kind is int else []
            wrong += [str(kind(span.low) - 1)] if span.low > -float("inf") else []
            wrong += [str(kind(span.high) + 1)] if span.high < float("inf") else []
            wrong += [str(kind(end)) for end in span.excludes if kind is float]
            for value in wrong:
                refused([*words, value], box, flag.spelled)
        assert check_command_line([command, *needed(command)], box)[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_choice_is_answered_with_the_nearest(command, box):
    with recorders():
        for flag in flags(command):
            if options := choices(flag):
                known = max(options, key=len)
                refused([command, *needed(command), flag.spelled, known[:-1] + "qq"], box, flag.spelled, known)
                refused([command, *needed(command), flag.spelled, "wholly-unknown"], box, *map(str, options))
            if flag.switch:
                refused([command, *needed(command), f"{flag.spelled}=perhaps"], box, flag.spelled, "yes")
                refused([command, *needed(command), f"--no-{flag.spelled[2:]}=yes"], box, "takes no value")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_word_too_many_is_refused(command, box):
    with recorders():
        extra = ["extra"] * (places(command) + 1)
        refused([command, *needed(command), *extra], box, "'extra'", f"pellucid {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_keys_of_a_file_are_checked_as_flags_are(command, box):
    def file(values: Any) -> list[str]:
        (box / "own.yaml").write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return [command, *needed(command), "--config", "own.yaml"]

    with recorders() as calls:
        for flag in flags(command):
            if flag.positional or len(flag.name) < 5 or flag.required:
                continue
            wrong = flag.name[:2] + flag.name[3:]
            refused(file({wrong: 1}), box, "own.yaml", wrong, flag.name)
            if numeric(flag):
                refused(file({flag.name: [["many"]]}), box, flag.name)
                refused(file(f"{flag.name}: .nan"), box, "own.yaml")
            if numeric(flag) or choices(flag) or flag.switch:
                refused(file({flag.name: "many"}), box, flag.name, "own.yaml", "'many'")
                refused(file({flag.name: {"a": 1}}), box, flag.name, "own.yaml")
        assert check_command_line(file(""), box)[0] == 0
        assert check_command_line(file({"quiet": True, "seed": 3}), box)[0] == 0
        assert calls[-1][2]["quiet"] is True
        assert check_command_line([*file({"quiet": True}), "--no-quiet"], box)[0] == 0
        assert calls[-1][2]["quiet"] is False
        secret = box / "secret.txt"
        secret.write_text("root:x:0:0:hush\n")
        for words in (
            file(f"config: {secret}"),
            file(f"--config: {secret}"),
            file(f"!include {secret}"),
            [command, *needed(command), "--config", str(secret)],
            [command, *needed(command), f"--config={secret}"],
        ):
            refused(words, box)
            assert "hush" not in check_command_line(words, box)[1]


ODD = [
    "folder",
    "pipe",
    "binary",
    "empty/x",
    "link",
    "loop",
    "bomb.yaml",
    "deep.yaml",
    "nul.yaml",
    "/dev/zero",
    "x" * 300,
]


@pytest.mark.parametrize("name", [*ODD, "x" * 300, "cifar10-resnet18-decon", "\0", "", "nowhere.yaml", "x/" * 3000])
def test_an_odd_file_of_settings_is_one_sentence(name, box):
    with recorders() as calls:
        refused(["train", "--config", name], box)
        refused(["train", f"--config={name}"], box)
    assert calls == []


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["fold", "x", "--out", "my folder/f"], "out", "my folder/f"),
        (["fold", "x", "--out=my folder/f"], "out", "my folder/f"),
        (["fold", "x", "--out=-f"], "out", "-f"),
        (["fold", "--out", "f", "--", "-x"], 0, "-x"),
        (["fold", "--quiet", "x", "--out", "f"], 0, "x"),
        (["fold", "x", "--out", "f", "--batch_size", "3"], "batch_size", 3),
        (["fold", "x", "--out", "f", "--tolerance=1e-3"], "tolerance", 1e-3),
        (["fold", "x", "--out", "f", "--json", "no"], "json", False),
        (["fold", "x", "--out", "f", "--json=yes"], "json", True),
        (["fold", "x", "--out", "e", "--out", "f"], "out", "f"),
        (["open", "--gate", "a >= 0.5", "b > 1", "--gate", "c < -1"], "gate", ["a >= 0.5", "b > 1", "c < -1"]),
        (["open", "x", "--max-images", "null"], "max_images", None),
        (["distill", "x", "y", "--flip"], "flip", True),
        (["distill", "x", "y", "--no-flip"], "flip", False),
        (["distill", "--flip", "false", "x", "y"], "flip", False),
        (["distill", "--flip", "x", "y", "z"], 2, "z"),
        (["robust", "x", "--lam", "0.5"], "lam", 0.5),
        (["robust", "x", "--lam", "oracle"], "lam", "oracle"),
        (["train", "--resume"], "resume", True),
        (["train", "--resume", "run"], "resume", "run"),
        (["convert", "x", "--layers", "deconv", "--out", "f", "--block", "8"], "options", {"block": 8}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_words_mean_what_they_say(words, name, value, box):
    with recorders() as calls:
        assert check_command_line(words, box) == (0, "")
    ((_, values, keywords),) = calls
    assert (values[name] if isinstance(name, int) else keywords[name]) == value


def test_numbers_with_a_sign_are_values(box):
    with recorders() as calls:
        words = ["evaluate", "x", "--mean", "-0.5", "-.25", "--std", "1", "2", "--arch", "resnet20"]
        assert check_command_line(words, box) == (0, "")
    source = calls[0][2]["source"]
    assert (source.mean, source.std, source.model) == ([-0.5, -0.25], [1.0, 2.0], "resnet20")


@pytest.mark.parametrize(
    "text", ["&a [*a]", "2020-01-01", "[2020-01-01]", ".nan", "[.inf]", "1e999", "!!set {a}", "a: b: c"]
)
def test_a_value_that_settings_cannot_hold_is_text(text, box):
    with recorders() as calls:
        assert check_command_line(["train", "--options.block", text], box) == (0, "")
    assert calls[0][2]["settings"].options == {"block": text}
    calls[0][2]["settings"].name()


def test_a_recipe_is_named_without_its_folder_and_its_near_misses_are_known(box):
    with recorders() as calls:
        assert check_command_line(["train", "--config", "cifar10-resnet18-deconv"], box)[0] == 0
        assert calls[-1][1] == () and calls[-1][2]["settings"].layers == "deconv"
        refused(["train", "--config", "cifar10-resnet18-decon"], box, "cifar10-resnet18-deconv")


def test_a_value_that_is_a_file_is_not_read(box):
    """A library for flags might take the value of a flag for the name of a file of values."""
    (box / "secret").write_text("hush: 1\n")
    with recorders() as calls:
        assert check_command_line(["train", "--init", "secret", "--data", "secret"], box)[0] == 0
        assert calls[-1][2]["settings"].init == "secret"
        status, err = check_command_line(["train", "--options", "secret"], box)
        assert status == 2 and "hush" not in err


def test_options_of_layers_and_objectives_are_checked_as_flags_are(box):
    with recorders() as calls:
        for words, said in (
            (["--layers", "deconvv"], ["'deconv'"]),
            (["--layers", "deconv", "--blok", "16"], ["--block"]),
            (["--layers", "deconv", "--options.blok", "16"], ["'block'", "'blok'"]),
            (["--layers", "deconv", "--options", "{blok: 3}"], ["'block'"]),
            (["--layers", "deconv", "--options.block", "many"], ["--options.block"]),
            (["--layers", "deconv", "--options", "many"], ["--options"]),
            (["--layers", "deconv", "--block", "many"], ["--block"]),
            (["--layers", "deconv", "--deconv-momentum", "nan"], ["--deconv-momentum"]),
            (["--layers", "deconv", "--head", "linaer"], ["'linear'"]),
            (["--block", "16"], ["--layers deconv"]),
            (["--objective", "selectivty"], ["'selectivity'"]),
            (["--objective", "selectivity", "--alfa", "1"], ["--alpha"]),
            (["--temperature", "1"], ["--objective distillation"]),
            (["--options." + "x" * 5000, "1", "--layers", "deconv"], ["x"]),
        ):
            refused(["train", *words], box, *said)
        assert calls == []
        assert check_command_line(["train", "--layers", "deconv", "--options", "{block: 8, eps: 1e-3}"], box)[0] == 0
        assert calls[-1][2]["settings"].options == {"block": 8, "eps": 1e-3}
    assert options_of({"layers", "options"}, ["--layers"], []) == {}


# --- real commands on bad input: nothing is computed ---

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
NAMES = [
    (["evaluate", "resnt18", "--data", "digits"], "'resnet18'"),
    *(
        pytest.param(
            ["evaluate", f"{zoo}:resnt18", "--data", "digits"], "resnet18", marks=[pytest.mark.vision, needs_timm]
        )
        for zoo in ("torchvision", "timm")
    ),
    (["evaluate", "conv2", "--data", "digitz"], "digits"),
    (["evaluate", "conv2", "--data", "cifar1"], "cifar10"),
    (["evaluate", "conv2", "--data", "folder:nowhere"], "nowhere"),
    (["evaluate", "nowhere/best.safetensors", "--data", "digits"], "nowhere/best.safetensors"),
    (["evaluate", "x" * 4000, "--data", "digits"], "xxx"),
    (["evaluate", "x/" * 1500, "--data", "digits"], "x/x"),
    (["evaluate", "x/" * 5000, "--data", "digits"], "10000 characters"),
    (["evaluate", "a\x1bb", "--data", "digits"], "control characters"),
    (["evaluate", "conv2", "--data", "digits\0"], "control characters"),
    (["evaluate", "conv2", "--device", "\x9b31m"], "control characters"),
    (["evaluate", "folder"], "folder"),
    (["evaluate", "pipe"], "pipe"),
    (["evaluate", "binary"], "binary"),
    (["evaluate", "conv2=binary", "--data", "digits"], "binary"),
    (["train", "--model", "resnt18"], "resnet18"),
    (["train", "--data", "digitz"], "digits"),
    (["train", "--framework", "kears"], "'keras'"),
    (["train", "--device", "cudda"], "'cudda'"),
    (["train", "--init", "nowhere"], "'nowhere'"),
    (["train", "--out", "binary"], "binary"),
    (["train", "--out", "binary/run"], "binary"),
    (["convert", "conv2", "--layers", "deconvv", "--out", "x"], "'deconv'"),
    (["fold", "conv2", "--out", "."], "is a folder"),
    (["fold", "conv2", "--out", "pipe"], "no regular file"),
    (["fold", "conv2", "--out", "/dev/null"], "no regular file"),
    (["fold", "conv2", "--out", "binary/x"], "is not a folder"),
    (["fold", "conv2", "--out", "loop/x"], "loop"),
    (["fold", "conv2", "--out", "x" * 256], "too long"),
    (["pack", "conv2", "--out", "x", "--plain", "./x"], "the same file"),
    (["decompose", "conv2", "--data", "digits", "--classes", "1", "nine", "--out", "x"], "'nine'"),
    (["decompose", "conv2", "--data", "digits", "--classes", "1", "--out", "x"], "two or more"),
    (["robust", "conv2", "--data", "digits", "--kinds", "gausian_noise"], "'gaussian_noise'"),
    (["invert", "conv2", "--out", "x", "--preset", "gausian"], "'gaussian'"),
    (["visualize", "conv2", "nowhere", "--out", "x"], "nowhere"),
    (["distill", "conv2", "conv2", "nowhere"], "nowhere"),
    (["assess", "conv2", "nowhere"], "nowhere"),
    (["open", "conv2", "--data", "digits", "--gate", "accuracy.top1"], "accuracy.top1"),
    (["search", "trian", "--grid", "settings.yaml"], "'train'"),
    (["search", "train", "--grid", "search-inversion-202"], "'search-inversion-2020'"),
    (["search", "train", "--grid", "bomb.yaml"], "bomb.yaml"),
    (["trian"], "'train'"),
    (["\x1b[31m"], "no command"),
]


@pytest.mark.parametrize(
    ("words", "said"),
    NAMES,
    ids=lambda value: " ".join(value)[:60].replace("\x1b", "") if isinstance(value, list) else "",
)
def test_a_wrong_name_or_path_is_one_sentence(words, said, box):
    refused(words, box, said)


def test_a_grid_of_too_many_points_is_refused_before_it_is_made(box):
    plan = {"grid": {f"options.a{i}": list(range(10)) for i in range(40)}, "score": "result.json:a"}
    (box / "grid.yaml").write_text(yaml.safe_dump(plan))
    refused(["search", "train", "--grid", "grid.yaml"], box, "1" + "0" * 40, "points", "--sampler tpe")


def test_a_plan_with_a_misspelled_flag_is_refused_before_a_trial_runs(box):
    def plan(name: str) -> list[str]:
        (box / "grid.yaml").write_text(yaml.safe_dump({"grid": {name: [1, 2]}, "score": "result.json:a"}))
        return ["search", "train", "--grid", "grid.yaml"]

    refused(plan("epoch"), box, "--epochs".strip("-"), "epoch")
    refused(plan("batchsize"), box, "batch_size")
    from pellucid.search.plan import read_plan

    for name in ("epochs", "block", "deconv_momentum", "options.block", "batch-size"):
        plan(name)
        assert read_plan("train", str(box / "grid.yaml")).point(1) == {name: 2}


# --- ranges and hints ---


def test_settings_check_their_ranges_in_python_too():
    import pellucid
    from pellucid.core.errors import InputError

    for wrong in ({"gamma": -1.0}, {"lr": float("nan")}, {"epochs": 2**40}, {"epochs": "many"}, {"milestones": [2.0]}):
        (name,) = wrong
        with pytest.raises(InputError, match=f"--{name} .* (out of range|not a whole number): give"):
            pellucid.TrainSettings(**wrong)
    with pytest.raises(InputError, match="--nesterov needs a momentum"):
        pellucid.TrainSettings(nesterov=True, momentum=0.0)
    assert pellucid.TrainSettings(lr=1, gamma=0.5).lr == 1


def test_the_nearest_names_are_few_or_all():
    assert near("deconvv", ["plain", "deconv"]) == "did you mean 'deconv'?"
    assert near("zzz", ["plain", "deconv"]) == "choose plain or deconv."
    assert near("zzz", map(str, range(50))) == ""
    assert near("x" * 10**6, ["plain"]) == "choose plain."


# --- what the system refuses ---


@pytest.mark.parametrize(
    ("number", "said", "status"),
    [
        (errno.ENOSPC, "disk is full: free some space, or write elsewhere with --out", 1),
        (errno.EDQUOT, "quota", 1),
        (errno.EACCES, "permission", 2),
        (errno.EROFS, "can only be read", 2),
        (errno.ENOENT, "no such file", 2),
        (errno.EISDIR, "a folder: name a file", 2),
        (errno.ENOTDIR, "not a folder", 2),
        (errno.ENAMETOOLONG, "too long", 2),
        (errno.EMFILE, "ulimit -n", 1),
        (errno.EPIPE, os.strerror(errno.EPIPE), 1),
    ],
)
def test_an_error_of_the_system_names_the_path_and_the_remedy(number, said, status, box, monkeypatch):
    def fail(*values: Any, **keywords: Any) -> int:
        raise failure

    failure = OSError(number, os.strerror(number), "some/fi\x1ble")
    sentence, found = sentence_of(failure)
    assert said in sentence and "'some/fi\\x1ble'" in sentence and found == status
    monkeypatch.setattr("pellucid.core.source.open_network", fail)
    if number != errno.EPIPE:  # that is a reader gone
        assert check_command_line(["fold", "conv2", "--out", "x"], box) == (status, f"pellucid: {sentence}\n")
    failure = OSError(number, os.strerror(number))
    if number != errno.EPIPE:
        assert "'place'" in check_command_line(["fold", "conv2", "--out", "place"], box)[1]
    assert "no file named" not in sentence_of(failure)[0]


def test_a_full_disk_names_the_file_that_was_being_written(tmp_path, monkeypatch):
    from pellucid.core.files.atomic import write_atomic

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as failure:
        write_atomic(tmp_path / "audit.json", "{}")
    assert str(tmp_path / "audit.json") in sentence_of(failure.value)[0]
    assert list(tmp_path.iterdir()) == []


def test_the_engine_announces_no_processes(monkeypatch):
    import logging

    from lightning_fabric import Fabric

    from pellucid.core.train.launch import launch

    seen = []
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[method-assign]
    log = logging.getLogger("lightning_fabric")
    inner = logging.getLogger("lightning_fabric.utilities.distributed")
    monkeypatch.setattr(Fabric, "launch", lambda self: inner.info("Initializing distributed"))
    log.addHandler(handler)
    try:
        level = log.level
        launch(device="cpu")
        assert seen == [] and log.level == level
        inner.error("heard")
        assert len(seen) == 1
    finally:
        log.removeHandler(handler)


# --- anything at all ---


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(words=command_lines())
def test_any_words_end_in_a_status_and_at_most_one_line(words, fuzz_box):
    with recorders():
        check_command_line(words, fuzz_box)


@pytest.fixture(scope="module")
def fuzz_box(tmp_path_factory):
    return sandbox(tmp_path_factory.mktemp("fuzz") / "box")


def test_the_overview_lists_every_command():
    assert all(f"\n  {name} " in cli.overview() for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_says_what_it_is_for(name):
    missing = [flag.spelled for flag in own_flags(cli.command(name)) if not flag.help]
    assert not missing
