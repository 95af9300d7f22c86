"""One file per model: safetensors with a JSON description, never pickle; foreign checkpoints can be read too.

A file of ours holds the tensors of the state dict and, under the metadata key "pellucid", the JSON table
{"format": 1, "description", "classes", "normalization", "aliases", ...}. `description` rebuilds the network
(`core.network.models`), `normalization` is how its input was normalised, `aliases` names tied tensors, which are stored
once. Whatever a file claims is compared with the tensors in it before anything of the claimed size is allocated.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError, first_line, shown
from pellucid.core.facts import ModelFacts, declare, facts, unwrapped
from pellucid.core.files import foreign, sniff
from pellucid.core.files.align import align, complaint, inside, strip, under
from pellucid.core.files.structured import read_json
from pellucid.core.files.tensors import read_tensors, save_tensors
from pellucid.core.network import described, models
from pellucid.core.network.blackbox.box import needs_layers
from pellucid.core.network.blackbox.open import black_box
from pellucid.core.network.claims import check_claim, claimed, permitted, skeleton_of
from pellucid.core.network.meaning import other_meanings, recognized, remedy
from pellucid.core.network.projects import is_published, project_of, published_normalization, training_of
from pellucid.core.registry import Registry

# --- writing ---


def save(model: nn.Module, path: str | os.PathLike[str], **info: Any) -> None:
    """Write `model` to the file `path`, from which `load` reads it; an old file is replaced whole or not at all.

    The file also holds the model's description, classes and normalisation (`pellucid.facts`). A model without a
    description can only be loaded into a module of the same structure.

    Args:
        model: any network.
        path: a .safetensors file.
        info: more to store, anything that JSON can hold.

    Raises:
        InputError: something in the model's state cannot be stored.
        OSError: the disk is full, for example; the old file is untouched.
    """
    needs_layers(model, "Saving a checkpoint")
    model = unwrapped(model)
    state = model.state_dict()
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise InputError(f"{odd[0]!r} in the model's state is not a tensor and cannot be saved.")
    save_tensors(state, path, **{**facts(model).to_json(), **info})


def load(
    path: str | os.PathLike[str],
    model: str | nn.Module | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    device: str | torch.device = "cpu",
    strict: bool = True,
) -> nn.Module:
    """Load the model stored at `path`.

    torch's random state is left untouched.

    Args:
        path: a file written by `save`; a run folder (its best weights, or else its last); or a foreign checkpoint
            (.pth, .th, .pt, .ckpt, .safetensors), of which only tensors are ever read. Or an ONNX file (.onnx, or
            onnx:FILE) or a `torch.export` program (.pt2), which become modules that only predict.
        model: what a foreign checkpoint holds: a name for `build`, whose classes, channels and form are then read from
            the tensors, or a module to load into. Nested state dicts, the prefixes of wrappers, and other names of the
            last layer are understood. For a network of your own code it is FILE.py:FACTORY, which is run, whatever the
            file says of itself.
        model_args: arguments of that factory, or of a published network; default those that the file records.
        prefix: where in a larger module the network is, such as "net.backbone"; default wherever it fits.
        device: where to put the model.
        strict: refuse tensors that are missing, unexpected or of another shape; otherwise load those that fit. Files
            with their own description are always strict.

    Returns:
        The model in evaluation mode. `pellucid.facts` gives its description, classes and normalisation, as far as they
        are known, what did not fit (`load_report`), and what there is to say of how it was found (`remarks`).

    Raises:
        InputError: anything wrong with the file; a module that was passed in is then unchanged.
    """
    if (box := black_box(path, model, model_args, prefix)) is not None:
        return box.to(device)
    file, place = _locate(Path(path))
    state, info = (foreign.read(file), {}) if sniff.kind(file) == "torch" else read_tensors(file, place)
    state = _decoded(file, state, info)
    description, known = claimed(file, info)
    claims = description is not None
    remarks: list[str] = []
    if prefix is not None:
        state = _continued(file, lambda: under(strip(state, (prefix,)), prefix))
    given = model
    with torch.random.fork_rng(devices=[]):
        if isinstance(model, nn.Module):
            target = unwrapped(model)
            title, own = f"the given {type(target).__name__}", target.state_dict()
            found = _continued(file, lambda: inside(strip(state, own), own))
            fitting, report = align(found, own)
        else:
            if description is None:
                found, description = _identified(file, strip(state), model, model_args, known, remarks)
            else:
                found, strict = state, True
                description = permitted(file, description, model, model_args, remarks)
                check_claim(file, description, model, found)
            title = str(description["model"])
            fitting, report = align(found, skeleton_of(file, description).state_dict())
        if strict and any(report.values()):
            raise InputError(complaint(file, title, report, remedy(found)))
        if not isinstance(model, nn.Module):
            assert description is not None
            target = models.rebuild(description, run_code=True)  # of which `permitted` has seen to it that it may
            if info and (dtype := _dtype(fitting)) is not None:
                target.to(dtype)
    versioned = OrderedDict(fitting)
    # Which versions of its layers a state dict is of, as torch records it: some layers refuse one without.
    versioned._metadata = getattr(target.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    try:
        target.load_state_dict(versioned, strict=False)
        target.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"{str(file)!r} does not load on {device}: {first_line(error)}.") from error
    if facts(target).description is None:
        known["description"] = description
    known["foreign"] = not isinstance(model, nn.Module) and not claims
    known = {key: value for key, value in known.items() if value is not None}
    declare(target, **known, load_report=report, remarks=tuple(remarks))
    return (given if isinstance(given, nn.Module) else target).eval()


Decoder = Callable[[dict[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]

# (tensors, table) -> state dict, for files whose table says `"encoding": name`. A decoder compares what the table
# claims with the tensors before it allocates anything of that size; the message of its InputError continues a sentence
# that begins with the file's name.
ENCODINGS: Registry[Decoder] = Registry("encoding", own="ENCODINGS")


def _decoded(file: Path, state: dict[str, Tensor], info: Mapping[str, Any]) -> dict[str, Tensor]:
    """`state` itself, or what the idea that encoded it decodes it to."""
    encoding = info.get("encoding")
    if encoding is None:
        return state
    if not isinstance(encoding, str) or encoding not in ENCODINGS.names():
        raise InputError(f"{str(file)!r} is stored in a way that this version of pellucid does not know.")
    try:
        return ENCODINGS[encoding](state, info)
    except InputError as error:
        raise InputError(f"{str(file)!r} {error}") from error


def _locate(path: Path) -> tuple[Path, str]:
    """The file that holds the weights, and the prefix of its tensors' names."""
    if not path.is_dir():
        return path, ""
    if (path / "settings.yaml").is_file():
        if (path / "best.safetensors").is_file():
            return path / "best.safetensors", ""
        path = path / "last.ckpt"
    pointer = path / "checkpoint.json"
    if not pointer.is_file():
        raise InputError(f"The folder {str(path)!r} holds no checkpoint: give a run folder after its first one.")
    name = read_json(pointer, {"file": str})["file"]
    if Path(name).name != name:
        raise InputError(f"{str(pointer)!r} is damaged: it points out of its folder.")
    return path / name, "model."


