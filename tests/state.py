"""What a call must leave as it found it: modes, gradients and hooks of networks, random state, determinism."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn


def state(*models: nn.Module) -> dict[str, Any]:
    """All of it, as values that can be compared."""
    modules = [module for model in models for module in model.modules()]
    return {
        "modes": [module.training for module in modules],
        "gradients": [parameter.requires_grad for model in models for parameter in model.parameters()],
        "hooks": [(len(m._forward_pre_hooks), len(m._forward_hooks), "forward" in vars(m)) for m in modules],
        "weights": [value.tolist() for model in models for value in model.state_dict().values()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }


@contextlib.contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """The block leaves everything as it was: in these networks, which are given mixed modes, and in the process."""
    for model in models:
        model.train()
        first = next(model.children(), model)
        first.eval()
        next(model.parameters()).requires_grad_(False)
    torch.manual_seed(11)
    before = state(*models)
    try:
        yield
        after = state(*models)
        assert [key for key in before if before[key] != after[key]] == []
    finally:
        for model in models:
            model.eval().requires_grad_(True)
