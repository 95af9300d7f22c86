"""The options of whitening layers: defaults, the paper's settings, and what values are allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.keras.isqrt import METHODS

DEFAULTS: dict[str, Any] = {
    "n_iter": 5,
    "eps": 1e-5,
    "relative_eps": False,
    "momentum": 0.1,
    "debias": True,
    "method": "auto",
    "refresh": 16,
    "freeze_after": None,
    "grad": "mean",
    "average": "covariance",
}
# The head of a classifier is one small layer, where the published gradient costs little and trains better.
HEAD: dict[str, Any] = {"method": "newton", "refresh": 1, "grad": "full"}
PUBLISHED: dict[str, Any] = {**HEAD, "average": "roots", "debias": False}


def check(options: Mapping[str, Any]) -> None:
    """Check all options of a whitening layer (`Whitening` explains them).

    Raises:
        ValueError: one is out of range, or two exclude each other.
    """
    values = dict(options)
    block, sampling_stride, blocks = values["block"], values["sampling_stride"], values["blocks"]
    n_iter, eps, momentum, method = values["n_iter"], values["eps"], values["momentum"], values["method"]
    refresh, freeze_after, grad, average = (values[key] for key in ("refresh", "freeze_after", "grad", "average"))
    full = grad == "full"
    rules = [
        (block >= 1, f"block={block} must be at least 1"),
        (sampling_stride >= 1, f"sampling_stride={sampling_stride} must be at least 1"),
        (blocks in ("separate", "pooled"), f"blocks={blocks!r} must be separate or pooled"),
        (n_iter >= 1, f"n_iter={n_iter} must be at least 1"),
        (eps >= 0, f"eps={eps} must be at least 0"),
        (0 < momentum <= 1, f"momentum={momentum} must be above 0 and at most 1"),
        (method in ("auto", *METHODS), f"method={method!r} must be auto, {', '.join(METHODS[:-1])} or {METHODS[-1]}"),
        (refresh >= 1, f"refresh={refresh} must be at least 1"),
        (freeze_after is None or freeze_after >= 1, f"freeze_after={freeze_after} must be None or at least 1"),
        (grad in ("full", "mean", "none"), f"grad={grad!r} must be full, mean or none"),
        (average in ("covariance", "roots"), f"average={average!r} must be covariance or roots"),
        (not full or refresh == 1, f"grad='full' needs a root at every step: use refresh=1, not {refresh}"),
        (
            not full or method not in ("auto", "eigh", "newton-warm"),
            f"grad='full' needs a root that is differentiable, unlike that of method={method!r}: use newton, "
            "polynomial or cholesky",
        ),
        (average != "roots" or full, "average='roots' needs the root of every batch: use grad='full'"),
    ]
    for holds, sentence in rules:
        if not holds:
            raise ValueError(f"A whitening layer's {sentence}.")
