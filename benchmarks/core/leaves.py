"""What a command leaves in a folder, beside what another run of it left: which files differ, and which are broken.

Not compared are wall times, dates and process numbers, by name: the keys in TIMES of JSON files; `date_saved` and the
addresses that serve as `shared_object_id` in a file of Keras; the names of TensorBoard's files, the time of each of its
records, and how often a record is there; the database of a search (its trials are compared by point, folder and scores)
and the logs of its trials; the bench's own `log` and `seconds`; locks. Everything else is compared byte for byte.
"""

from __future__ import annotations

import json
import re
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

TIMES = frozenset({"seconds", "images_per_second", "began", "date"})
OWN = frozenset({"log", "seconds", "log.txt", ".lock", "study.db-journal"})
_TRAIN = "seconds, images_per_second; began; TensorBoard's times and file names"
MAY_DIFFER = {
    "train": _TRAIN,
    "keras": f"{_TRAIN}; date_saved, shared_object_id",
    "synthesize": "nothing",
    "search": f"{_TRAIN}; the database's dates and cut trials; log.txt",
    "distill": _TRAIN,
    "open": "date",
    "invert": "seconds",
}


def differing(folder: Path, reference: Path) -> list[str]:
    """The files that only one of the folders has, and those with other content."""
    ours, theirs = content(folder), content(reference)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def broken(folder: Path, reference: Path | None) -> list[str]:
    """The files that can be seen in `folder` but not read; with a `reference`, also those that are not its files."""
    found = []
    for file in _files(folder):
        if file.suffix == ".db":  # a killed transaction is taken back by whoever opens it next
            continue
        try:
            seen = whole(file)
            if reference is not None and seen != whole(reference / file.relative_to(folder)):
                found.append(f"{file.relative_to(folder)}: not as in the reference")
        except Exception as error:
            found.append(f"{file.relative_to(folder)}: {type(error).__name__} {error}"[:200])
    return found


def content(folder: Path) -> dict[str, Any]:
    """What is compared: by relative path, and all of TensorBoard's records of a folder under one name."""
    found: dict[str, Any] = {}
    for file in _files(folder, temporary=True):
        name = str(file.relative_to(folder))
        if file.name.startswith("events.out.tfevents."):
            name = str(file.parent.relative_to(folder) / "events")
            found.setdefault(name, set()).update(whole(file))
        else:
            found[name] = whole(file)
    return found


def whole(file: Path) -> Any:
    """The content of a file without what may differ; an error if it is not whole."""
    if file.name.startswith("events.out.tfevents."):
        return _records(file)
    if file.suffix == ".json":
        return _timeless(json.loads(file.read_text()))
    if file.suffix == ".jsonl":
        lines = file.read_text().splitlines()
        if lines and not file.read_text().endswith("\n"):  # a row that is being appended, which readers leave out
            lines.pop()
        return [_timeless(json.loads(line)) for line in lines]
    if file.suffix == ".keras":
        return _archive(file)
    if file.suffix == ".db":
        return _trials(file)
    if file.suffix == ".html":
        text = file.read_text()
        assert text.rstrip().endswith("</html>")
        return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", "DATE", text)
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        safe_open(file, "numpy")
    if file.suffix == ".png":
        from PIL import Image

        Image.open(file).verify()
    return file.read_bytes()


def _files(folder: Path, temporary: bool = False) -> list[Path]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in OWN]
    return [file for file in files if temporary or not (file.name.startswith(".") and ".tmp" in file.name)]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _records(file: Path) -> set[tuple[str, int, float]]:
    """(tag, step, value) of the scalars in a file of TensorBoard; a record cut at the end is left out, as it does."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = set()
    for event in LegacyEventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.tag not in TIMES:
                found.add((value.tag, event.step, value.simple_value))
    return found


def _archive(file: Path) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        found: dict[str, Any] = {name: archive.read(name) for name in archive.namelist()}
    saved = json.loads(found["metadata.json"])
    found["metadata.json"] = {key: value for key, value in saved.items() if key != "date_saved"}
    found["config.json"] = re.sub(rb'"shared_object_id": \d+', b"", found["config.json"])
    return found


def _trials(file: Path) -> list[tuple[str, ...]]:
    """(point, folder, scores) of the finished trials in the database of a search."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        rows = database.execute(
            "SELECT t.trial_id, a.key, a.value_json FROM trials t JOIN trial_user_attributes a USING (trial_id) "
            "WHERE t.state = 'COMPLETE' AND a.key IN ('point', 'folder', 'scores')"
        ).fetchall()
    trials: dict[int, dict[str, str]] = {}
    for number, key, value in rows:
        trials.setdefault(number, {})[key] = value
    return sorted(tuple(value for _, value in sorted(trial.items())) for trial in trials.values())
