"""Hostile command lines: words that a user, a script or an attacker may type, and what must hold of them all.

No example computes anything: `recorders` puts a function that does nothing in place of every command.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from pellucid import cli
from pellucid.commandline.bind import own_flags
from pellucid.commandline.flags import Flag
from pellucid.core.ranges import without_none
from pellucid.ideas import COMMANDS

LONGEST = 1000  # characters of an error
STATUSES = (0, 1, 2, 130)

NASTY = [
    "", " ", "-", "--", "---", "=", "--=", "--=x", "-1", "-inf", "--inf", "nan", "NaN", "inf", "-0.0", "0",
    "1e999", "1e-999", "9" * 30, "9" * 5000, "-" + "9" * 400, "0x10", "1_000", "१२", "½", "1,5", "1e3", "true",
    "no", "null", "None", "~", "[]", "{}", "[1, 2]", "{a: 1}", "[" * 200, "{a: " * 100, "&a [*a]",
    "!!python/object/apply:os.system [id]", "*a", "\0", "a\0b", "\x1b[31mred\x1b[0m", "\r", "\n", "a\nb", "\t",
    "\x07", "\x7f", "\u202e", "\u200b", "\ud800", "\udcff", "é" * 300, "x" * 100_000, "/", ".", "..",
    "/etc/passwd", "/dev/null", "/dev/zero", "/proc/self/mem", "pipe", "folder", "binary", "empty", "link",
    "loop", "settings.yaml", "includes.yaml", "bomb.yaml", "deep.yaml", "nul.yaml", "x" * 300, "x/" * 3000,
    "~root", "~nobody/x", "$HOME", "%s%n", "resnet18=", "=resnet18", "resnet18=nowhere", "timm:", "a:b:c",
    "folder:", "npz:", "folder:folder", "digits", "cifar10:nowhere", "--options.block", "--options.",
    "--options.=1", "--config=settings.yaml", "--config=/etc/passwd", "--config", "--help=1", "-h=1", "--no-",
    "--no-quiet=1", "--seed=", "--layers", "--layers=deconv", "--layers=\0", "--layers=csc",
    "--objective=distillation", "--quiet", "--json=perhaps",
]  # fmt: skip


def words_for(command: str) -> st.SearchStrategy[str]:
    """One word of a command line of `command`: a flag, damaged or not, a value, or anything."""
    flags = [flag.spelled for flag in own_flags(cli_command(command)) if not flag.positional] + ["--config"]
    spelled = st.sampled_from(flags)
    damaged = st.builds(lambda flag, at: flag[:at] + flag[at + 1 :], spelled, st.integers(0, 12))
    negated = spelled.map(lambda flag: f"--no-{flag[2:]}")
    text = st.text(max_size=40)
    value = st.sampled_from(NASTY) | st.integers().map(str) | st.floats().map(str) | text
    assigned = st.builds(lambda flag, word: f"{flag}={word}", spelled | damaged, value)
    return st.one_of(spelled, spelled, damaged, negated, value, value, assigned)


@st.composite
def command_lines(draw: st.DrawFn, commands: Sequence[str] = tuple(COMMANDS)) -> list[str]:
    """A command of `commands`, in one of twenty lines another word, and up to eight words; never a call for help."""
    command = draw(st.sampled_from([*commands]))
    line = draw(st.lists(words_for(command), max_size=8))
    if draw(st.integers(0, 3)):  # mostly with all that it needs, so that the other words are reached
        line = [*needed(command), *line]
    name = command if draw(st.integers(0, 19)) else draw(st.sampled_from(NASTY) | st.text(max_size=20))
    return [name, *(word for word in line if word not in ("-h", "--help"))]


@functools.cache
def cli_command(name: str) -> Callable[..., int]:
    """The function of a command, whatever `recorders` put in its place."""
    from pellucid.core.registry import place

    return place(COMMANDS[name])


def needed(command: str, without: str = "") -> list[str]:
    """Words that give `command` all that it needs, except the flag `without`, and nothing else."""
    words = []
    for flag in own_flags(cli_command(command)):
        if flag.required and flag.name != without:
            words += [example(flag)] if flag.positional else [flag.spelled, example(flag)]
    return words


def example(flag: Flag) -> str:
    """A value that the flag takes."""
    kind = without_none(flag.kind)[0]
    return "deconv" if flag.name == "layers" else "1" if kind in (int, float) else "nowhere"


@contextlib.contextmanager
def recorders() -> Iterator[list[tuple[str, tuple[Any, ...], dict[str, Any]]]]:
    """While the block runs, every command records what it was called with, and does nothing else."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    @functools.cache
    def recorder(name: str) -> Callable[..., int]:
        function = cli_command(name)

        @functools.wraps(function)
        def record(*values: Any, **keywords: Any) -> int:
            calls.append((name, values, keywords))
            return 0

        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "command", recorder)
        yield calls


def sandbox(folder: Path) -> Path:
    """Fill a folder with the odd files that command lines of `NASTY` name."""
    (folder / "folder").mkdir(parents=True)
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "empty").write_bytes(b"")
    (folder / "link").symlink_to("nothing")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    (folder / "settings.yaml").write_text("epochs: 3\nlr: 0.1\n")
    (folder / "includes.yaml").write_text("config: /etc/passwd\n")
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (folder / "bomb.yaml").write_text("\n".join(["a0: &a0 [x, x, x]", *levels]))
    (folder / "deep.yaml").write_text("options: " + "[" * 5000)
    (folder / "nul.yaml").write_bytes(b"data: a\0b\n")
    return folder


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below a folder, with its kind, its time and its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        found[str(path)] = f"{state.st_mode} {state.st_mtime_ns} {content}"
    return found


def check_command_line(
    words: Sequence[str], folder: Path, capture: Callable[[], tuple[str, str]] | None = None
) -> tuple[int, str]:
    """Run a command line in `folder`, and check what must hold of any: no exception, one line for an error, no change.

    Args:
        words: the command and its words.
        folder: where to run it.
        capture: what was printed since it was last called, as (stdout, stderr); default a capture of its own.

    Returns:
        The exit status, and what was printed on stderr.
    """
    before, back, own = snapshot(folder), Path.cwd(), (io.StringIO(), io.StringIO())
    os.chdir(folder)
    try:
        with contextlib.ExitStack() as stack:
            if capture is None:
                stack.enter_context(contextlib.redirect_stdout(own[0]))
                stack.enter_context(contextlib.redirect_stderr(own[1]))
            try:
                status = cli.main(list(words))
            except SystemExit as end:  # after --help
                status = int(end.code or 0)
    finally:
        os.chdir(back)
    _, err = capture() if capture is not None else (own[0].getvalue(), own[1].getvalue())
    assert status in STATUSES, (status, words)
    if status:
        line = err.removesuffix("\n")
        assert line.startswith("pellucid: "), (err, words)
        assert len(line) <= LONGEST, (len(line), words)
        assert line.isprintable(), (err, words)  # one line, and nothing that a terminal would act on
    assert snapshot(folder) == before, words
    return status, err
