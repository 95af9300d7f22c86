"""From a name on a command line, or an argument in Python, to a network and data that fit each other.

A network is named by a run folder, a checkpoint, MODEL=FILE for a foreign checkpoint, or an architecture (random
weights); in Python it may also be a `Run` or the module itself. Data are in any form that `core.given.as_dataset`
takes. Every command and function that takes a network or data resolves them here, or with `core.measure.pairs` where a
stream of labelled images is enough.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pellucid.core.assumed import about_normalization, about_size, usual_side
from pellucid.core.data.dataset import Dataset
from pellucid.core.device import choose_device
from pellucid.core.errors import InputError, near, shown
from pellucid.core.facts import ModelFacts, Normalization, declare, facts, unwrapped
from pellucid.core.flags import ClassedSettings, SourceSettings
from pellucid.core.given import as_dataset
from pellucid.core.measure.classes import Classes, listed_classes, matched
from pellucid.core.measure.fits import usual_normalization
from pellucid.core.modes import seeded
from pellucid.core.network import models
from pellucid.core.network.checkpoint import load
from pellucid.core.network.described import usual_size
from pellucid.core.network.projects import is_published, published_normalization
from pellucid.core.references import is_code
from pellucid.core.seeds import seed_of
from pellucid.core.train.run import Run
from pellucid.core.train.settings import TrainSettings

Named = str | os.PathLike[str] | Run | nn.Module


@dataclass(frozen=True)
class Network:
    """A network that a user named.

    Attributes:
        model: in evaluation mode; a module that was passed in keeps its mode.
        title: its name in tables: the path, or the architecture and a note that the weights are random.
        run: the run that it comes from, if any.
        fresh: whether its weights are random, drawn from the seed.
        assumed: sentences on what was assumed of it; see `core.assumed`.
    """

    model: nn.Module
    title: str
    run: Run | None
    fresh: bool
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A network, data that fit it, and what is known of both.

    Attributes:
        model: on `device`; in evaluation mode, unless it was passed in as a module.
        dataset: the data, with the network's classes.
        run: the run that the network comes from, if any.
        device: "cpu", "cuda", ...
        title: the network's name in tables.
        assumed: sentences on what was assumed of the network and of how its classes are those of the data.
    """

    model: nn.Module
    dataset: Dataset
    run: Run | None
    device: str
    title: str
    assumed: tuple[str, ...] = ()


