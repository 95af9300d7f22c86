"""Numbers in README and docs are those of `results/`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("results_module", ROOT / "benchmarks" / "results.py")
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tables_are_as_generated(page):
    assert results.filled(page.read_text()) == page.read_text(), "run python benchmarks/results.py"


@pytest.mark.parametrize("file", sorted((ROOT / "results").glob("*.json")), ids=lambda p: p.stem)
def test_a_result_says_how_it_was_made(file):
    content = json.loads(file.read_text())
    assert content["name"] == file.stem
    script = content["command"].split()[1]
    assert (ROOT / script).is_file()
    low, high = content["interval"]
    assert low <= content["measured"] <= high
    assert {"claim", "claimed", "unit", "n", "hardware", "versions", "date"} <= set(content)


def test_a_changed_number_is_noticed():
    page = next(page.read_text() for page in PAGES if "<!-- results:" in page.read_text())
    tampered = page.replace(" x | ", " y | ", 1)
    assert results.filled(tampered) != tampered


def test_ratio_and_spread():
    ratio, low, high = results.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (ratio, low, high) == (2.0, 2.0, 2.0) or low <= ratio <= high
    assert results.spread([3.0, 1.0, 2.0])[0] == 2.0
