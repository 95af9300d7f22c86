"""Build a network by name or from its description, or describe the one that a state dict came from.

A family of networks is a file with `FORMS` (name -> its variants) and `build`. A network knows nothing of what replaces
its layers: `layers` names a rule (see `core.network.rules`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.files.align import HEADS
from pellucid.core.network.models import conv, densenet, resnet, vgg
from pellucid.core.network.skeleton import skeleton

_FAMILIES = {name: family for family in (vgg, resnet, densenet, conv) for name in family.FORMS}
_ALIASES = {"wide_resnet50": "wide_resnet50_2"}
_ZOOS = ("torchvision:", "timm:")
_LARGE = 97  # from this side on, "auto" means the ImageNet form
_SMALLEST = {"small": 4, "imagenet": 32}
# Far beyond any real network; a description read from a hostile file must not ask for more.
_MOST_CLASSES, _MOST_CHANNELS, _MOST_PIXELS = 10**6, 4096, 16384


def names() -> tuple[str, ...]:
    """The built-in names, family by family; `torchvision:NAME` and `timm:NAME` work too."""
    return tuple(_FAMILIES)


def build(
    name: str,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int | Sequence[int] = 32,
    layers: str = "plain",
    form: str = "auto",
    **options: Any,
) -> nn.Module:
    """Build a network with random weights, in training mode.

    Args:
        name: one of `names()`, or `torchvision:NAME` or `timm:NAME` (extra `vision`).
        num_classes: number of outputs.
        in_channels: channels of the images.
        image_size: side in pixels, or (height, width). A small form needs 4 pixels, an ImageNet form 32.
        layers: "plain", or the name of a rule that replaces layers, such as "deconv".
        form: "small" (3x3 stem, early maps at full size), "imagenet" (torchvision's network), or "auto": for names
            that have both, small below 97 pixels, else imagenet.
        options: options of the rule in `layers`.

    Returns:
        The network; the `description` in its facts is what `rebuild` needs.

    Raises:
        InputError: an unknown name, form, rule or option, or a number out of range.
    """
    name = canonical(name)
    num_classes = _number("num_classes", num_classes, _MOST_CLASSES)
    in_channels = _number("in_channels", in_channels, _MOST_CHANNELS)
    size = _size(image_size)
    if is_zoo(name):
        from pellucid.core import vision

        model = vision.build(name, num_classes, in_channels, size)
    else:
        form = _form(name, form, size)
        model = _FAMILIES[name].build(name, form, num_classes, in_channels, size)
    if layers != "plain" or options:
        from pellucid.core.network.rules import rule
        from pellucid.core.network.swap import swap

        swap(model, rule(layers, **options))
    description = {
        "model": name,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": list(size),
        "form": form,
        "layers": layers,
        "options": options,
    }
    declare(model, description=description)
    return model


def rebuild(description: Mapping[str, Any]) -> nn.Module:
    """Build the network of a `description` with random weights.

    Raises:
        InputError: the description is not one of ours.
    """
    fields = {"model", "num_classes", "in_channels", "image_size", "form", "layers", "options", "folded"}
    if not isinstance(description, Mapping) or not {"model"} <= set(description) <= fields:
        raise InputError(f"A model's description has the fields {', '.join(sorted(fields))} and no others.")
    arguments = dict(description)
    options = arguments.pop("options", {})
    if not isinstance(options, Mapping) or set(options) & (fields | {"name"}):
        raise InputError("The options in a model's description must be a table of a layer rule's arguments.")
    folded = arguments.pop("folded", False)
    model = build(arguments.pop("model"), **arguments, **options)
    if folded:
        from pellucid.core.network.fold import fold_structure

        fold_structure(model)
        declare(model, description={**(facts(model).description or {}), "folded": True})
    return model


def describe(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Describe the network `name` that `state` (parameter name -> tensor) came from.

    Classes, channels and form are read from the shapes of the first convolution and the last layer, whether that is
    called `fc`, `classifier`, `linear` or `head`. The weights do not tell the image size (except for conv2 to conv8,
    taken as square): it is 32 for a small form, and 224, or what the library states, for others. Plain layers only.

    Raises:
        InputError: an unknown name, or weights of another network.
    """
    name = canonical(name)
    form, size = _default_form(name, "auto" if is_zoo(name) else _form_of(state, name))
    empty = skeleton(lambda: build(name, image_size=size, form=form))
    convs_and_linears = [(key, m) for key, m in empty.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    stem, head = convs_and_linears[0][0], convs_and_linears[-1][0]
    heads = [head, *HEADS, *(f"{prefix}.{head.rpartition('.')[2]}" for prefix in HEADS)]
    first = state.get(f"{stem}.weight")
    last = next((state[f"{key}.weight"] for key in heads if f"{key}.weight" in state), None)
    if first is None or first.ndim < 2 or last is None or last.ndim < 2:
        missing = stem if first is None or first.ndim < 2 else head
        raise InputError(f"These weights are not a {name}: they have no layer {missing!r} of the right kind.")
    if name in conv.FORMS:
        size = conv.image_size(name, state["classifier.0.weight"].shape[-1])
    return {
        "model": name,
        "num_classes": last.shape[0],
        "in_channels": first.shape[1],
        "image_size": list(size),
        "form": form,
        "layers": "plain",
        "options": {},
    }


def outline(name: str) -> nn.Module:
    """The network `name` at its usual size, without memory for its tensors: their names, in order.

    Raises:
        InputError: an unknown name.
    """
    name = canonical(name)
    form, size = _default_form(name, "auto")
    return skeleton(lambda: build(name, image_size=size, form=form))


def _default_form(name: str, form: str) -> tuple[str, tuple[int, int]]:
    """The form of a network whose images are not known, and the size that it is built for."""
    if is_zoo(name):
        from pellucid.core import vision

        return "auto", vision.image_size(name)
    form = _form(name, form, (224, 224))
    return form, (32, 32) if form == "small" else (224, 224)


def canonical(name: str) -> str:
    """The name that descriptions use for `name`, which differs for aliases such as "wide_resnet50"."""
    return _ALIASES.get(name, name) if isinstance(name, str) else name


def is_zoo(name: object) -> TypeGuard[str]:
    """Whether `name` is of a network of torchvision or timm."""
    return isinstance(name, str) and name.startswith(_ZOOS)


def _form_of(state: Mapping[str, Tensor], name: str) -> str:
    """The form according to the shapes in `state`, or else "auto"."""
    if "small" not in _forms(name) or "imagenet" not in _forms(name):
        return "auto"
    large_stem = any(
        key in state and state[key].shape[-1:] == (7,) for key in ("conv1.weight", "features.conv0.weight")
    )
    return "imagenet" if large_stem or "classifier.6.weight" in state else "small"


def _forms(name: object) -> tuple[str, ...]:
    if not isinstance(name, str) or name not in _FAMILIES:
        near = difflib.get_close_matches(str(name), [*_FAMILIES, *_ALIASES], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}" if near else f"known are {', '.join(_FAMILIES)}"
        raise InputError(f"There is no model {str(name)[:60]!r}: {hint}, or torchvision:NAME, timm:NAME?")
    return _FAMILIES[name].FORMS[name]


def _form(name: str, form: str, size: tuple[int, int]) -> str:
    forms = _forms(name)
    if form == "auto":
        form = ("small" if min(size) < _LARGE else "imagenet") if len(forms) > 1 else forms[0]
    if form not in forms:
        raise InputError(f"{name} has the form {' and '.join(forms)} or 'auto', not {form!r}.")
    if min(size) < _SMALLEST[form]:
        raise InputError(
            f"{name} in the {form} form needs images of at least {_SMALLEST[form]} pixels a side, "
            f"not {size[0]}x{size[1]}."
        )
    return form


def _number(field: str, value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InputError(f"{field} must be a whole number from 1 to {most}, not {value!r}.")
    return value


def _size(value: object) -> tuple[int, int]:
    sides = (value, value) if isinstance(value, int) else value
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2:
        raise InputError(f"image_size must be a side in pixels or (height, width), not {value!r}.")
    return _number("image_size", sides[0], _MOST_PIXELS), _number("image_size", sides[1], _MOST_PIXELS)
