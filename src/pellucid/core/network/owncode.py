"""Networks that a user's own code makes: path/to/file.py:factory or package.module:factory.

The code is its user's to run, so it runs where a call of Python or the command line names it, and nowhere else (see
`core.references`). A factory is a function, or a class of networks, that returns an `nn.Module` of images (B, C, H, W)
-> logits (B, K). It is given the number of classes and of channels and the size of the images as far as it has
parameters for them, and the arguments of --model-args.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pellucid.core.errors import InputError, first_line, near, shown
from pellucid.core.modes import evaluating
from pellucid.core.references import parts_of

# What a factory may call the number of classes and of channels and the images' size; the first is our own name.
NAMES = {
    "num_classes": ("num_classes", "n_classes", "nclasses"),
    "in_channels": ("in_channels", "in_chans"),
    "image_size": ("image_size", "img_size", "input_size"),
}


def factory(reference: str) -> Callable[..., Any]:
    """The function or class that a reference names; its module is imported.

    A file may import others in its folder, and a module others in the working directory.

    Raises:
        InputError: no such file, module or function, or code that ends in an error.
    """
    file, module, name = parts_of(reference)
    path = Path(file).expanduser()
    if file and not path.is_file():
        raise InputError(
            f"There is no file {shown(file, 200)}, so {shown(reference, 200)} names no code: mind its path."
        )
    with _failing(reference), _importing(path.resolve().parent if file else Path.cwd()):
        found: Any = _from_file(path) if file else _imported(reference, module)
    for part in name.split("."):
        if not hasattr(found, part):
            here = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            hint = near(part, here, limit=0) or "name one of its functions."
            raise InputError(f"{shown(file or module, 200)} has no {shown(part)}: {hint}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{shown(reference, 200)} is not a function: name one that returns a network.")
    return found


def fingerprint(reference: str) -> str:
    """SHA-256 of the file that a reference names code in; "" for a module that has none.

    Raises:
        InputError: as `factory`.
    """
    file, module, _ = parts_of(reference)
    if not file:
        factory(reference)
        file = getattr(sys.modules[module], "__file__", None) or ""
    try:
        return hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest() if file else ""
    except OSError:
        return ""


def build(
    reference: str,
    num_classes: int | None,
    in_channels: int | None,
    image_size: tuple[int, int] | None,
    args: Mapping[str, Any],
) -> nn.Module:
    """The network that a factory returns.

    Args:
        reference: to the factory.
        num_classes, in_channels, image_size: for the parameters of these names (`NAMES`), unless they are None or among
            `args`; a square image size is given as its side.
        args: more arguments of the factory, by name.

    Raises:
        InputError: as `factory`; arguments that it does not take, or needs; or something else than a network.
    """
    make = factory(reference)
    size = image_size[0] if image_size is not None and image_size[0] == image_size[1] else image_size
    usual = {"num_classes": num_classes, "in_channels": in_channels, "image_size": size}
    given = {**_usual(make, usual, args), **args}
    _check_arguments(reference, make, given)
    file, _, _ = parts_of(reference)
    with _failing(reference), _importing(Path(file).expanduser().resolve().parent if file else Path.cwd()):
        model = make(**given)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{shown(reference, 200)} returns something of type {type(model).__name__}: let it return a network, a "
            "torch.nn.Module."
        )
    return model


def defaults(reference: str) -> dict[str, Any]:
    """What the factory takes by default for "num_classes", "in_channels" and "image_size", where it says so."""
    parameters = _parameters(factory(reference))
    found: dict[str, Any] = {}
    for usual, names in NAMES.items():
        for name in names:
            if name in parameters and parameters[name].default not in (inspect.Parameter.empty, None):
                found.setdefault(usual, parameters[name].default)
    return found


def channels(reference: str, model: nn.Module, requested: int) -> int:
    """The channels of the network's images: those requested, if its factory has a parameter for them.

    Else they are those of its first convolution.
    """
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    takes = set(NAMES["in_channels"]) & set(_parameters(factory(reference)))
    return requested if stem is None or takes else stem.in_channels


def count_logits(reference: str, model: nn.Module, in_channels: int, image_size: tuple[int, int]) -> int:
    """How many logits the network returns for an image.

    Raises:
        InputError: it does not take such images, or returns something else.
    """
    with evaluating(model), torch.no_grad(), _failing(reference):
        output = model(torch.zeros(1, in_channels, *image_size))
    if not isinstance(output, torch.Tensor) or output.dim() != 2 or output.shape[0] != 1:
        what = (
            f"of shape {list(output.shape)}" if isinstance(output, torch.Tensor) else f"of type {type(output).__name__}"
        )
        raise InputError(
            f"The network of {shown(reference, 200)} returns an output {what} for one image, not one logit per class: "
            "let its factory return pellucid.wrap(model, logits=...)."
        )
    return int(output.shape[1])


def _usual(make: Callable[..., Any], usual: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments among `usual` that the factory has a parameter for, by that parameter's name."""
    parameters, found = _parameters(make), {}
    for key, value in usual.items():
        names = [name for name in NAMES[key] if name in parameters]
        if names and value is not None and not set(NAMES[key]) & set(args):
            found[names[0]] = value
    return found


def _check_arguments(reference: str, make: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse arguments that the factory does not have, and their absence where it has no default."""
    parameters = _parameters(make)
    kinds = [parameter.kind for parameter in parameters.values()]
    title = shown(reference, 200)
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for name in given:
            if name not in parameters:
                hint = near(name, parameters, limit=0) or f"it takes {', '.join(parameters) or 'none'}."
                raise InputError(f"{title} has no argument {shown(name)}: {hint}")
    for name, parameter in parameters.items():
        several = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if name not in given and parameter.default is inspect.Parameter.empty and not several:
            raise InputError(f"{title} needs {name}: give --model-args {name}=VALUE.")


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(make).parameters
    except (ValueError, TypeError):  # of code that is not written in Python
        return {}


def _from_file(path: Path) -> ModuleType:
    """The module in a file, imported once for each content that the file has had."""
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + path.read_bytes()).hexdigest()
    name = f"_pellucid_own_{digest[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _imported(reference: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module + ".").startswith(error.name + "."):
            raise InputError(
                f"There is no module {shown(error.name)} for {shown(reference, 200)}: install it, or name its file, as "
                "in path/to/file.py:factory."
            ) from None
        raise


@contextlib.contextmanager
def _importing(folder: Path) -> Iterator[None]:
    """Let imports find the modules in `folder` first."""
    place = str(folder)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        if place in sys.path:
            sys.path.remove(place)


@contextlib.contextmanager
def _failing(reference: str) -> Iterator[None]:
    """Turn whatever error the code ends in into one sentence that says where."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
        own = parts_of(reference)[0]
        mine = [f for f in frames if own and Path(f.filename).name == Path(own).name] or frames
        where = f", in line {mine[-1].lineno} of {shown(Path(mine[-1].filename).name)}" if mine else ""
        if isinstance(error, SyntaxError):
            where = f", in line {error.lineno} of {shown(Path(error.filename or '').name)}"
        raise InputError(
            f"The code {shown(reference, 200)} ends in {type(error).__name__}{where}: {first_line(error)}."
        ) from error
