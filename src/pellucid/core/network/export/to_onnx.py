"""A `torch.export` program as the content of an ONNX file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pellucid.core.errors import InputError, first_line
from pellucid.core.extras import extra
from pellucid.core.network.blackbox.about import KEY, About
from pellucid.core.network.blackbox.session import session_of
from pellucid.core.network.export.quiet import silenced

IMAGES, LOGITS = "images", "logits"


def check_onnx() -> None:
    """Refuse to begin without what is needed at the end.

    Raises:
        InputError: a library of the extra `export` is missing.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        extra(name, "export", "Exporting to ONNX")


def to_onnx(program: torch.export.ExportedProgram, about: About) -> tuple[bytes, Counter[str]]:
    """The file's content, and how often its graph uses each operator.

    Raises:
        InputError: an operation that ONNX does not have in this opset, or more than the two gigabytes of one file.
    """
    shapes: Any = ({0: "batch"},) if about.batch is None else None
    try:
        with silenced():
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=about.opset,
                input_names=[IMAGES],
                output_names=[LOGITS],
                dynamic_shapes=shapes,
            )
            model: Any = made.model_proto  # type: ignore[union-attr]
    except Exception as error:  # the exporter raises errors of many kinds
        raise InputError(
            f"This network cannot be written as ONNX of opset {about.opset} ({first_line(error.__cause__ or error)}): "
            "try another --opset, or --to pt2."
        ) from error
    found = {one.domain: one.version for one in model.opset_import}.get("")
    if found != about.opset:
        raise InputError(
            f"This network cannot be written in opset {about.opset}, only in {found}: give --opset {found}."
        )
    _label(model, about)
    try:
        content = model.SerializeToString()
    except Exception as error:
        raise InputError(
            f"This network is too large for one ONNX file ({first_line(error)}): export it with --to pt2."
        ) from error
    return content, Counter(node.op_type for node in model.graph.node)


def _label(model: Any, about: About) -> None:
    """Replace what the exporter notes on every node by one sentence and one table on the whole file."""
    from pellucid import __version__

    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ClearField("metadata_props")
    model.metadata_props.add(key=KEY, value=about.text())
    # The name by which `core.files.ours` knows the file.
    model.producer_name, model.producer_version = KEY, __version__
    height, width = about.image_size
    norm = about.normalization
    how = "normalised as in training" if norm is None else f"(x - mean) / std of pixels x from 0 to 1, {norm.to_json()}"
    model.doc_string = (
        f"{IMAGES}: ({about.batch or 'batch'}, {about.in_channels}, {height}, {width}), {how}; "
        f"{LOGITS}: ({about.batch or 'batch'}, {about.num_classes})"
    )


def run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    """The network in what `to_onnx` wrote, as onnxruntime computes it on the CPU."""
    session = session_of(content)

    def run(images: Tensor) -> Tensor:
        (found,) = session.run(None, {IMAGES: images.numpy()})
        return torch.from_numpy(found)

    return run