def open_network(
    named: Named,
    model: str | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    strict: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    fallback: Normalization | None = None,
    normalized: bool = False,
) -> Network:
    """Open the network that `named` stands for.

    Args:
        named: run folder, checkpoint, MODEL=FILE for a foreign checkpoint, an architecture (random weights), your own
            code as FILE.py:FACTORY or PACKAGE.MODULE:FACTORY (the weights that it makes), a `Run`, or a module.
        model: architecture of a foreign checkpoint, or the code that makes its network, as an alternative to
            MODEL=FILE.
        model_args, prefix, strict: how it is read; see `core.network.checkpoint.load`.
        mean, std: how its input is normalised, one number per channel, if the network does not record it.
        num_classes: number of classes of an architecture; default 10.
        in_channels: channels of an architecture's images; default 3.
        image_size: side, or (height, width), of an architecture's images; default 32, or what the library it comes from
            states.
        seed: seed of random weights; torch's random state is left untouched.
        fallback: how its input is normalised if neither the network nor `mean` and `std` say so.
        normalized: require a normalisation. An architecture without one gets a mean of 0.5 and a standard deviation of
            0.25: with random weights, any will do. A network of torchvision or timm gets the usual one, which is
            among what was `assumed`.

    Raises:
        InputError: no such network, an architecture named twice, or a normalisation that is missing, does not fit, or
            is already recorded.
    """
    if isinstance(named, nn.Module):
        named = unwrapped(named)
        network = _normalized(named, "This model", mean, std, fallback, normalized)
        return Network(network, type(named).__name__, None, False)
    name = os.fspath(named.path if isinstance(named, Run) else named)
    architecture, given, path = name.partition("=")
    fresh = is_architecture(name)
    if (fresh or (given and not Path(name).exists())) and model is not None:
        raise InputError(f"{name!r} names its architecture already: leave out --model.")
    if not fresh and (num_classes is not None or in_channels is not None):
        raise InputError(f"--num-classes and --in-channels go with the name of an architecture, which {name!r} is not.")
    if prefix is not None and (fresh or isinstance(named, Run)):
        raise InputError(f"--prefix {shown(prefix)} goes with a foreign checkpoint, which {name!r} is not.")
    if fresh:
        network = build_fresh(name, num_classes or 10, in_channels or 3, image_size, seed, model_args).eval()
        if normalized and fallback is None:
            channels = in_channels or 3
            fallback = Normalization((0.5,) * channels, (0.25,) * channels)
    elif given and not Path(name).exists():
        if not architecture or not path:
            raise InputError(f"{shown(name, 200)} is not MODEL=FILE: name both, as in resnet20=weights.pth.")
        network = load(path, architecture, model_args=model_args, prefix=prefix, strict=strict)
    else:
        _check_there(name)
        network = load(name, model, model_args=model_args, prefix=prefix, strict=strict)
    run = named if isinstance(named, Run) else Run(name) if (Path(name) / "settings.yaml").is_file() else None
    title = name if not fresh else f"{name} (weights as it makes them)" if is_code(name) else f"{name} (random weights)"
    assumed = list(facts(network).remarks)
    if _size_is_assumed(network) and image_size is None and (size := facts(network).image_size) is not None:
        assumed.append(about_size(network, size, "the file"))
    usual = usual_normalization(network) if normalized and mean is None and std is None and fallback is None else None
    if usual is not None and facts(network).normalization is None:
        fallback = usual
        assumed.append(about_normalization(network, None, "the file"))
    network = _normalized(network, repr(name), mean, std, fallback, normalized)
    return Network(network, title, run, fresh, tuple(assumed))


def open_source(
    named: Named,
    settings: SourceSettings | None = None,
    *,
    data: Any = None,
    run: Run | None = None,
    device: str = "cpu",
    seed: int = 0,
    classes: Classes | None = None,
) -> Source:
    """Open the network that `named` stands for, and data that fit it.

    Args:
        named: as in `open_network`.
        settings: the data, and what the network does not record itself; see `SourceSettings`.
        data: data in any form that `as_dataset` takes, in place of `settings.data`. Default: what the run was trained
            on.
        run: the run that produced `named`, if `named` is not that run itself.
        device: where to put the network; "auto" is a GPU if there is one.
        classes: names of the network's classes, as in `evaluate`, in place of `settings.classes`.
        seed: seed of an architecture's random weights.

    Raises:
        InputError: no such network, data or device, or a normalisation that does not fit or is already recorded.
    """
    settings = settings or SourceSettings()
    device = choose_device(device)
    name = "" if isinstance(named, nn.Module) else os.fspath(named.path if isinstance(named, Run) else named)
    fresh = bool(name) and is_architecture(name)
    if fresh and settings.model is not None:
        raise InputError(f"{name!r} is the name of an architecture already: leave out --model.")
    found = None if fresh else open_network(named, **settings.reading())
    run = run or (found.run if found is not None else None)
    data = data if data is not None else settings.data
    if data is None and run is None:
        title = repr(name) if name else "The model"
        raise InputError(f"{title} does not record what it was trained on: name data with --data.")
    known = facts(found.model) if found is not None else ModelFacts()
    if found is not None and _size_is_assumed(found.model):
        known = dataclasses.replace(known, description={**(known.description or {}), "image_size": None})
    trained = run.settings if run is not None and data in (None, run.settings.data) else TrainSettings()
    size, usual = settings.image_size, usual_side(found.model) if found is not None else None
    if size is None and fresh:
        found_size = usual_size(name, settings.model_args)
        size = None if found_size is None else min(found_size)
    wanted = trained.data if data is None else data
    dataset = as_dataset(wanted, known, image_size=size, settings=trained, large_side=usual)
    listed = listed_classes(settings.classes if classes is None and isinstance(settings, ClassedSettings) else classes)
    if found is None:
        found = open_network(
            named,
            model_args=settings.model_args,
            num_classes=len(listed or dataset.classes),
            in_channels=dataset.channels,
            image_size=dataset.image_size,
            seed=seed,
            normalized=not dataset.mean and settings.mean is None and not is_code(name),
        )
        dataset, sentence = matched(found.model, dataset, listed)
        _check_classes(found, dataset)
        declare(found.model, classes=dataset.classes)
    if settings.mean is not None and len(settings.mean) != dataset.channels:
        raise InputError(f"--mean and --std need {dataset.channels} numbers each, one per channel of {dataset.name}.")
    network = _normalized(found.model, repr(name) if name else "The model", settings.mean, settings.std)
    network = network.to(device)
    if not fresh:
        dataset, sentence = matched(network, dataset, listed)
    assumed = list(facts(network).remarks)
    subject = "the code" if is_code(name) else "the file" if name else "the model"
    random = fresh and not is_code(name)  # trained on nothing yet
    if not random and size is None and known.image_size is None and isinstance(wanted, str):
        assumed.append(about_size(network, dataset.image_size, subject, dataset))
    if not random and facts(network).normalization is None:
        assumed.append(about_normalization(network, dataset, subject))
    return Source(
        network, dataset, run, device, found.title, (*assumed, *([sentence] if sentence and not random else []))
    )


