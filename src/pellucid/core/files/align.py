"""Match the names and shapes of stored tensors with those of a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pellucid.core.errors import InputError, near, shown

HEADS = ("fc", "classifier", "linear", "head")  # what published networks call the last layer
_TELLING = 8  # names that tell a network from any other; a lone `weight` and `bias` tell nothing
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
# Other code's names for our layers: shortcuts in CIFAR code bases, DenseNet in torchvision's old files.
_RENAMES = ((r"\.shortcut\.", ".downsample."), (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."))


def canonical_name(name: str) -> str:
    """The name that our networks have for a tensor that other code calls `name`."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def strip(state: Mapping[str, Tensor], target: Iterable[str] = ()) -> dict[str, Tensor]:
    """`state` without the prefixes of wrappers, except those that the names in `target` have themselves."""
    names = {key: key for key in state if key != "n_averaged"}  # of torch's averaged models
    own = {prefix for prefix in _WRAPPERS for key in target if key.startswith(prefix)}
    for _ in _WRAPPERS:
        for prefix in (prefix for prefix in _WRAPPERS if prefix not in own):
            shorter = {key: name.removeprefix(prefix) for key, name in names.items()}
            if len(set(shorter.values())) == len(shorter):
                names = shorter
    return {name: state[key] for key, name in names.items()}


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of `state` below `prefix`, such as `net.backbone`, without it.

    Raises:
        InputError: there are none; the message continues a sentence that begins with the file's name.
    """
    start = f"{prefix.rstrip('.')}."
    found = {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}
    if not found:
        begins = sorted({key.partition(".")[0] for key in state})
        hint = (
            near(prefix, begins, limit=6) or f"its names begin with {', '.join(shown(one, 40) for one in begins[:6])}."
        )
        raise InputError(f"holds no tensors under the prefix {shown(prefix)}: {hint}")
    return found


def inside(state: Mapping[str, Tensor], target: Iterable[str]) -> Mapping[str, Tensor]:
    """The tensors of the one network in `state` that `target` names, where it is part of a larger module.

    That is all under a prefix such as `net.backbone.` below which nine tenths of the names in `target` are found (the
    last layer may have another name). A state dict that has the names themselves, or no such prefix, is unchanged.

    Args:
        state: tensors by name.
        target: the names of a network's tensors, in its order.

    Raises:
        InputError: several prefixes fit; the message continues a sentence that begins with the file's name.
    """
    names = [name for name in target if not name.endswith("num_batches_tracked")]
    if len(names) < _TELLING or names[0] in state:
        return state
    prefixes = sorted({key.removesuffix(names[0]) for key in state if key.endswith(f".{names[0]}")})
    fits = [prefix for prefix in prefixes if sum(prefix + name in state for name in names) >= 0.9 * len(names)]
    if len(fits) > 1:
        listed = ", ".join(shown(prefix, 60) for prefix in fits[:5])
        raise InputError(f"holds such a network {len(fits)} times, under {listed}: choose one with --prefix.")
    return {key[len(fits[0]) :]: state[key] for key in state if key.startswith(fits[0])} if fits else state


def align(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    """The tensors that fit `expected`, under its names, and a report of those that do not."""
    for pattern, replacement in _RENAMES:
        renamed = {re.sub(pattern, replacement, key): value for key, value in state.items()}
        if len(renamed.keys() & expected.keys()) > len(state.keys() & expected.keys()):
            state = renamed
    expected = {key: value for key, value in expected.items() if isinstance(value, Tensor)}
    required = {key for key in expected if not key.endswith("num_batches_tracked")}
    heads = [
        {key.rpartition(".")[0] for key in keys} for keys in (state.keys() - expected.keys(), required - state.keys())
    ]
    if all(len(names) == 1 and names <= set(HEADS) for names in heads):
        (theirs,), (ours,) = heads
        state = {
            f"{ours}{key.removeprefix(theirs)}" if key.rpartition(".")[0] == theirs else key: value
            for key, value in state.items()
        }
    # Counters of batches, which half() makes floating-point, and other formats lists of one number.
    counters = {key for key, value in state.items() if key.endswith("num_batches_tracked") and value.numel() == 1}
    state = {key: value.reshape(()).round().long() if key in counters else value for key, value in state.items()}
    common = [key for key in expected if key in state]
    mismatched = [
        {"key": key, "file": _form(state[key]), "model": _form(expected[key])}
        for key in common
        if state[key].shape != expected[key].shape
        or state[key].is_floating_point() != expected[key].is_floating_point()
        or state[key].is_complex() != expected[key].is_complex()
    ]
    report: dict[str, list[Any]] = {
        "missing": [key for key in expected if key in required and key not in state],
        "unexpected": [key for key in state if key not in expected],
        "mismatched": mismatched,
    }
    wrong = {entry["key"] for entry in mismatched}
    return {key: state[key] for key in common if key not in wrong}, report


def complaint(file: Path, title: str, report: Mapping[str, list[Any]], remedy: str) -> str:
    """One sentence that lists the first few tensors that do not fit, by reason, and ends with the remedy."""
    shapes = [f"{e['key']} {e['file']} for {e['model']}" for e in report["mismatched"]]
    kinds = {"missing": report["missing"], "unexpected": report["unexpected"], "of another shape or type": shapes}
    lists = [
        f"{len(keys)} {kind} ({', '.join(str(key)[:120] for key in keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    return f"{str(file)!r} does not fit {title}, tensors are {'; '.join(lists)}: {remedy}."


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
