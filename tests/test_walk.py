"""The walk through other libraries' networks: what it counts as done is, and a silent fault is noticed."""

from __future__ import annotations

import copy
import importlib
import json
import signal
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import pellucid
from pellucid.core.errors import InputError

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "core"


@pytest.fixture
def walk(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("walk")
    for name in ("walk", "operations"):
        sys.modules.pop(name, None)


class Rows(list):
    """In the place of a pipe."""

    def send(self, row: dict) -> None:
        self.append(row)


def walked(walk: ModuleType, name: str) -> dict[str, dict]:
    rows, before = Rows(), signal.getsignal(signal.SIGALRM)
    try:
        with warnings.catch_warnings():
            walk._walked(name, 16, rows)
    finally:
        signal.signal(signal.SIGALRM, before)
    return dict(zip(walk.OPERATIONS, rows, strict=True))


@pytest.mark.slow
def test_a_sound_network_passes_every_operation(walk, monkeypatch):
    monkeypatch.delattr(pellucid, "export", raising=False)  # another file's tests are of it, and take their time
    monkeypatch.delitem(pellucid._HOME, "export", raising=False)
    rows = walked(walk, "resnet20")
    assert {name for name, row in rows.items() if row["result"] != "done"} == {"export"}
    assert rows["export"]["result"] == "skipped"
    assert all(row["seconds"] >= 0 for row in rows.values())


def test_silent_faults_errors_and_refusals_are_told_apart(walk, monkeypatch):
    monkeypatch.setattr(walk, "OPERATIONS", {name: walk.OPERATIONS[name] for name in ("fold", "invert", "statistics")})

    def careless(model: nn.Module, example: torch.Tensor) -> nn.Module:
        """Forgets one mean, which is not 0 in any network on the walk."""
        folded = copy.deepcopy(model)
        with torch.no_grad():
            next(m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)).running_mean[0] = 0
        return folded

    def refused(*args: object, **options: object) -> None:
        raise InputError("No.")

    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError("oh")

    for name, replaced in (("fold", careless), ("invert", refused), ("statistics", broken)):
        monkeypatch.setattr(pellucid, name, replaced)
    rows = walked(walk, "resnet20")
    assert [row["result"] for row in rows.values()] == ["wrong", "refused", "traceback"]
    assert rows["invert"]["sentence"] == "No."
    assert rows["statistics"]["sentence"].startswith("ZeroDivisionError: oh (test_walk.py:")
    assert {row["result"] for row in walked(walk, "timm:nothing").values()} == {"traceback"}


def test_the_last_row_of_an_operation_counts(walk, tmp_path):
    log = tmp_path / "walk.jsonl"
    rows = [{"network": "a", "operation": "fold", "result": result} for result in ("refused", "done")]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert walk.rows_of(log) == {("a", "fold"): rows[1]}


def test_the_walk_is_of_many_families(walk):
    known = walk.networks()
    assert len(known) >= 150 and len({family for family, _ in known.values()}) >= 50
    assert {name.partition(":")[0] for name in known} == {"timm", "torchvision"}
