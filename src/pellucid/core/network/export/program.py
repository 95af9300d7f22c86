"""A network as a `torch.export` program: images (batch, C, H, W) -> logits (batch, K)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError, first_line
from pellucid.core.network.export.quiet import silenced

_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")


def program_of(model: nn.Module, example: Tensor, fixed_batch: int | None) -> torch.export.ExportedProgram:
    """The program that `model` runs on images like those of `example`.

    It holds neither the example nor where in whose files its operations were written.

    Args:
        model: on the CPU, in evaluation mode.
        example: (N, C, H, W), of which `fixed_batch` are used, or two.
        fixed_batch: number of images that the program takes; None for any.

    Raises:
        InputError: torch cannot export it, or only for a fixed number of images.
    """
    try:
        program = _traced(model, example, fixed_batch)
    except Exception as error:  # whatever tracing foreign code may raise
        name, why = type(model).__name__, first_line(error)
        if fixed_batch is None:
            try:
                _traced(model, example, 1)
            except Exception:
                pass
            else:
                raise InputError(
                    f"torch cannot export this {name} for any number of images ({why}): export it for batches of one "
                    "size with --fixed-batch 1, or fixed_batch=1 in Python."
                ) from error
        raise InputError(f"torch cannot export this {name} ({why}): keep it as a checkpoint.") from error
    program.graph.eliminate_dead_code()
    for node in program.graph.nodes:
        for key in _TRACES:
            node.meta.pop(key, None)
    program._example_inputs = None  # which would be stored as a pickle
    return program


def _traced(model: nn.Module, example: Tensor, fixed_batch: int | None) -> torch.export.ExportedProgram:
    # With one image, torch would take the batch for a dimension that never is anything else.
    count = fixed_batch or 2
    images = example[:1].expand(count, *example.shape[1:]).clone()
    shapes: Any = ({0: torch.export.Dim("batch", min=1)},) if fixed_batch is None else None
    with silenced(), torch.no_grad():
        return torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)
