"""The harness of `layers.py` on whitening layers."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import layers
from layers import Case
from pellucid.whiten import state
from pellucid.whiten.channels import ChannelDeconv
from pellucid.whiten.convolution import FastDeconv1d, FastDeconv2d, FastDeconv3d
from pellucid.whiten.linear import FastDeconvLinear
from pellucid.whiten.transposed import FastDeconvTranspose2d

PLAIN = {
    FastDeconv1d: nn.Conv1d,
    FastDeconv2d: nn.Conv2d,
    FastDeconv3d: nn.Conv3d,
    FastDeconvLinear: nn.Linear,
    FastDeconvTranspose2d: nn.ConvTranspose2d,
    ChannelDeconv: None,
}
FULL = {"grad": "full", "refresh": 1, "method": "newton"}


def case(name: str, kind: Any, shape: tuple[int, ...], *args: Any, deconv: dict | None = None, **options: Any) -> Case:
    """A layer `kind(*args, **options)` with whitening's own options `deconv`."""
    whitening = {"block": 2, "refresh": 3, **(deconv or {})}
    plain = PLAIN[kind]
    last = 1 if kind is FastDeconvLinear else 0  # axes at the end that stay
    grown = (
        shape[0] + 1,
        shape[1],
        *(n + 3 for n in shape[2 : len(shape) - last]),
        *shape[max(2, len(shape) - last) :],
    )
    return Case(
        name,
        lambda: kind(*args, **options, **whitening),
        None if plain is None else lambda: plain(*args, **options),
        shape,
        grown,
        unbatched=kind is not ChannelDeconv and kind is not FastDeconvLinear,
        whole_gradient=whitening.get("grad") == "full",
    )


CASES = [
    case("conv", FastDeconv2d, (3, 4, 7, 5), 4, 6, 3, padding=1),
    case("conv/block does not divide", FastDeconv2d, (3, 5, 7, 6), 5, 4, 3, deconv={"block": 3}),
    case("conv/tuples", FastDeconv2d, (3, 4, 9, 8), 4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, False),
    case("conv/depthwise", FastDeconv2d, (3, 4, 7, 5), 4, 8, 3, padding=1, groups=4, bias=False),
    case("conv/1x1 map", FastDeconv2d, (6, 4, 1, 1), 4, 6, 3, padding=1),
    case("conv/1x1 kernel", FastDeconv2d, (3, 4, 7, 5), 4, 6, 1, stride=2, padding=1),
    case("conv/reflect", FastDeconv2d, (3, 4, 7, 5), 4, 6, 3, padding=1, padding_mode="reflect"),
    case("conv/replicate", FastDeconv2d, (3, 4, 7, 5), 4, 6, 3, padding=(2, 1), padding_mode="replicate"),
    case("conv/circular", FastDeconv2d, (3, 4, 7, 5), 4, 6, 3, padding=1, padding_mode="circular", stride=2),
    case("conv/same", FastDeconv2d, (3, 4, 7, 5), 4, 6, (3, 5), padding="same", dilation=(2, 1)),
    case("conv/valid", FastDeconv2d, (3, 4, 7, 5), 4, 6, 3, padding="valid"),
    case("conv/full", FastDeconv2d, (4, 4, 6, 5), 4, 6, 3, padding=1, groups=2, deconv=FULL),
    case("conv/polynomial", FastDeconv2d, (4, 3, 6, 5), 3, 3, 2, deconv={**FULL, "method": "polynomial"}),
    case("conv/warm", FastDeconv2d, (3, 4, 7, 5), 4, 6, 3, deconv={"method": "newton-warm"}),
    case("conv/published", FastDeconv2d, (4, 4, 6, 5), 4, 3, 3, padding=1, deconv={**FULL, "blocks": "pooled"}),
    case("conv/freeze", FastDeconv2d, (4, 4, 6, 5), 4, 3, 3, deconv={"freeze_after": 4}),
    case("conv/relative", FastDeconv2d, (4, 4, 6, 5), 4, 3, 3, deconv={"relative_eps": True, "eps": 1e-3}),
    case("conv1d", FastDeconv1d, (3, 4, 11), 4, 6, 3, padding=2, dilation=2),
    case("conv3d", FastDeconv3d, (3, 2, 4, 5, 3), 2, 3, (2, 3, 1), padding=(0, 1, 1)),
    case("transposed", FastDeconvTranspose2d, (3, 4, 5, 4), 4, 6, 3, 2, 1, 1),
    case("transposed/groups", FastDeconvTranspose2d, (3, 6, 5, 4), 6, 4, (2, 3), groups=2, bias=False, dilation=2),
    case("linear", FastDeconvLinear, (8, 7), 7, 3, deconv={"block": 3}),
    case("linear/full", FastDeconvLinear, (9, 4), 4, 3, False, deconv={**FULL, "blocks": "pooled"}),
    case("linear/tokens", FastDeconvLinear, (4, 5, 6), 6, 3, deconv={"block": 4}),
    case("channels", ChannelDeconv, (6, 5), 5),
    case("channels/1d", ChannelDeconv, (3, 5, 4), 5),
    case("channels/2d", ChannelDeconv, (3, 5, 4, 7), 5, deconv={"block": 3}),
    case(
        "channels/published", ChannelDeconv, (4, 5, 6, 7), 5, deconv={**FULL, "blocks": "pooled", "sampling_stride": 2}
    ),
    case("channels/3d", ChannelDeconv, (2, 5, 4, 3, 2), 5, deconv=FULL),
]
COMPILED = [
    "conv",
    "conv/polynomial",
    "channels/published",
    "conv/tuples",
    "conv/full",
    "conv/warm",
    "conv/freeze",
    "transposed",
    "linear/full",
    "channels/2d",
]


def ids(case: Case) -> str:
    return case.name


@pytest.fixture(autouse=True)
def _short_start(monkeypatch):
    """Roots are made at every step for the first two only, so that a few steps see both kinds."""
    monkeypatch.setattr(state, "EVERY_STEP", 2)


@pytest.mark.parametrize("check", layers.FAST, ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_every_layer(case, check, tmp_path):
    check(case, tmp_path)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in COMPILED], ids=ids)
def test_compiled_graphs(case, tmp_path):
    layers.it_compiles(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.name in COMPILED], ids=ids)
def test_compiled_code(case, tmp_path):
    layers.it_compiles_to_code(case, tmp_path)
