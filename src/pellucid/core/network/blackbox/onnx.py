"""A classifier in an ONNX file, run by onnxruntime on the CPU.

An ONNX file is a graph of operators, not code; what it could still do to a machine is refused before onnxruntime sees
it: operators from elsewhere, weights read from files elsewhere, and tensors that would fill the memory.
"""

from __future__ import annotations

import ast
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.core.errors import InputError, first_line, listed, shown
from pellucid.core.extras import extra
from pellucid.core.files.structured import read_bytes
from pellucid.core.network.blackbox.about import KEY, About
from pellucid.core.network.blackbox.box import BlackBox, described, softmax
from pellucid.core.network.blackbox.session import session_of

LARGEST = 2**31 - 1  # bytes of a file; more than protocol buffers can hold
MOST = 2**31  # numbers in one tensor of the computation
SIDE, CHANNELS, CLASSES = 16384, 4096, 10**6
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # what onnxruntime itself implements
_FLOATS = {1: torch.float32, 10: torch.float16, 11: torch.float64}
_NAMES = ("classes", "class_names", "labels", "names")  # metadata in which exporters store the classes


class OnnxBox(BlackBox):
    """A classifier in an ONNX file; see `BlackBox`."""

    kind = "an ONNX file"

    def __init__(
        self,
        file: str,
        run: Callable[[Any], Any],
        dtype: torch.dtype,
        shape: tuple[int | None, int | None, int | None, int | None],
        last: bool,
        num_classes: int | None,
        probabilities: bool,
    ) -> None:
        batch, channels, height, width = shape
        size = None if height is None or width is None else (height, width)
        super().__init__(file, channels, size, num_classes, batch)
        self._run, self._dtype, self._last, self._probabilities = run, dtype, last, probabilities

    def remarks(self) -> tuple[str, ...]:
        """What was taken for granted, in sentences."""
        last = f"{shown(self.file, 200)} is taken to have the channels of its images last."
        return (*((last,) if self._last else ()), *((softmax(self.file),) if self._probabilities else ()))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        x = images.permute(0, 2, 3, 1) if self._last else images
        try:
            found = self._run(x.to("cpu", self._dtype).contiguous().numpy())
        except Exception as error:  # whatever the graph does not take
            raise InputError(
                f"{shown(self.file, 200)} fails on a batch of {len(images)} images ({first_line(error)}): try "
                "--batch-size 1."
            ) from error
        logits = torch.from_numpy(found).to(images.device, torch.float32)
        # Of probabilities, the logarithms are logits: their softmax gives the probabilities back.
        return logits.clamp_min(torch.finfo(torch.float32).tiny).log() if self._probabilities else logits


def read_onnx(path: Path) -> OnnxBox:
    """The classifier in the ONNX file at `path`, with its classes and normalisation as far as the file names them.

    Its images are (B, C, H, W), also where the graph takes (B, H, W, C), which is assumed where the last of the sizes
    is 1, 3 or 4 and the second is not. Where its last operator is a softmax, it returns the logarithms.

    Raises:
        InputError: onnx or onnxruntime is missing, the file is damaged or does what it should not, or it is no
            classifier of images.
    """
    name = shown(str(path), 200)
    onnx = extra("onnx", "export", f"Opening {name}")
    extra("onnxruntime", "export", f"Opening {name}")
    content = read_bytes(path, LARGEST)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # the parser's own kind of error
        raise InputError(f"{name} is truncated, damaged or no ONNX file: {first_line(error)}.") from error
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{name} is truncated, damaged or no ONNX file: it holds no graph.")
    outside = _check(model, path, name)
    _check_sizes(onnx, model, name)
    inputs, dtype, shape, last = _input(model.graph, name)
    output, count = _output(model.graph, name)
    try:
        session = session_of(str(path) if outside else content)
    except Exception as error:  # onnxruntime's errors are of many kinds
        raise InputError(f"{name} cannot be run by onnxruntime: {first_line(error)}.") from error

    def run(images: Any) -> Any:
        return session.run([output], {inputs: images})[0]

    box = OnnxBox(str(path), run, dtype, shape, last, count, _ends_in_softmax(model.graph, output))
    return _declared(box, model, name)


# --- what a file may not do ---


def _check(model: Any, path: Path, name: str) -> bool:
    """Refuse operators and weights from elsewhere; whether there are weights in files next to this one."""
    own = {(function.domain, function.name) for function in model.functions}
    outside = False
    for graph in _graphs(model):
        for node in graph.node:
            if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own:
                raise InputError(
                    f"{name} uses the operator {shown(f'{node.domain}:{node.op_type}', 60)}, which onnxruntime does "
                    "not have: export the network with the operators of ONNX alone."
                )
        for tensor in _tensors(graph):
            if tensor.data_location == tensor.EXTERNAL:
                _check_outside(tensor, path, name)
                outside = True
    return outside


