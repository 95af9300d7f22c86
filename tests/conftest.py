"""One thread a test process: the processes share the cores, and sums in a fixed order are the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from forked import Commands

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # of processes that tests start
    os.environ.setdefault(name, "1")
torch.set_num_threads(1)

hypothesis.settings.register_profile("pellucid", deadline=None)  # first calls import; the machine may be busy
hypothesis.settings.load_profile("pellucid")


@pytest.fixture(autouse=True, scope="module")
def few_inverted_images(request: pytest.FixtureRequest) -> Iterator[None]:
    """Pages of other tests than its own show inverted images of a few steps: the whole search takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_invert_card.py":
            patch.setattr("pellucid.audit.cards.inverted.PLANS", ((4, 3),))
        yield


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    """Runs commands in forked processes."""
    with Commands() as started:
        yield started
