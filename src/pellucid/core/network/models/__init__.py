"""Build a network by name or from its description.

A family of networks is a file with `FORMS` (name -> its variants) and `build`. A network knows nothing of what replaces
its layers: `layers` names a rule (see `core.network.rules`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from torch import nn

from pellucid.core.device import device_of
from pellucid.core.errors import InputError, shown
from pellucid.core.facts import declare, facts
from pellucid.core.network import owncode
from pellucid.core.network.models import conv, densenet, resnet, vgg
from pellucid.core.network.projects import is_published, project_of
from pellucid.core.references import is_code

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
    args: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network with random weights, in training mode.

    Args:
        name: one of `names()`; `torchvision:NAME` or `timm:NAME` (extra `vision`); PROJECT:NAME of a published network
            (`core.network.projects`); or FILE.py:FACTORY or PACKAGE.MODULE:FACTORY, code that is run
            (`core.network.owncode`).
        num_classes: number of outputs.
        in_channels: channels of the images.
        image_size: side in pixels, or (height, width). A small form needs 4 pixels, an ImageNet form 32.
        layers: "plain", or the name of a rule that replaces layers, such as "deconv", or of several, "csc+deconv".
        form: "small" (3x3 stem, early maps at full size), "imagenet" (torchvision's network), or "auto": for names
            that have both, small below 97 pixels, else imagenet.
        args: arguments of a factory or a published network.
        options: options of the rules in `layers`; one that several of them have is prefixed: `csc_published`.

    Returns:
        The network; the `description` in its facts is what `rebuild` needs.

    Raises:
        InputError: an unknown name, form, rule or option, a number out of range, or code that fails.
    """
    name = canonical(name)
    more = args_entry(args)
    num_classes = _number("num_classes", num_classes, _MOST_CLASSES)
    in_channels = _number("in_channels", in_channels, _MOST_CHANNELS)
    size = as_size(image_size)
    if is_published(name):
        project, own = project_of(name)
        model = project.build(own, num_classes, in_channels, size, args or {})
    elif is_code(name):
        model = owncode.build(name, num_classes, in_channels, size, args or {})
        in_channels = owncode.channels(name, model, in_channels)
        if device_of(model).type != "meta":
            num_classes = owncode.count_logits(name, model, in_channels, size)
        more["code"] = owncode.fingerprint(name)
    elif args:
        raise InputError(f"{name} takes no arguments: leave out --model-args.")
    elif is_zoo(name):
        from pellucid.core import vision

        model = vision.build(name, num_classes, in_channels, size)
    else:
        form = chosen_form(name, form, size)
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
        **more,
    }
    declare(model, description=description)
    return model


def rebuild(description: Mapping[str, Any], run_code: bool = False) -> nn.Module:
    """Build the network of a `description` with random weights.

    Args:
        description: as `build` declares it.
        run_code: whether the code that it names may be run: only where its user, and not a file, named that.

    Raises:
        InputError: the description is not one of ours, or names code that may not be run.
    """
    fields = {
        "model",
        "num_classes",
        "in_channels",
        "image_size",
        "form",
        "layers",
        "options",
        "folded",
        "args",
        "code",
    }
    if not isinstance(description, Mapping) or not {"model"} <= set(description) <= fields:
        raise InputError(f"A model's description has the fields {', '.join(sorted(fields))} and no others.")
    arguments = dict(description)
    options = arguments.pop("options", {})
    if not isinstance(options, Mapping) or set(options) & (fields | {"name"}):
        raise InputError("The options in a model's description must be a table of a layer rule's arguments.")
    if not isinstance(arguments.get("args", {}), Mapping):
        raise InputError("The args in a model's description must be a table of its factory's arguments.")
    if is_code(arguments["model"]) and not run_code:
        raise InputError(f"the code {shown(arguments['model'], 200)} runs only where it is named.")
    arguments.pop("code", None)
    folded = arguments.pop("folded", False)
    model = build(arguments.pop("model"), **arguments, **options)
    if folded:
        from pellucid.core.network.fold import fold_structure

        fold_structure(model)
        declare(model, description={**(facts(model).description or {}), "folded": True})
    return model


def args_entry(args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entry of a description for the arguments of a network, if there are any."""
    return {"args": dict(args)} if args else {}


def canonical(name: str) -> str:
    """The name that descriptions use for `name`, which differs for aliases such as "wide_resnet50"."""
    return _ALIASES.get(name, name) if isinstance(name, str) else name


def is_zoo(name: object) -> TypeGuard[str]:
    """Whether `name` is of a network of torchvision or timm."""
    return isinstance(name, str) and name.startswith(_ZOOS)


def forms_of(name: object) -> tuple[str, ...]:
    """The forms that a built-in network has; InputError for an unknown name."""
    if not isinstance(name, str) or name not in _FAMILIES:
        near = difflib.get_close_matches(str(name), [*_FAMILIES, *_ALIASES], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}" if near else f"known are {', '.join(_FAMILIES)}"
        raise InputError(f"There is no model {str(name)[:60]!r}: {hint}, or torchvision:NAME, timm:NAME?")
    return _FAMILIES[name].FORMS[name]


def chosen_form(name: str, form: str, size: tuple[int, int]) -> str:
    """The form of a built-in network for images of a size; InputError if it has no such form."""
    forms = forms_of(name)
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


def as_size(value: object) -> tuple[int, int]:
    """`value`, a side or (height, width), as (height, width); InputError if it is neither."""
    sides = (value, value) if isinstance(value, int) else value
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2:
        raise InputError(f"image_size must be a side in pixels or (height, width), not {value!r}.")
    return _number("image_size", sides[0], _MOST_PIXELS), _number("image_size", sides[1], _MOST_PIXELS)
