"""The harness of `layers.py` on masked layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import layers
from layers import Case
from pellucid.edgepopup.layers import masks
from pellucid.edgepopup.subnet import subnet


def weights(layer: nn.Module) -> dict[str, Any]:
    held = {"weight": layer.weight, "bias": layer.bias}
    return {name: value.detach() for name, value in held.items() if value is not None}


def case(name: str, kind: Any, shape: tuple[int, ...], *args: Any, options: dict | None = None, **more: Any) -> Case:
    """A layer `kind(*args, **more)`, masked with `options`."""
    options = {"keep": 0.5, "seed": 3, **(options or {})}
    last = 1 if kind is nn.Linear else 0  # axes at the end that stay
    middle = tuple(n + 3 for n in shape[2 : len(shape) - last])
    other = (shape[0] + 1, shape[1], *middle, *shape[max(2, len(shape) - last) :])
    bias = options.get("init") == "given"
    return Case(
        name,
        lambda: subnet(kind(*args, bias=bias, **more), **options),
        lambda: kind(*args, bias=bias, **more),
        shape,
        other,
        unbatched=kind is not nn.Linear,
        weights=weights,
        ranked=("scores",),
        overflows=True,
    )


CASES = [
    case("conv", nn.Conv2d, (3, 4, 7, 5), 4, 6, 3, padding=1),
    case("conv/tuples", nn.Conv2d, (3, 4, 9, 8), 4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2),
    case("conv/depthwise", nn.Conv2d, (3, 4, 7, 5), 4, 8, 3, padding=1, groups=4),
    case("conv/reflect", nn.Conv2d, (3, 4, 7, 5), 4, 6, 3, padding=1, padding_mode="reflect"),
    case("conv/given", nn.Conv2d, (3, 4, 7, 5), 4, 6, 3, options={"init": "given"}),
    case("conv/global", nn.Conv2d, (3, 4, 7, 5), 4, 6, 3, options={"ranking": "global", "anneal": 4}),
    case("conv/anneal", nn.Conv2d, (3, 4, 7, 5), 4, 6, 3, options={"anneal": 4}),
    case("conv/redraw", nn.Conv2d, (3, 4, 7, 5), 4, 6, 3, options={"redraw": 2, "init": "kaiming_normal"}),
    case("conv/binary", nn.Conv2d, (3, 4, 7, 5), 4, 6, 3, options={"binary": True, "init": "kaiming_uniform"}),
    case("conv1d", nn.Conv1d, (3, 4, 11), 4, 6, 3, padding=2, dilation=2),
    case("conv3d", nn.Conv3d, (3, 2, 4, 5, 3), 2, 3, (2, 3, 1), padding=(0, 1, 1)),
    case("transposed", nn.ConvTranspose2d, (3, 6, 5, 4), 6, 4, (2, 3), groups=2),
    case("linear", nn.Linear, (8, 7), 7, 3, options={"scale_fan": True}),
    case("linear/tokens", nn.Linear, (4, 5, 6), 6, 3, options={"init": "xavier_normal"}),
]
COMPILED = ["conv", "conv/anneal", "conv/global", "conv/binary", "linear"]
QUICK = [*COMPILED, "conv/redraw"]


@pytest.mark.parametrize("check", layers.FAST, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c.name in QUICK else pytest.mark.slow) for c in CASES],
    ids=lambda case: case.name,
)
def test_every_layer(case, check, tmp_path):
    check(case, tmp_path)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c.name == "conv/anneal" else pytest.mark.slow) for c in CASES if c.name in COMPILED],
    ids=lambda case: case.name,
)
def test_compiled_graphs(case, tmp_path):
    layers.it_compiles(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.name in COMPILED], ids=lambda case: case.name)
def test_compiled_code(case, tmp_path):
    layers.it_compiles_to_code(case, tmp_path)


@pytest.mark.slow
def test_compiled_code_with_redraws():
    """Redraws happen between two graphs: compiled code does not store a weight that a backward pass needs."""
    torch._dynamo.reset()
    (redraw,) = (c for c in CASES if c.name == "conv/redraw")
    eager, layer = redraw.new().train(), redraw.new().train()
    compiled = torch.compile(layer)
    for step in range(6):
        for module in (eager, compiled):
            layers.backward(module(redraw.input(step)), step)
    (_, _, mask), *_ = masks(layer)
    assert mask.rounds.max() == 3
    for (name, a), b in zip(eager.state_dict().items(), layer.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