def is_architecture(name: str) -> bool:
    """Whether `name` is an architecture, such as resnet18 or timm:resnet18, or code, and not a file or folder."""
    elsewhere = (models.is_zoo(name) or is_published(name)) and "=" not in name
    return elsewhere or is_code(name) or (models.canonical(name) in models.names() and not Path(name).exists())


def _size_is_assumed(network: nn.Module) -> bool:
    """Whether nobody says what images a network was trained on: the shapes of a foreign checkpoint do not."""
    known = facts(network)
    return known.foreign and not is_published((known.description or {}).get("model"))


def _check_there(name: str) -> None:
    """Refuse a name that is no file, with the architecture that may have been meant."""
    if not Path(name).exists() and os.sep not in name and (hint := near(name, models.names(), limit=0)):
        raise InputError(f"{shown(name)} is neither a file, a run folder nor an architecture: {hint}")


def build_fresh(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: int | tuple[int, int] | None,
    seed: int,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The architecture `name` with random weights drawn from `seed`; default size 32, or what its library states."""
    size = image_size or usual_size(name, model_args) or 32
    with seeded(seed_of("weights", seed)):
        return models.build(name, num_classes, in_channels, size, args=model_args)


def _check_classes(found: Network, dataset: Dataset) -> None:
    """Refuse code that makes a network of another number of classes than the data have."""
    count = (facts(found.model).description or {}).get("num_classes")
    if count is not None and count != len(dataset.classes):
        raise InputError(
            f"The network of {found.title} returns {count} logits per image, but {dataset.name} has "
            f"{len(dataset.classes)} classes: give --model-args, or data of its classes."
        )


def _normalized(
    network: nn.Module,
    title: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    fallback: Normalization | None = None,
    needed: bool = False,
) -> nn.Module:
    """`network` with the normalisation of --mean and --std, or `fallback`, if it records none itself."""
    known, given = facts(network), normalization_flags(mean, std)
    if given is not None and known.normalization is not None and known.normalization != published_normalization(known):
        raise InputError(f"{title} records its own mean and std: leave out --mean and --std.")
    chosen = given or (fallback if known.normalization is None else None)
    if chosen is None:
        if needed and known.normalization is None:
            raise InputError(
                f"{title} does not record how its input is normalised: give the --mean and --std of its training."
            )
        return network
    channels = known.in_channels or chosen.channels
    if chosen.channels != channels:
        raise InputError(f"--mean and --std need {channels} numbers each, one per channel.")
    return declare(network, normalization=chosen)


def normalization_flags(mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalization | None:
    """The normalisation that the flags --mean and --std give; None without them.

    Raises:
        InputError: one without the other, or numbers that are not a valid normalisation.
    """
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: give both.")
    if mean is None or std is None:
        return None
    try:
        return Normalization(tuple(mean), tuple(std))
    except InputError as error:
        raise InputError(f"--mean and --std: {error}") from None
