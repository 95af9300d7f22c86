"""Initial weights for the families that normalise every convolution."""

from __future__ import annotations

from torch import nn


def initialise(model: nn.Module) -> nn.Module:
    """Kaiming normal convolutions in fan-out mode, zero biases; returns the same `model`.

    He et al. 2015, "Delving Deep into Rectifiers", section 2.2 (the backward condition): the weights have
    variance 2 / (kernel area x output channels). Batch norm (scale 1, shift 0) and linear layers keep
    torch's defaults.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
