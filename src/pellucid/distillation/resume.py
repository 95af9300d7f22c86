"""Beginning a folder of synthesised images, or continuing one that was begun with the same settings."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pellucid.core.errors import InputError, shown
from pellucid.core.facts import facts
from pellucid.core.files.atomic import remove_temporaries, write_atomic
from pellucid.core.network.statistics import Statistics
from pellucid.distillation.folder import BATCHES, LABELS, MANIFEST, fingerprint, read_manifest
from pellucid.inversion.generator import Generator
from pellucid.inversion.presets import Recipe


def describe(
    model: nn.Module,
    found: Recipe,
    names: Sequence[str],
    wanted: Sequence[int],
    shape: Sequence[int],
    *,
    per_class: int,
    batch_size: int,
    seed: int,
    statistics: Statistics | None,
    verifier: nn.Module | None,
) -> dict[str, Any]:
    """What `synthesis.json` records: a folder is continued only with equal "settings".

    Args:
        model: the network that is inverted.
        found: the recipe.
        names: all classes of the network.
        wanted: the labels of the classes that are synthesised.
        shape: (C, H, W) of an image.
        per_class, batch_size, seed, statistics, verifier: as in `synthesize`.
    """
    settings = {
        "per_class": per_class, "batch_size": batch_size, "seed": seed, "recipe": _described(found),
        "classes": [names[label] for label in wanted], "shape": list(shape),
        "network": fingerprint(model), "verifier": None if verifier is None else fingerprint(verifier),
        "statistics": None if statistics is None else _digest(statistics),
    }  # fmt: skip
    return {
        "classes": list(names),
        "settings": settings,
        "normalization": facts(model).to_json()["normalization"],
        "real_images": "none" if statistics is None else "those that the given statistics were recorded from",
    }


def begin(path: Path, manifest: dict[str, Any]) -> Any:
    """Make the folder, or continue it if it was begun with the same settings; returns its lock, which is held.

    Raises:
        InputError: the folder holds other files or other settings, or another process is using it.
    """
    from filelock import FileLock, Timeout

    strange = [p for p in path.glob("*") if p.name != ".lock" and not p.name.endswith(".tmp")]
    if strange and not read_manifest(path):
        raise InputError(f"{str(path)!r} holds files that are not a synthesis: give an empty folder.")
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"Another process is synthesising into {str(path)!r}: wait for it, or give another folder."
        ) from None
    begun = read_manifest(path).get("settings")
    if begun is None:
        write_atomic(path / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    elif begun != manifest["settings"]:
        lock.release()
        raise InputError(f"{str(path)!r} was begun with {_difference(begun, manifest['settings'])}.")
    for stray in (path, path / BATCHES, *(path / name for name in manifest["classes"])):
        remove_temporaries(stray)
    if (path / LABELS).is_file():  # a process was killed before it removed the batches of a complete folder
        shutil.rmtree(path / BATCHES, ignore_errors=True)
    return lock


def _difference(begun: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first setting that differs, as the rest of a sentence."""
    if unknown := [key for key in begun if key not in wanted]:
        return f"the setting {shown(unknown[0])}, which this version does not know: give another folder"
    if missing := [key for key in wanted if key not in begun]:
        return f"no setting {missing[0].replace('_', ' ')!r}, which this version needs: give another folder"
    key = next(key for key, value in wanted.items() if begun[key] != value)
    was, now = begun[key], wanted[key]
    if key == "recipe":  # long lines: show only what differs
        words = [re.split(r"[(),\s]+", str(value)) for value in (was, now)]
        was, now = (" ".join(w for w in words[i] if w not in words[1 - i]) or "less" for i in (0, 1))
    return f"{key.replace('_', ' ')} {was!r}, not {now!r}: give the same, or another folder"


def _described(found: Recipe) -> str:
    """The recipe as text, with a digest of the weights that a generator starts from."""
    weights = found.start.weights if isinstance(found.start, Generator) else None
    if weights is None:
        return repr(found)
    return f"{found!r}, weights={hashlib.sha256(weights.detach().cpu().numpy().tobytes()).hexdigest()}"


def _digest(statistics: Statistics) -> str:
    """SHA-256 of a statistics table."""
    digest = hashlib.sha256()
    for name, moments in statistics.items():
        for value in (moments.mean, moments.var, moments.cov):
            digest.update(b"" if value is None else value.detach().cpu().double().contiguous().numpy().tobytes())
        digest.update(name.encode())
    return digest.hexdigest()
