"""The keyword options of whitening layers: their names, their defaults, and which values are allowed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

from typing_extensions import Unpack

from pellucid.core.errors import InputError
from pellucid.whiten.isqrt import METHODS

Blocking = Literal["separate", "pooled"]
Grad = Literal["full", "mean", "none"]
Average = Literal["covariance", "roots"]


class Options(TypedDict, total=False):
    """Keyword options of every whitening layer; `FastDeconv2d` explains each."""

    n_iter: int
    eps: float
    relative_eps: bool
    momentum: float
    debias: bool
    method: str
    refresh: int
    freeze_after: int | None
    grad: Grad
    average: Average
    sync: bool


DEFAULTS: Options = {
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
    "sync": False,
}
# A classifier's head is one small layer: there the published gradient is cheap, and trains better.
HEAD: Options = {"method": "newton", "refresh": 1, "grad": "full"}
PUBLISHED: Options = {"method": "newton", "refresh": 1, "grad": "full", "average": "roots", "debias": False}

Init = TypeVar("Init", bound=Callable[..., None])


def explicit(**defaults: Unpack[Options]) -> Callable[[Init], Init]:
    """Decorate an `__init__` that takes `**options`: its signature, and so `help`, then lists them with their defaults,
    of which `defaults` overrides some."""

    def decorate(init: Init) -> Init:
        signature = inspect.signature(init)
        named = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        kinds = get_type_hints(Options)
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kinds[name])
            for name, value in {**DEFAULTS, **defaults}.items()
        ]
        vars(init)["__signature__"] = signature.replace(parameters=[*named, *options])
        return init

    return decorate


def completed(options: Options) -> dict[str, Any]:
    """`options` with the defaults of those that are not given.

    Raises:
        InputError: a value out of range, or values that exclude each other.
    """
    chosen: dict[str, Any] = {**DEFAULTS, **options}
    n_iter, eps, momentum, method = (chosen[name] for name in ("n_iter", "eps", "momentum", "method"))
    refresh, freeze_after, grad, average = (chosen[name] for name in ("refresh", "freeze_after", "grad", "average"))
    rules = [
        (n_iter >= 1, f"n_iter={n_iter} must be at least 1"),
        (eps >= 0, f"eps={eps} must be at least 0"),
        (0 < momentum <= 1, f"momentum={momentum} must be above 0 and at most 1"),
        (method in ("auto", *METHODS), f"method={method!r} must be auto, {', '.join(METHODS)}"),
        (refresh >= 1, f"refresh={refresh} must be at least 1"),
        (freeze_after is None or freeze_after >= 1, f"freeze_after={freeze_after} must be None or at least 1"),
        (grad in ("full", "mean", "none"), f"grad={grad!r} must be full, mean or none"),
        (average in ("covariance", "roots"), f"average={average!r} must be covariance or roots"),
        (grad != "full" or refresh == 1, f"grad='full' needs a new root at every step: set refresh=1, not {refresh}"),
        (
            grad != "full" or method not in ("auto", "eigh", "newton-warm"),
            f"grad='full' differentiates the root, which is not possible with method={method!r}: use newton, "
            "polynomial or cholesky",
        ),
        (average != "roots" or grad == "full", "average='roots' needs the root of every batch: use grad='full'"),
    ]
    for holds, sentence in rules:
        if not holds:
            raise InputError(f"A whitening layer's {sentence}.")
    return chosen


def check_blocks(block: int, sampling_stride: int = 1, blocks: str = "separate") -> None:
    """Raise InputError for a block size, sampling stride or blocking that no layer can have."""
    if block < 1:
        raise InputError(f"A whitening layer's block={block} must be at least 1.")
    if sampling_stride < 1:
        raise InputError(f"A whitening layer's sampling_stride={sampling_stride} must be at least 1.")
    if blocks not in ("separate", "pooled"):
        raise InputError(f"A whitening layer's blocks={blocks!r} must be separate or pooled.")
