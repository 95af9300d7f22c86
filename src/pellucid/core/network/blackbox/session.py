"""onnxruntime on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from pellucid.core.extras import extra


def session_of(model: bytes | str) -> Any:
    """An onnxruntime session on the CPU, which prints nothing, for the content of a file or its path."""
    runtime = extra("onnxruntime", "export", "Running an ONNX file")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
