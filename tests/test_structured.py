"""JSON and YAML of any origin: bounded, plain, and of the form that the code expects."""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from pellucid.core import terminal
from pellucid.core.errors import InputError, plain_text, shown
from pellucid.core.files.conform import conform
from pellucid.core.files.structured import DEEPEST, read_json, read_rows, read_yaml
from pellucid.core.ranges import Range


@dataclass
class Table:
    count: Annotated[int, Range(0, 10)]
    name: str
    rate: float | None = None
    form: Literal["a", "b"] = "a"
    rows: list[float] = field(default_factory=list)
    more: dict[str, int] = field(default_factory=dict)


GOOD = {"count": 3, "name": "x", "rate": 2, "form": "b", "rows": [1, 2.5], "more": {"a": 1}, "else": [None]}


def test_a_table_of_the_right_form_passes_and_whole_numbers_become_floats():
    found = conform(GOOD, Table, "t")
    assert found == GOOD
    assert [type(found["rate"]), type(found["rows"][0]), type(found["count"])] == [float, float, int]
    assert conform({"count": 0, "name": ""}, Table, "t") == {"count": 0, "name": ""}
    assert conform({"a": {"b": "c"}}, {"a": {"b": str}, "d": int | None}, "t") == {"a": {"b": "c"}, "d": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": True}, "a whole number at 'count', found True"),
        ({"count": 1.0}, "a whole number at 'count', found 1.0"),
        ({"count": 11}, "11 at 'count' is out of range"),
        ({"count": -1}, "out of range"),
        ({"count": 10**400}, "out of range"),
        ({"name": None}, "text at 'name', found None"),
        ({"rate": "1"}, "'rate'"),
        ({"rate": 10**400}, "'rate'"),
        ({"form": "c"}, "'c' at 'form' is not one of a, b"),
        ({"rows": {"0": 1}}, "a list at 'rows'"),
        ({"rows": [1, [2]]}, r"'rows\[1\]'"),
        ({"more": {"a": "b" * 500}}, "'more.a'"),
        ({"more": []}, "a table at 'more'"),
    ],
)
def test_other_forms_are_refused_at_their_place(change, words):
    with pytest.raises(InputError, match=words) as error:
        conform({**GOOD, **change}, Table, "The file 't' is damaged")
    assert len(str(error.value)) < 300
    assert str(error.value).startswith("The file 't' is damaged")


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="'name' is missing"):
        conform({"count": 1}, Table, "t")
    with pytest.raises(InputError, match="'a.b' is missing"):
        conform({"a": {}}, {"a": {"b": str}}, "t")
    for value in (5, [], None, "text"):
        with pytest.raises(InputError, match="expected a table"):
            conform(value, Table, "t")


def nested(levels: int, opening: str = "[", closing: str = "]") -> str:
    return opening * levels + closing * levels


HOSTILE = {
    "deep": nested(5000),
    "deeper": nested(200_000),
    "deep tables": '{"a":' * 400 + "1" + "}" * 400,
    "just too deep": nested(DEEPEST + 2),
    "not finite": '{"a": NaN}',
    "infinite": '{"a": 1e999}',
    "a long number": '{"a": ' + "9" * 5000 + "}",
    "no JSON": "{",
    "nothing": "",
    "a number": "5",
    "binary": b"\xff\xfe\x00\x01",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_one_sentence(tmp_path, name):
    file = tmp_path / "x.json"
    content = HOSTILE[name]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        read_json(file)
    assert "x.json" in str(error.value) and len(str(error.value)) < 700 and str(error.value).isprintable()


YAML = {
    "deep": nested(20_000),
    "an alias": "a: &a [1]\nb: *a\n",
    "billion laughs": "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi")),  # noqa: B905
    "code": "!!python/object/apply:os.system ['touch ran']\n",
    "a date": "a: 2020-01-01\n",
    "no date": "a: 2020-99-99\n",
    "a set": "!!set {a, b}\n",
    "bytes": "a: !!binary aGFsbG8=\n",
    "a list as a key": "? [1, 2]\n: 3\n",
    "a number as a key": "1: 2\n",
    "infinity": "a: .inf\n",
    "not a number": "a: .nan\n",
    "no YAML": "a: [1\n",
    "a control character": "a: \x07\n",
    "too long": "# " + "x" * 2**19 + "\n",
}


