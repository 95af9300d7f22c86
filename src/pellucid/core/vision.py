"""The only place that imports torchvision and timm (extra `vision`).

With a CPU build of torch, the torchvision wheel from the package index cannot load its compiled operators, and its
import fails on the names of two of them. Lightning and torchmetrics import torchvision if it is installed, so they fail
too. `repair` declares the two names and imports again; everything but the box operators and torchvision's own image
decoders then works. On an intact installation it changes nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import sys
from types import ModuleType

import torch
from torch import nn

from pellucid.core.errors import InputError
from pellucid.core.facts import Normalization

_declared: torch.library.Library | None = None  # the declarations end with the object that made them


def torchvision() -> ModuleType:
    """The module torchvision, repaired if need be; InputError if it is missing or cannot be imported."""
    return _import("torchvision")


def timm() -> ModuleType:
    """The module timm; InputError if it, or the torchvision it needs, is missing or cannot be imported."""
    _import("torchvision")
    return _import("timm")


def repair() -> None:
    """Make an installed torchvision importable; to be called before the first import of lightning or torchmetrics.

    Costs nothing if torchvision is not installed or already imported. If it cannot be repaired, its importer will
    report the error.
    """
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is not None:
        with contextlib.suppress(InputError):
            _import("torchvision")


def build(name: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Build the network `torchvision:NAME` or `timm:NAME` with random weights.

    The first convolution of a network of torchvision, which takes 3 channels, is replaced by one for `in_channels`.
    Networks that work at one image size only (transformers) are built for `image_size`.

    Raises:
        InputError: an unknown name, or a size that the network cannot be built for.
    """
    zoo, _, name = name.partition(":")
    _check(zoo, name)
    try:
        if zoo == "timm":
            return _timm_model(name, num_classes, in_channels, image_size)
        return _torchvision_model(name, num_classes, in_channels, image_size)
    except (ValueError, AssertionError, RuntimeError, TypeError) as error:
        raise InputError(
            f"{zoo} cannot build {name} for images of {image_size[0]}x{image_size[1]} pixels: {error}"
        ) from error


def image_size(name: str) -> tuple[int, int]:
    """The (height, width) at which the library's own weights for `name` were trained; 224 if it does not say."""
    zoo, _, name = name.partition(":")
    _check(zoo, name)
    if zoo == "timm":
        size = timm().get_pretrained_cfg(name).input_size[1:]
    else:
        size = torchvision().models.get_model_weights(name).DEFAULT.transforms().crop_size * 2
    return size[0], size[1]


def normalization(name: str) -> Normalization:
    """How the library's own weights for `name` expect their input.

    torchvision's googlenet and inception_v3 change images normalised as ImageNet's into ones with a mean and deviation
    of 0.5 themselves, if they are built for its own weights; `build` leaves that out, so these numbers are returned.
    """
    zoo, _, name = name.partition(":")
    _check(zoo, name)
    if zoo == "timm":
        stated = timm().get_pretrained_cfg(name)
    elif name in ("googlenet", "inception_v3"):
        return Normalization((0.5,) * 3, (0.5,) * 3)
    else:
        stated = torchvision().models.get_model_weights(name).DEFAULT.transforms()
    return Normalization(tuple(stated.mean), tuple(stated.std))


def _torchvision_model(name: str, num_classes: int, in_channels: int, size: tuple[int, int]) -> nn.Module:
    options: dict[str, object] = {}
    if name.startswith("vit_"):
        if size[0] != size[1]:
            raise ValueError("it takes square images only")
        options["image_size"] = size[0]
    elif name == "maxvit_t":
        options["input_size"] = size
    elif name in ("googlenet", "inception_v3"):
        # The auxiliary heads make the output a tuple during training, which no loop here expects.
        options.update(aux_logits=False, init_weights=True)
    model = torchvision().models.get_model(name, weights=None, num_classes=num_classes, **options)
    if in_channels != 3:
        key, stem = next((k, m) for k, m in model.named_modules() if isinstance(m, nn.Conv2d))
        conv = nn.Conv2d(
            in_channels,
            stem.out_channels,
            stem.kernel_size,  # type: ignore[arg-type]
            stem.stride,  # type: ignore[arg-type]
            stem.padding,  # type: ignore[arg-type]
            stem.dilation,  # type: ignore[arg-type]
            stem.groups,
            stem.bias is not None,
            stem.padding_mode,
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        model.set_submodule(key, conv)
    return model


def _timm_model(name: str, num_classes: int, in_channels: int, size: tuple[int, int]) -> nn.Module:
    tied = timm().get_pretrained_cfg(name).fixed_input_size
    options: dict[str, object] = {"img_size": size} if tied else {}
    return timm().create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options)


def _check(zoo: str, name: str) -> None:
    """Admit names from the library's list only: timm would take `hf-hub:...` for a request to download."""
    if zoo == "timm":
        known = set(timm().list_models())
        known |= set(timm().list_models(pretrained=True))
    else:
        known = set(torchvision().models.list_models(module=torchvision().models))
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"see the list of models of {zoo}."
        raise InputError(f"{zoo} has no model {name[:60]!r}: {hint}")


def _import(name: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        raise InputError(
            f'{name} is not installed: run pip install torch=={_version()} "pellucid[vision]" (with torch in the same '
            "command, pip keeps the one you have)."
        )
    try:
        return importlib.import_module(name)
    except (RuntimeError, ValueError) as error:
        # The name of a missing operator: "operator torchvision::nms does not exist".
        if "torchvision::" not in str(error) or _declared is not None:
            raise InputError(_broken(name, error)) from error
    except ImportError as error:
        raise InputError(_broken(name, error)) from error
    _declare()
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise InputError(_broken(name, error)) from error


def _declare() -> None:
    global _declared
    for module in [key for key in sys.modules if key.partition(".")[0] == "torchvision"]:
        del sys.modules[module]  # half imported
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        _declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _broken(name: str, error: Exception) -> str:
    return (
        f"{name} is installed but cannot be imported with torch {torch.__version__} ({error}): run "
        f'pip install --force-reinstall torch=={_version()} "pellucid[vision]".'
    )


def _version() -> str:
    return torch.__version__.partition("+")[0]