def _graphs(model: Any) -> Iterator[Any]:
    """The graph, the functions, and all graphs inside their nodes."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _tensors(graph: Any) -> Iterator[Any]:
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            yield attribute.t
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _check_outside(tensor: Any, path: Path, name: str) -> None:
    """Weights may lie in a regular file in the same folder, as exporters put them, and nowhere else."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    location = where.get("location", "")
    file = path.parent / location
    if location in ("", ".", "..") or os.path.basename(location) != location or "\\" in location or "\0" in location:
        raise InputError(
            f"{name} takes weights from {shown(location, 80)}, outside of its folder, which is never read: save it "
            "with its weights inside."
        )
    if file.is_symlink() or not file.is_file():
        raise InputError(
            f"{name} takes weights from {shown(location, 80)}, which is no file in its folder: put it there."
        )
    try:
        offset, length = int(where.get("offset", 0)), int(where.get("length", 0))
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise InputError(f"{name} takes weights from beyond the end of {shown(location, 80)}: it is truncated.")


def _check_sizes(onnx: Any, model: Any, name: str) -> None:
    """Refuse tensors of more numbers than a machine should be asked for, as far as the graph tells their shapes."""
    bare = type(model)()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # what a file says of its own shapes would be believed
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception:  # onnxruntime will say what is wrong with it
        graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim if size.HasField("dim_value")]
        if any(size < 0 for size in sizes) or math.prod(sizes) > MOST:
            raise InputError(
                f"{name} computes with {shown(value.name, 60)} of shape {shown(sizes, 60)}, more than is reasonable: "
                "it is damaged."
            )
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > MOST or min(tensor.dims, default=0) < 0:
            raise InputError(f"{name} is damaged: its tensor {shown(tensor.name, 60)} claims an absurd size.")


# --- what it is ---


def _input(graph: Any, name: str) -> tuple[str, torch.dtype, tuple[Any, Any, Any, Any], bool]:
    """Name, type, (batch, channels, height, width) and whether channels come last."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1:
        what = listed(value.name for value in inputs[:8]) or "nothing"
        raise InputError(f"{name} takes {what} as inputs, not images alone: export the network with one input.")
    kind = inputs[0].type.tensor_type
    sizes = [size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None for size in kind.shape.dim]
    if kind.elem_type not in _FLOATS or len(sizes) != 4:
        raise InputError(
            f"{name} takes {shown(inputs[0].name, 60)} with {len(sizes)} axes of ONNX's type {kind.elem_type}, not "
            "images (batch, channels, height, width) in floating point."
        )
    last = sizes[3] in (1, 3, 4) and sizes[1] not in (1, 3, 4)
    batch, channels, height, width = (sizes[at] for at in ((0, 3, 1, 2) if last else (0, 1, 2, 3)))
    if max(height or 0, width or 0) > SIDE or (channels or 0) > CHANNELS:
        raise InputError(f"{name} takes images of {channels} x {height} x {width}, more than is reasonable.")
    return inputs[0].name, _FLOATS[kind.elem_type], (batch, channels, height, width), last


def _output(graph: Any, name: str) -> tuple[str, int | None]:
    """The output (batch, classes), and the number of classes if it is stated."""
    shapes = {value.name: list(value.type.tensor_type.shape.dim) for value in graph.output}
    tables = [key for key, sizes in shapes.items() if len(sizes) == 2]
    if len(shapes) == 1:
        tables = list(shapes)
    if len(tables) != 1:
        raise InputError(
            f"{name} returns {listed(list(shapes)[:8])}, of which not exactly one is a table (batch, classes): export "
            "the network with its logits alone."
        )
    sizes = shapes[tables[0]]
    count = sizes[1].dim_value if len(sizes) == 2 and sizes[1].HasField("dim_value") else None
    if count is not None and not 0 < count <= CLASSES:
        raise InputError(f"{name} returns {count} numbers per image, which no classifier does.")
    return tables[0], count


def _ends_in_softmax(graph: Any, output: str) -> bool:
    """Whether the output comes straight from a softmax."""
    makers = {result: node for node in graph.node for result in node.output}
    while (node := makers.pop(output, None)) is not None and node.op_type in ("Identity", "Cast") and node.input:
        output = node.input[0]
    return node is not None and node.op_type == "Softmax" and node.domain in ("", "ai.onnx")


def _declared(box: OnnxBox, model: Any, name: str) -> OnnxBox:
    """`box` with the facts that the file names."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    known: dict[str, Any] = {"remarks": box.remarks()}
    if KEY in metadata:
        about = About.parse(metadata[KEY], f"{name} is damaged")
        if box.num_classes not in (None, about.num_classes) or box.in_channels not in (None, about.in_channels):
            raise InputError(f"{name} is damaged: it describes another network than it holds.")
        known |= {"classes": about.classes, "normalization": about.normalization}
    elif box.num_classes is not None:
        names = (_classes(metadata[key]) for key in _NAMES if key in metadata)
        known["classes"] = next((found for found in names if found and len(found) == box.num_classes), None)
    return described(box, **known)


def _classes(text: str) -> tuple[str, ...] | None:
    """Class names from a list, or a table from numbers, in JSON or as Python writes it."""
    if len(text) > 2**22:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(found, dict):
            by_number = {str(key): value for key, value in found.items()}
            found = [by_number.get(str(number)) for number in range(len(found))]
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return tuple(found)
    return None