@pytest.mark.parametrize("name", YAML)
def test_hostile_yaml_is_one_sentence(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(YAML[name])
    began = time.monotonic()
    with pytest.raises(InputError) as error:
        read_yaml("x.yaml")
    assert time.monotonic() - began < 10
    assert "x.yaml" in str(error.value) and len(str(error.value)) < 300 and str(error.value).isprintable()
    assert os.listdir() == ["x.yaml"]


def test_an_error_does_not_quote_a_file_that_may_be_any(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("secret: [hunter2\nroot:x:0:0:\n")
    with pytest.raises(InputError, match="not valid YAML in line 2") as error:
        read_yaml("x.yaml")
    assert "hunter2" not in str(error.value) and "root" not in str(error.value)
    Path("x.json").write_text('"hunter2"')
    with pytest.raises(InputError, match="expected a table, found text") as error:
        read_json("x.json")
    assert "hunter2" not in str(error.value)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "folder", "loop", "missing", "/dev/zero"):
        for read in (read_json, read_yaml, read_rows):
            with pytest.raises(InputError, match=r"not a file: remove or replace it|There is no file"):
                read(tmp_path / name)
    (tmp_path / "large").write_bytes(bytes(100))
    with pytest.raises(InputError, match="has 100 bytes"):
        read_json(tmp_path / "large", largest=99)


def test_rows_end_where_a_killed_process_stopped_writing(tmp_path):
    file = tmp_path / "rows"
    rows = [{"a": 1}, {"a": 2}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for end in range(len(text) + 1):
        file.write_text(text[:end])
        assert read_rows(file) == rows[: 0 if end < 8 else 1 if end < 17 else 2]
    for damaged in ("5\n", "[]\n", '{"a": \n', '{"a": 1}\n{"a"\n{"a": 1}\n'):
        file.write_text(damaged)
        with pytest.raises(InputError, match="damaged in line"):
            read_rows(file)


def test_random_values_conform_to_their_own_type_and_survive_the_file(tmp_path):
    rng = random.Random(0)

    def value(depth: int) -> Any:
        plain = [None, True, -5, 2.5, "", "a\n\x1b[31m", 2**60]
        if depth == 0 or rng.random() < 0.3:
            return rng.choice(plain)
        if rng.random() < 0.5:
            return [value(depth - 1) for _ in range(rng.randrange(3))]
        return {f"k{i}": value(depth - 1) for i in range(rng.randrange(3))}

    for _ in range(50):
        wanted = {"v": value(6)}
        (tmp_path / "x.json").write_text(json.dumps(wanted))
        assert read_json(tmp_path / "x.json") == wanted


def test_quoted_names_are_short_and_plain():
    assert shown("cat") == "'cat'"
    text = shown("\x1b[31mred\x1b[0m\n" + "x" * 5000)
    assert len(text) == 80 and text.isprintable() and "..." in text and "\\x1b" in text
    assert shown(10**5000) == "a value of type int"
    inside: list[Any] = []
    inside.append(inside)
    assert shown(inside) == "[[...]]"
    assert plain_text("a\u202eb\u2028", 50) == "a\\u202eb\\u2028"


def test_what_a_command_prints_keeps_spaces_and_escapes_what_a_terminal_acts_on(capsys):
    terminal.say("97.3\u00a0% of \x1b[31mred\x07\nnext")
    terminal.show("a\u00a0title", ["name", "n"], [["\u202ecat" + "x" * 500, "1\u00a0%"]])
    printed = capsys.readouterr().out
    assert printed.startswith("97.3 % of \\x1b[31mred\\x07\nnext\n")
    assert "a title" in printed and "1 %" in printed and "\\u202ecat" in printed and "x" * 120 not in printed
    assert printed.replace("\n", "").isprintable()
