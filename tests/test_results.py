"""Numbers in README and docs are those of `results/`, and every result is from a script in `benchmarks/`."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recording, tables, timing = load("record"), load("tables"), load("timing")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = sorted((ROOT / "results").rglob("*.json"))
SCRIPTS = sorted((ROOT / "benchmarks").glob("*/*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT / "results").with_suffix("").as_posix()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tables_are_as_generated(page):
    assert tables.filled(page.read_text()) == page.read_text(), "run python benchmarks/tables.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_marker_is_read(page):
    """A marker that is written wrongly would leave its table as it is."""
    text = page.read_text()
    assert len(tables.TABLE.findall(text)) == text.count("<!-- results:")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_result_says_how_it_was_made(file):
    content = json.loads(file.read_text())
    assert content["name"] == name_of(file)
    script = content["command"].split()[1]
    assert (ROOT / script).is_file()
    assert Path(script).parent == Path("benchmarks") / file.parent.relative_to(ROOT / "results")
    low, high = content["interval"]
    assert low <= content["measured"] <= high
    assert {"claim", "claimed", "unit", "n", "hardware", "versions", "date"} <= set(content)


def test_results_and_benchmarks_have_the_same_folders():
    assert FILES
    assert not [path.name for path in (ROOT / "results").iterdir() if not path.is_dir()]
    folders = {path.name for path in (ROOT / "results").iterdir()}
    assert folders == {script.parent.name for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_what_a_benchmark_imports_is_there(script, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    runpy.run_path(str(script), run_name="imported")


def test_refusals_are_listed_by_sentence_and_operation(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    page = "a\n<!-- refusals: core/walk -->\nold\n<!-- end -->\nb"
    assert tables.filled(page) == page.replace("old", "No walk has been recorded.")
    rows = [
        ("a", "fold", "refused", "The layer 'x.1' is odd: | no."),
        ("b", "fold", "refused", "The layer 'y' is odd: | no."),
        ("b", "train", "refused", "No."),
        ("b", "invert", "done", ""),
    ]
    keys = ("network", "operation", "result", "sentence")
    (tmp_path / "results" / "core").mkdir(parents=True)
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
    (tmp_path / "results" / "core" / "walk.jsonl").write_text("\n".join(lines))
    assert tables.filled(page).splitlines() == [
        "a",
        "<!-- refusals: core/walk -->",
        "| sentence | operation | networks | such as |",
        "|---|---|---|---|",
        "| The layer '...' is odd: \\| no. | fold | 2 | a, b |",
        "| No. | train | 1 | b |",
        "<!-- end -->",
        "b",
    ]


def test_a_changed_number_is_noticed():
    page = next(page.read_text() for page in PAGES if "<!-- results:" in page.read_text())
    tampered = page.replace(" x | ", " y | ", 1)
    assert tables.filled(tampered) != tampered


def test_ratio_and_spread():
    ratio, low, high = recording.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (ratio, low, high) == (2.0, 2.0, 2.0) or low <= ratio <= high
    assert recording.spread([3.0, 1.0, 2.0])[0] == 2.0


def test_mean_and_percent():
    assert recording.mean_and_range([1.0, 2.0, 6.0]) == (3.0, 1.0, 6.0)
    value, low, high = recording.percent(90, 100)
    assert value == 90.0
    assert 82 < low < 83 and 94 < high < 95  # Wilson's interval: 82.6 to 94.5


def test_turns_are_interleaved_and_the_first_are_left_out():
    calls, ticks = [], iter(range(100))
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = timing.interleaved(runs, 3, warm_up=2, clock=lambda: float(next(ticks)))
    assert calls == ["a", "b"] * 5
    assert times == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_a_log_resumes_where_it_stopped(tmp_path):
    log, made = tmp_path / "rows" / "log.jsonl", []

    def run(variant: str, seed: int) -> dict:
        if (variant, seed) == ("b", 1) and len(made) == 3:
            raise KeyboardInterrupt
        made.append((variant, seed))
        return {"accuracy": seed / 3}

    keys = [{"variant": variant, "seed": seed} for seed in (0, 1) for variant in "ab"]
    with pytest.raises(KeyboardInterrupt):
        recording.run_rows(log, keys, run)
    assert [(row["variant"], row["seed"]) for row in recording.logged(log)] == [("a", 0), ("b", 0), ("a", 1)]
    made.clear()
    rows = recording.run_rows(log, keys, run)
    assert made == [("b", 1)]
    assert rows == [{**key, "accuracy": key["seed"] / 3} for key in keys] == recording.logged(log)
    assert recording.run_rows(log, keys[2:3], run) == rows[2:3]
    assert made == [("b", 1)]


def test_a_study_is_recorded_over_all_seeds_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "core" / "loop.py")])

    def study(seeds: list[int]) -> None:
        recording.log_and_record(
            "idea/digits",
            {"plain": "plain network", "control": "random weights"},
            seeds,
            lambda variant, seed: {"accuracy": (9 - seed) / 10 if variant == "plain" else 0.1, "seconds": 2.0},
            facts=lambda rows: {"rows": len(rows)},
            claimed={"plain": "80"},
            data="3 images",
        )

    study([0])
    study([1, 2])
    plain, control = (json.loads((tmp_path / "idea" / f"digits-{v}.json").read_text()) for v in ("plain", "control"))
    assert plain["name"] == "idea/digits-plain" and plain["command"] == "python benchmarks/core/loop.py"
    assert (plain["measured"], plain["interval"], plain["n"], plain["seed"]) == (80.0, [70.0, 90.0], 3, "0, 1, 2")
    assert (plain["claim"], plain["claimed"], control["claimed"]) == ("plain network", "80", "")
    assert (plain["rows"], plain["seconds"], plain["data"]) == (3, 2.0, "3 images")
    assert (control["measured"], control["interval"]) == (10.0, [10.0, 10.0])
    study([])
    assert len((tmp_path / "idea" / "digits.jsonl").read_text().splitlines()) == 6