def _continued(file: Path, find: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What `find` returns; its errors continue a sentence that begins with the file's name."""
    try:
        return dict(find())
    except InputError as error:
        raise InputError(f"{shown(str(file), 300)} {error}") from None


def _identified(
    file: Path,
    state: Mapping[str, Tensor],
    model: str | None,
    args: Mapping[str, Any] | None,
    known: dict[str, Any],
    remarks: list[str],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the network in a foreign checkpoint, under our names, and its description."""
    if model is None:
        name = recognized(file, state, remarks)
    else:
        name = model
        remarks += other_meanings(name, state)
    outline = described.outline(name, args).state_dict()
    found = _continued(file, lambda: inside(state, outline))
    description = _described(file, name, found, args)
    if is_published(description["model"]):
        found = _as_published(file, description, found, known, remarks)
    return found, description


def _described(file: Path, model: str, state: Mapping[str, Tensor], args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The description of a foreign checkpoint from its tensors' shapes."""
    try:
        return described.describe(state, model, args)
    except InputError as error:
        raise InputError(f"{str(file)!r}: {error}") from error


def _as_published(
    file: Path, description: Mapping[str, Any], state: Mapping[str, Tensor], known: dict[str, Any], remarks: list[str]
) -> dict[str, Tensor]:
    """The tensors of a published network as its project reads them; what its images were is assumed, and remarked."""
    project, own = project_of(description["model"])
    try:
        found = project.read(own, state, description.get("args", {}))
    except InputError as error:
        raise InputError(f"{str(file)!r}: {error}") from error
    if known["normalization"] is None:
        known["normalization"] = published_normalization(ModelFacts(description))
        remarks.append(training_of(ModelFacts(description, normalization=known["normalization"])))
    return found


def _dtype(state: Mapping[str, Tensor]) -> torch.dtype | None:
    """The floating-point type that all tensors share, if networks are kept in it and it is not the default; or None."""
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= {torch.float16, torch.bfloat16, torch.float64} else None
