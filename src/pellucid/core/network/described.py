"""Which network a state dict came from, as far as its tensors and the network's name tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pellucid.core.errors import InputError, shown
from pellucid.core.facts import facts
from pellucid.core.files.align import HEADS
from pellucid.core.modes import seeded
from pellucid.core.network import models, owncode
from pellucid.core.network.models import conv
from pellucid.core.network.projects import is_published, project_of
from pellucid.core.network.skeleton import skeleton
from pellucid.core.references import is_code


def describe(state: Mapping[str, Tensor], name: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe the network `name`, with the arguments `args`, that `state` (parameter name -> tensor) came from.

    Classes, channels and form are read from the shapes of the first convolution and the last layer, whether that is
    called `fc`, `classifier`, `linear` or `head`. The weights do not tell the image size (except for conv2 to conv8,
    taken as square): it is 32 for a small form, and 224, or what the library states, for others; code of one's own may
    say it, and else it is 224 behind a stem with a stride, and 32 behind one without. Plain layers only.

    Raises:
        InputError: an unknown name, weights of another network, or code that fails.
    """
    name = models.canonical(name)
    if is_published(name):
        project, own = project_of(name)
        found = project.describe(own, state, args or {})
        return {"model": name, **found, "form": "auto", "layers": "plain", "options": {}, **models.args_entry(args)}
    form, size = _default_form(name, "auto" if _elsewhere(name) else _form_in(state, name), args)
    empty = _empty(name, size, form, args)
    convs_and_linears = [(key, m) for key, m in empty.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if not convs_and_linears:
        raise InputError(f"{shown(name, 200)} has no convolution and no linear layer: it is no network for images.")
    stem, head = convs_and_linears[0][0], convs_and_linears[-1][0]
    heads = [head, *HEADS, *(f"{prefix}.{head.rpartition('.')[2]}" for prefix in HEADS)]
    first = state.get(f"{stem}.weight")
    last = next((state[f"{key}.weight"] for key in heads if f"{key}.weight" in state), None)
    if is_code(name):
        asked = {*owncode.NAMES["num_classes"]} & {*(args or {})}
        found = {"in_channels": first.shape[1]} if first is not None and first.ndim == 4 else {}
        found |= {"num_classes": last.shape[0]} if last is not None and last.ndim > 1 and not asked else {}
        return {**(facts(empty).description or {}), **found}
    if first is None or first.ndim < 2 or last is None or last.ndim < 2:
        missing = stem if first is None or first.ndim < 2 else head
        raise InputError(f"These weights are not a {name}: they have no layer {missing!r} of the right kind.")
    if name in conv.FORMS:
        if "classifier.0.weight" not in state:
            raise InputError(f"These weights are not a {name}: they have no layer 'classifier.0'.")
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


def outline(name: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """The network `name` at its usual size: the names of its tensors, in order.

    There is no memory for them, unless a user's own code makes them.

    Raises:
        InputError: an unknown name, or code that fails.
    """
    name = models.canonical(name)
    form, size = _default_form(name, "auto", args)
    return _empty(name, size, form, args)


def usual_size(name: str, args: Mapping[str, Any] | None = None) -> tuple[int, int] | None:
    """(height, width) of the images that a network from elsewhere, or its published weights, are made for.

    None for the built-in networks, which take images of any size, and for code that does not say.

    Raises:
        InputError: an unknown name, or code that fails.
    """
    if models.is_zoo(name):
        from pellucid.core import vision

        return vision.image_size(name)
    if is_published(name):
        project, own = project_of(name)
        return project.image_size(own)
    if is_code(name):
        named = [(args or {})[key] for key in owncode.NAMES["image_size"] if key in (args or {})]
        size = named[0] if named else owncode.defaults(name).get("image_size")
        return None if size is None else models.as_size(size)
    return None


def _elsewhere(name: str) -> bool:
    """Whether `name` is of no family here."""
    return models.is_zoo(name) or is_published(name) or is_code(name)


def _empty(name: str, size: tuple[int, int], form: str, args: Mapping[str, Any] | None) -> nn.Module:
    """The network without memory for its tensors, as far as it is not a user's own code that makes it."""
    if not is_code(name):
        return skeleton(lambda: models.build(name, image_size=size, form=form, args=args))
    usual = {key: value for key, value in owncode.defaults(name).items() if key != "image_size"}
    with seeded():
        return models.build(name, image_size=size, args=args, **usual)


def _default_form(name: str, form: str, args: Mapping[str, Any] | None = None) -> tuple[str, tuple[int, int]]:
    """The form of a network whose images are not known, and the size that it is built for."""
    if _elsewhere(name):
        return "auto", usual_size(name, args) or _size_for(name, args)
    form = models.chosen_form(name, form, (224, 224))
    return form, (32, 32) if form == "small" else (224, 224)


def _size_for(name: str, args: Mapping[str, Any] | None) -> tuple[int, int]:
    """A guess at the images that the network of a user's own code is made for, by its first convolution."""
    with seeded():
        model = owncode.build(name, owncode.defaults(name).get("num_classes", 10), None, None, args or {})
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return (224, 224) if stem is not None and max(stem.stride) > 1 else (32, 32)


def _form_in(state: Mapping[str, Tensor], name: str) -> str:
    """The form according to the shapes in `state`, or else "auto"."""
    if not {"small", "imagenet"} <= {*models.forms_of(name)}:
        return "auto"
    large_stem = any(
        key in state and state[key].shape[-1:] == (7,) for key in ("conv1.weight", "features.conv0.weight")
    )
    return "imagenet" if large_stem or "classifier.6.weight" in state else "small"
