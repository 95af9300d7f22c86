"""What a file says of the network in it, compared with the tensors in it before anything is built or allocated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pellucid.core.errors import InputError, first_line, shown
from pellucid.core.facts import Normalization
from pellucid.core.files.conform import conform
from pellucid.core.network import models, owncode
from pellucid.core.network.skeleton import skeleton
from pellucid.core.references import is_code

FACTS = {
    "description": dict[str, Any] | None,
    "classes": list[str] | None,
    "normalization": dict[str, list[float]] | None,
}
_SLACK = 2**24  # numbers that a network may hold besides its stored tensors: tables of window positions, masks


def claimed(file: Path, info: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Description, and classes and normalization, from a file's table, checked for their form."""
    what = f"{shown(str(file), 300)} is damaged"
    found = conform(info, FACTS, what)
    description, classes, norm = (found.get(key) for key in FACTS)
    size, channels = ((description or {}).get(key) for key in ("num_classes", "in_channels"))
    if classes is not None and description is not None and len(classes) != size:
        raise InputError(f"{what}: it names {len(classes)} classes but describes another number.")
    if norm is not None:
        try:
            norm = Normalization.of(norm)
        except InputError:
            raise InputError(f"{what}: its normalization is not a valid mean and std.") from None
        if norm is not None and channels is not None and norm.channels != channels:
            raise InputError(f"{what}: its normalization is not for {shown(channels)} channels.")
    return description, {"classes": None if classes is None else tuple(classes), "normalization": norm}


def permitted(
    file: Path,
    description: Mapping[str, Any],
    model: str | None,
    model_args: Mapping[str, Any] | None,
    remarks: list[str],
) -> dict[str, Any]:
    """A file's own description; one that names code says what its user named, since only that may run.

    A remark is added where the code is another than the one that the file was saved with.
    """
    named = description.get("model")
    if not is_code(named):
        if model_args and dict(model_args) != description.get("args", {}):
            raise InputError(f"{shown(str(file), 300)} records its own arguments: leave out --model-args.")
        return dict(description)
    if not is_code(model):
        raise InputError(
            f"{shown(str(file), 300)} holds a network of its user's own code, which runs only where you name it: give "
            f"--model {shown(named, 200)} if you trust that code."
        )
    assert isinstance(model, str)
    then, now = description.get("code"), owncode.fingerprint(model)
    if then and now and then != now:
        remarks.append(f"The code of {model} has changed since this network was saved.")
    args = model_args or description.get("args", {})
    rest = {key: value for key, value in description.items() if key != "args"}
    return {**rest, "model": model, **models.args_entry(args)}


def check_claim(file: Path, description: Mapping[str, Any], model: str | None, state: Mapping[str, Tensor]) -> None:
    """Check that a file's own description is of the model asked for, and of a network no larger than its tensors."""
    if model is not None and models.canonical(model) != description.get("model"):
        raise InputError(f"{str(file)!r} holds a {description.get('model')}, not a {model}.")
    skeleton = skeleton_of(file, description)
    asked = sum(tensor.numel() for tensor in (*skeleton.parameters(), *skeleton.buffers()))
    there = sum({tensor.data_ptr(): tensor.numel() for tensor in state.values()}.values())
    if asked > there + _SLACK:
        raise InputError(
            f"{str(file)!r} is damaged: it describes a network of {asked} numbers, but holds {there} of them."
        )


def skeleton_of(file: Path, description: Mapping[str, Any]) -> nn.Module:
    """The described network, without memory for its tensors, as far as it is not a user's own code that makes it."""
    try:
        if is_code(description.get("model")):
            return models.rebuild(description, run_code=True)
        return skeleton(lambda: models.rebuild(description))
    except InputError as error:
        raise InputError(f"{str(file)!r} holds no network that can be built: {error}") from error
    except Exception as error:  # a rule for layers may fail in any way on options from a damaged file
        raise InputError(f"{str(file)!r} holds no network that can be built: {first_line(error)}.") from error
