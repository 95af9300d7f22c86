"""The harness of `layers.py` on sparse coding layers."""

from __future__ import annotations

from typing import Any

import pytest

import layers
from layers import Case
from pellucid.sparse.layers import CSC1d, CSC2d, CSC3d


def case(name: str, kind: Any, shape: tuple[int, ...], *args: Any, **options: Any) -> Case:
    grown = (shape[0] + 1, shape[1], *(n + 3 for n in shape[2:]))
    return Case(name, lambda: kind(*args, **options), None, shape, grown, unbatched=True)


CASES = [
    case("csc", CSC2d, (3, 4, 7, 5), 4, 6, 3, padding=1),
    case("csc/stride", CSC2d, (3, 4, 8, 7), 4, 6, 3, 2, 1, n_steps=3),
    case("csc/tuples", CSC2d, (3, 4, 9, 8), 4, 6, (3, 2), (2, 1), (1, 0), (1, 2), mu=0.1),
    case("csc/signed", CSC2d, (3, 4, 7, 5), 4, 6, 3, nonnegative=False, mu=0.2),
    case("csc/one step", CSC2d, (3, 4, 7, 5), 4, 6, 1, n_steps=1),
    case("csc/dictionaries", CSC2d, (3, 4, 7, 5), 4, 6, 3, padding=1, n_dict=2),
    case("csc/norm", CSC2d, (3, 4, 7, 5), 4, 6, 3, padding=1, square_noise=False, n_steps=3),
    case("csc/long", CSC2d, (3, 4, 7, 5), 4, 6, 3, padding=1, schedule="long"),
    case("csc/greedy", CSC2d, (3, 4, 7, 5), 4, 6, 3, padding=1, schedule="greedy", n_steps=4),
    case("csc/own steps", CSC2d, (3, 4, 7, 5), 4, 6, 3, padding=1, schedule="barzilai-borwein", n_steps=3, mu=0.1),
    case("csc/implicit", CSC2d, (2, 3, 5, 4), 3, 4, 3, mu=1.0, n_steps=150, schedule="long", differentiate="implicit"),
    case("csc/published", CSC2d, (3, 4, 7, 5), 4, 6, 3, padding=1, published=True),
    case("csc1d", CSC1d, (3, 4, 11), 4, 6, 5, padding=2),
    case("csc3d", CSC3d, (3, 2, 4, 5, 3), 2, 3, (2, 3, 1), padding=(0, 1, 1)),
]
QUICK = ["csc", "csc/own steps"]
COMPILED = [
    "csc",
    "csc/signed",
    "csc/greedy",
    "csc/own steps",
]  # the published one compiles anew once it knows the size
# Gradients that hold something constant, as published: the norm of a residual, and that of the atoms.
CONSTANT = ["csc/norm", "csc/published"]


def ids(case: Case) -> str:
    return case.name


# Before any training it is no twin of a convolution.
CHECKS = [check for check in layers.FAST if check is not layers.before_any_training_it_is_its_plain_twin]


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c.name in QUICK else pytest.mark.slow) for c in CASES], ids=ids
)
def test_every_layer(case, check, tmp_path):
    if check is layers.gradients_are_exact and case.name in CONSTANT:
        pytest.skip("a published gradient is not that of the code")
    if check is layers.state_dicts_go_round and case.name == "csc/published":
        pytest.skip("the vector of the published power iteration is not saved")
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.name in COMPILED], ids=ids)
def test_compiled_graphs(case, tmp_path):
    layers.it_compiles(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.name in COMPILED[:3]], ids=ids)
def test_compiled_code(case, tmp_path):
    layers.it_compiles_to_code(case, tmp_path)
