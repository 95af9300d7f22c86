"""Make the index of known networks, by which checkpoints are recognised (core/network/architectures.json).

    python benchmarks/core/architectures.py [BEGIN ...]

With begins of names, such as `huyvnphan:`, only those networks are made anew.

Every built-in, published, torchvision and timm architecture is built without memory, and its tensors' names and shapes
become a fingerprint. Where several have the same, each gets the same random weights and the same images: those with
equal outputs are one group, and what tells the groups apart (strides, pooling, activations, ...) is written down. Needs
the extra `vision`. What cannot be built is listed, with the reason.
"""

from __future__ import annotations

import collections
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from pellucid.core import vision
from pellucid.core.errors import InputError, first_line
from pellucid.core.files.align import align
from pellucid.core.files.atomic import write_atomic
from pellucid.core.network import models, recognize
from pellucid.core.network.described import usual_size
from pellucid.core.network.projects import PROJECTS
from pellucid.core.network.skeleton import skeleton
from test_published import NETWORKS

CLASSES = 1009  # a prime that no other layer has
Known = tuple[str, str, Any]  # name, form, image size
MOST = 1.5e8  # numbers in a network that is run; larger ones with the same tensors are taken to differ


def main() -> None:
    wanted = tuple(sys.argv[1:])  # begins of names; without any, all
    listed = [one for one in architectures() if not wanted or one[0].startswith(wanted)]
    old = json.loads(recognize.INDEX.read_text()) if wanted else {"heads": [], "networks": {}, "sketches": {}}
    heads, sketches = {tuple(head) for head in old["heads"]}, old["sketches"]
    found: dict[str, list[Known]] = collections.defaultdict(list)
    for number, known in enumerate(listed):
        try:
            shapes = shapes_of(known)
        except Exception as error:
            print(f"{known[0]}: {first_line(error)}")
            continue
        head = tuple(sorted({key.rpartition(".")[0] for key, shape in shapes.items() if CLASSES in shape[:1]}))
        key = recognize.fingerprint(shapes, head)
        heads.add(head)
        found[key].append(known)
        sketches.setdefault(key, recognize.packed(shapes))
        if number % 100 == 0:
            print(f"{number} of {len(listed)}", flush=True)
    networks = kept(old["networks"], wanted)
    for key, same in found.items():
        networks[key] = grouped(same + elsewhere(networks.get(key, ()), key, heads))
    order = sorted(networks)
    content = {
        "heads": sorted(heads),
        "networks": {key: networks[key] for key in order},
        "sketches": {key: sketches[key] for key in order},
    }
    write_atomic(recognize.INDEX, json.dumps(content, separators=(",", ":")) + "\n")
    several = sum(len(groups) > 1 for groups in networks.values())
    total = sum(len(names) for groups in networks.values() for names, _ in groups)
    print(f"{total} networks, {len(networks)} fingerprints, {several} of several meanings: ", end="")
    print(f"{recognize.INDEX.stat().st_size} bytes")


def kept(networks: dict[str, Any], wanted: tuple[str, ...]) -> dict[str, Any]:
    """What the index holds of other networks than those that are made anew."""
    left: dict[str, Any] = {}
    for key, groups in networks.items():
        rest = [([name for name in names if not name.startswith(wanted)], differs) for names, differs in groups]
        left[key] = [(names, differs) for names, differs in rest if names]
    return {key: groups for key, groups in left.items() if groups} if wanted else {}


def elsewhere(groups: Any, key: str, heads: set[tuple[str, ...]]) -> list[Known]:
    """The networks of groups that are kept, with their forms and sizes, to be compared with new ones."""
    names = {name for names, _ in groups for name in names}
    candidates = [known for known in architectures() if known[0] in names] if names else []
    return [
        known for known in candidates if any(recognize.fingerprint(shapes_of(known), head) == key for head in heads)
    ]


def shapes_of(known: Known) -> dict[str, tuple[int, ...]]:
    """The tensors in a file of a network, by name."""
    name, form, size = known
    if name in NETWORKS:  # published files have names of their own
        make, net, _ = NETWORKS[name]
        twin = make()
        side = 64 if min(size) > 32 else 32
        net(twin, torch.zeros(1, 3, side, side, dtype=torch.float64), classes=CLASSES)
        return {key: tuple(value.shape) for key, value in twin.state.items()}
    empty = skeleton(lambda: models.build(name, CLASSES, 3, size, form=form))
    return {key: tuple(value.shape) for key, value in empty.state_dict().items()}


