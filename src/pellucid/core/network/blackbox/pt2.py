"""A classifier in a file of `torch.export.save`.

Not read by `torch.export.load`, which unpickles what a stranger may have written (weights, constants, example inputs),
evaluates shapes as Python, and loads compiled libraries. Of the archive only raw numbers and one JSON graph are read
here; the graph's operators are checked against a list and run one by one. Example inputs, traces and guards are
ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.core.errors import InputError, first_line, shown
from pellucid.core.files.structured import check_regular, parse_json
from pellucid.core.network.blackbox.about import KEY, About
from pellucid.core.network.blackbox.archive import MOST_JSON, Archive, dtype_of, tensors_of
from pellucid.core.network.blackbox.box import BlackBox, described, softmax
from pellucid.core.network.blackbox.program import Ref, Step, limited, run, steps_of

SCHEMA = 8  # major version of the format; torch 2.5 to 2.13
MOST = 2**31  # numbers in one tensor of the computation, for one or two images
SIDE, CHANNELS, CLASSES = 16384, 4096, 10**6
_SOFTMAX = ("torch.ops.aten.softmax.int", "torch.ops.aten._softmax.default")
_PAYLOAD = {"config": dict[str, dict[str, Any]]}
_PROGRAM = {
    "graph_module": {"graph": dict[str, Any], "signature": dict[str, list[Any]]},
    "schema_version": dict[str, int],
}


class ProgramBox(BlackBox):
    """A classifier in a file of `torch.export.save`; see `BlackBox`."""

    kind = "a torch.export program"
    differentiable = True

    def __init__(
        self,
        file: str,
        shape: tuple[int | None, int | None, int | None, int | None],
        dtype: torch.dtype,
        steps: tuple[Step, ...],
        weights: Mapping[str, Tensor],
        images: str,
        logits: str,
    ) -> None:
        batch, channels, height, width = shape
        size = None if height is None or width is None else (height, width)
        super().__init__(file, channels, size, None, batch)
        self._dtype, self._steps, self._images, self._logits = dtype, steps, images, logits
        self._names = list(weights)
        for number, tensor in enumerate(weights.values()):
            self.register_buffer(f"weight_{number}", tensor, persistent=False)
        maker = next((step for step in reversed(steps) if Ref(logits) in step.results), None)
        self._probabilities = maker is not None and maker.target in _SOFTMAX

    def _apply(self, fn: Any, recurse: bool = True) -> ProgramBox:  # torch's one hook into half() and double()
        # The program states the type of every step, so that of its weights stays.
        moved: ProgramBox = super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
        return moved

    def predict(self, images: Tensor) -> Tensor:
        values: dict[str, Any] = {name: getattr(self, f"weight_{number}") for number, name in enumerate(self._names)}
        values[self._images] = images.to(self._dtype).clone()  # the program may work in place
        try:
            run(self._steps, values, images.device)
            logits: Tensor = values[self._logits]
        except Exception as error:  # whatever the operators do not take
            raise InputError(
                f"{shown(self.file, 200)} fails on a batch of {len(images)} images ({first_line(error)}): try "
                "--batch-size 1."
            ) from error
        # Of probabilities, the logarithms are logits: their softmax gives the probabilities back.
        return logits.clamp_min(torch.finfo(logits.dtype).tiny).log() if self._probabilities else logits

    def dry_run(self, what: str) -> tuple[int, ...]:
        """The shape of the logits, found without memory for any tensor.

        Raises:
            InputError: an operator refuses its input, or a tensor is larger than any network's.
        """
        from torch._subclasses.fake_tensor import FakeTensorMode

        cpu = torch.device("cpu")
        with torch.no_grad(), FakeTensorMode() as fake:
            values: dict[str, Any] = {
                name: fake.from_tensor(getattr(self, f"weight_{number}")) for number, name in enumerate(self._names)
            }
            size = self.image_size or (224, 224)
            images = torch.empty((self.batch or 2, self.in_channels or 3, *size), dtype=self._dtype)
            values[self._images] = images
            try:
                run(self._steps, values, cpu, limited(MOST, what))
                return tuple(values[self._logits].shape)
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"{what} cannot be run: {first_line(error)}.") from error


def read_pt2(path: Path) -> ProgramBox:
    """The classifier in the file of `torch.export.save` at `path`, with its classes and normalisation if it names them.

    Where its last operator is a softmax, it returns the logarithms.

    Raises:
        InputError: the file is damaged, holds pickles that would be needed, calls an operator that is not allowed, or
            is no classifier of images.
    """
    what = shown(str(path), 200)
    check_regular(path)
    archive = Archive(path, what)
    try:
        return _read(archive, path, what)
    finally:
        archive.close()


def _read(archive: Archive, path: Path, what: str) -> ProgramBox:
    models = [name for name in archive.names() if name.startswith("models/") and name.endswith(".json")]
    if len(models) != 1:
        raise InputError(f"{what} holds {len(models)} programs, and one is needed: save one with torch.export.save.")
    model = models[0].removeprefix("models/").removesuffix(".json")
    program = parse_json(archive.read(models[0], MOST_JSON), f"{what} is damaged", _PROGRAM, finite=False)
    if program["schema_version"].get("major") != SCHEMA:
        raise InputError(f"{what} is of another version of torch.export: export the network again with this torch.")
    graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
    try:
        names, images, logits = _signature(signature, what)
        meta = graph["tensor_values"][images]
        dtype, shape = dtype_of(meta["dtype"], what), tuple(one.get("as_int") for one in meta["sizes"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise InputError(f"{what} is damaged: its inputs and outputs cannot be read.") from error
    batch, channels, height, width = _image_shape(shape, dtype, what)
    weights = _weights(archive, model, names, what)
    steps = steps_of(graph, {*weights, logits}, what)
    box = ProgramBox(str(path), (batch, channels, height, width), dtype, steps, weights, images, logits)
    found = box.dry_run(what)
    if len(found) != 2 or found[0] != (batch or 2) or not 0 < found[1] <= CLASSES:
        raise InputError(
            f"{what} returns {list(found)} for {batch or 2} images: a classifier returns (images, classes)."
        )
    box.num_classes = found[1]
    remarks = (softmax(box.file),) if box._probabilities else ()
    if f"extra/{KEY}.json" not in archive.names():
        return described(box, remarks=remarks)
    about = About.parse(archive.read(f"extra/{KEY}.json", MOST_JSON), f"{what} is damaged")
    if about.num_classes != box.num_classes or about.in_channels != (channels or about.in_channels):
        raise InputError(f"{what} is damaged: it describes another network than it holds.")
    return described(box, classes=about.classes, normalization=about.normalization, remarks=remarks)


def _signature(signature: Mapping[str, Any], what: str) -> tuple[dict[str, str], str, str]:
    """The weights by the names of their values, and the names of the images and the logits."""
    weights, images = {}, []
    for spec in signature["input_specs"]:
        kind, entry = next(iter(spec.items()))
        if kind == "user_input":
            images.append(entry["arg"]["as_tensor"]["name"] if "as_tensor" in entry["arg"] else None)
        elif kind in ("parameter", "buffer", "tensor_constant"):
            weights[entry["arg"]["name"]] = entry[f"{kind}_name"]
        elif kind != "constant_input":
            raise InputError(f"{what} takes {shown(kind, 40)}, not only images and weights: export it to ONNX.")
    kinds = {next(iter(spec)) for spec in signature["output_specs"]}
    if kinds - {"user_output", "user_input_mutation"}:  # it works on a copy of the images
        raise InputError(f"{what} changes its own weights when it is run: export model.eval().")
    outputs = [spec["user_output"]["arg"] for spec in signature["output_specs"] if "user_output" in spec]
    if len(images) != 1 or images[0] is None or len(outputs) != 1 or "as_tensor" not in outputs[0]:
        raise InputError(
            f"{what} takes {len(images)} inputs and returns {len(outputs)} outputs: export the network as a function "
            "from images to logits; pellucid.wrap makes it one."
        )
    return weights, images[0], outputs[0]["as_tensor"]["name"]


def _image_shape(shape: tuple[Any, ...], dtype: torch.dtype, what: str) -> tuple[Any, Any, Any, Any]:
    if len(shape) != 4 or not dtype.is_floating_point:
        raise InputError(
            f"{what} takes a tensor with {len(shape)} axes of {dtype}, not images (batch, channels, height, width) in "
            "floating point."
        )
    most = (MOST, CHANNELS, SIDE, SIDE)
    if any(
        size is not None and not (isinstance(size, int) and 0 < size <= top)
        for size, top in zip(shape, most, strict=True)
    ):
        raise InputError(f"{what} takes images of shape {shown(list(shape), 60)}, more than is reasonable.")
    return shape[0], shape[1], shape[2], shape[3]


def _weights(archive: Archive, model: str, names: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """The weights and constants that the program reads, by the names of their values."""
    tensors: dict[str, Tensor] = {}
    needed = set(names.values())
    for folder, table in (("data/weights/", "weights"), ("data/constants/", "constants")):
        if f"{folder}{model}.pt" in archive.names():
            raise InputError(
                f"{what} was written by an older torch, as a pickle: export the network with torch 2.9 or newer."
            )
        record = f"{folder}{model}_{table}_config.json"
        config = parse_json(archive.read(record, MOST_JSON), f"{what} is damaged", _PAYLOAD)["config"]
        try:
            tensors |= tensors_of(archive, folder, {key: config[key] for key in config if key in needed}, what)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{what} is damaged: its table of {table} cannot be read.") from error
    if missing := needed - tensors.keys():
        raise InputError(f"{what} is damaged: the values of {shown(sorted(missing)[0], 60)} are missing.")
    return {name: tensors[key] for name, key in names.items()}
