"""The learning rate as a function of the step, and which parameters decay."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pellucid.core.errors import InputError
from pellucid.core.train.optimize import learning_rate, make_optimizer
from pellucid.core.train.settings import NEUTRAL, TrainSettings


@given(
    st.sampled_from(["cosine", "one-cycle", "multistep", "constant"]),
    st.integers(1, 500),
    st.floats(0, 0.9),
    st.floats(1e-6, 10),
)
def test_it_rises_to_the_peak_and_never_rises_again(schedule, total, warmup, lr):
    settings = TrainSettings(schedule=schedule, warmup=warmup, lr=lr)
    rates = [learning_rate(settings, step, total) for step in range(total)]
    rise = round(warmup * total)
    assert all(0 < rate <= lr * (1 + 1e-12) for rate in rates)
    assert all(a < b for a, b in pairwise(rates[:rise]))
    assert all(a >= b - 1e-12 * lr for a, b in pairwise(rates[max(rise - 1, 0) :]))
    assert max(rates) == pytest.approx(lr) or schedule == "multistep"


def test_the_printed_formulas():
    cosine = TrainSettings(warmup=0.0, lr=2.0)
    assert [learning_rate(cosine, s, 4) for s in range(4)] == pytest.approx(
        [1 + math.cos(math.pi * s / 4) for s in range(4)]
    )
    line = TrainSettings(schedule="one-cycle", warmup=0.5, lr=1.0)
    assert [learning_rate(line, s, 8) for s in range(8)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25])
    steps = TrainSettings(schedule="multistep", warmup=0.0, lr=1.0, milestones=[0.5, 0.75], gamma=0.1)
    assert [learning_rate(steps, s, 8) for s in range(8)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_vectors_do_not_decay_unless_told(name):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2, bias=False))
    net[0].weight.requires_grad_(False)
    groups = make_optimizer(TrainSettings(optimizer=name, weight_decay=0.3), net).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.3, 1), (0.0, 3)]
    groups = make_optimizer(TrainSettings(optimizer=name, weight_decay=0.3, decay_all=True), net).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.3, 4)]
    with pytest.raises(InputError, match="no parameter"):
        make_optimizer(TrainSettings(), nn.ReLU())


def test_momentum_reaches_sgd():
    (group, *_) = make_optimizer(TrainSettings(momentum=0.7, nesterov=True), nn.Linear(2, 2)).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.7, True)
    assert group["params"][0].dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"lr": -1.0}, "lr -1.0"),
        ({"lr": float("nan")}, "lr nan"),
        ({"batch_size": 3, "devices": 2}, "multiple of 2"),
        ({"mixup": 0.2, "batch_size": 6, "devices": 2}, "even"),
        ({"milestones": [0.5, 2.0]}, "milestones"),
        ({"label_smoothing": 1.0}, "label-smoothing"),
        ({"seed": -1}, "seed -1"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong, word):
    with pytest.raises(InputError, match=word):
        TrainSettings(**wrong)


def test_a_run_names_itself():
    assert TrainSettings().name() == "digits-resnet20"
    assert TrainSettings(seed=3, layers="x").name() == "digits-resnet20-x-seed3"
    neutral = TrainSettings(checkpoint_seconds=1, download=True, workers=4, memory_gb=8)
    assert neutral.name() == "digits-resnet20"
    assert set(neutral.changed()) == NEUTRAL
    assert TrainSettings(model="timm:resnet18", data="folder:/a/b").name().startswith("b-timm-resnet18-")
    assert TrainSettings(data="folder:/a/b").name() != TrainSettings(data="folder:/c/b").name()
    # Pinned: names of earlier runs must not change when a setting is added.
    assert TrainSettings(epochs=5).name() == "digits-resnet20-db96ee"