def architectures() -> Iterator[tuple[str, str, Any]]:
    """(name, form, image size) of all known networks, in the order in which they are proposed."""
    for name in models.names():
        for form in models.forms_of(name):
            yield name, form, 32 if form == "small" else 224
    for project in PROJECTS.names():
        for name in PROJECTS[project].names():
            yield f"{project}:{name}", "auto", PROJECTS[project].image_size(name)
    for name in vision.torchvision().models.list_models(module=vision.torchvision().models):
        yield f"torchvision:{name}", "auto", usual_size(f"torchvision:{name}")
    for name in vision.timm().list_models():
        yield f"timm:{name}", "auto", usual_size(f"timm:{name}")


def grouped(same: list[Known]) -> list[tuple[list[str], str]]:
    """(names, what differs) of networks with the same tensors, by the function that they compute."""
    if len(same) == 1:
        return [([same[0][0]], "")]
    groups: list[tuple[list[str], nn.Module, Tensor | None]] = []
    weights: dict[str, Tensor] | None = None
    for name, form, size in same:
        model, output = None, None
        try:
            if sum(math.prod(shape) for shape in shapes_of((name, form, size)).values()) > MOST:
                raise InputError("it is too large")
            args = NETWORKS[name][2] if name in NETWORKS else None
            model = models.build(name, CLASSES, 3, smaller(size), form=form, args=args).eval()
            if weights is None:
                weights = random_like(model)
            fitting, _ = align(weights, model.state_dict())
            model.load_state_dict(fitting, strict=False)
            side = smaller(size)
            images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                output = model(images)
        except (InputError, RuntimeError, ValueError, AssertionError, TypeError) as error:
            print(f"{name} is not run: {first_line(error)}")
        for names, _, known in groups:
            if output is not None and known is not None and torch.allclose(output, known, rtol=1e-3, atol=1e-3):
                names.append(name)
                break
        else:
            groups.append(([name], model, output))
    print("same tensors:", "; ".join("=".join(names) for names, _, _ in groups), flush=True)
    if len(groups) == 1:
        return [(groups[0][0], "")]
    traits = [features(model) for _, model, _ in groups]
    told = [
        ", ".join(text for key, text in own.items() if any(other.get(key) != text for other in traits))
        for own in traits
    ]
    rest = ["another forward pass" if output is not None else "not compared" for _, _, output in groups]
    return [(names, text or other) for (names, _, _), text, other in zip(groups, told, rest, strict=True)]


def smaller(size: Any) -> int:
    """A side that most networks work at and that is soon computed."""
    side = min(size) if isinstance(size, tuple) else size
    return side if side <= 32 else 96


def random_like(model: nn.Module) -> dict[str, Tensor]:
    """Random values for all tensors, with which no part of a network vanishes, as zero-initialised ones would."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            state[name] = value
        elif value.dim() > 1:
            fan = value[0].numel()
            state[name] = torch.randn(value.shape, generator=generator) * (1.5 / fan) ** 0.5
        else:
            state[name] = 0.5 + torch.rand(value.shape, generator=generator)
    return state


def features(model: nn.Module | None) -> dict[str, str]:
    """What may tell networks with the same tensors apart, in words."""
    if model is None:
        return {"run": "not compared"}
    convs = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    strided = [name for name, m in convs if max(m.stride) > 1]
    pools = [m for m in model.modules() if isinstance(m, nn.MaxPool2d | nn.AvgPool2d)]
    kinds = collections.Counter(type(m).__name__ for m in model.modules() if not list(m.children()))
    acts = [kind for kind in kinds if kind.lower() in ACTIVATIONS]
    norms = sorted({f"{m.eps:g}" for m in model.modules() if hasattr(m, "eps") and isinstance(m.eps, float)})
    stem = convs[0][1] if convs else None
    inner = [name for name in strided if not convs or name != convs[0][0]]
    return {
        "stem": f"stem of stride {max(stem.stride)}" if stem is not None else "",
        "pool": ", ".join(sorted({f"{type(m).__name__[:3].lower()}-pool {m.kernel_size}/{m.stride}" for m in pools}))
        or "no pooling layer",
        "stride": f"{len(inner)} strides after it" + (f", first in {inner[0]}" if inner else ""),
        "act": "activation " + "/".join(sorted(acts)) if acts else "",
        "eps": f"eps {'/'.join(norms)}" if norms else "",
    }


ACTIVATIONS = {
    "relu", "relu6", "silu", "hardswish", "gelu", "leakyrelu", "elu", "mish", "swish", "prelu", "hardsigmoid",
    "sigmoid", "softplus", "tanh", "geluTanh".lower(), "quickgelu", "batchnormact2d",
}  # fmt: skip

if __name__ == "__main__":
    main()
